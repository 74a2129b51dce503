"""The recipe of examples/tiny-lslm/finetune.py, as far as it goes without the words its training data is made of."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest
import soundfile
import torch
from transformers import AutoProcessor, Qwen2AudioForConditionalGeneration

from affinity_pool.models import Site, patch

pytest.importorskip("peft", reason="peft is not installed here")
FOLDER = Path(__file__).parents[2] / "examples" / "tiny-lslm"
sys.path.append(str(FOLDER))
import compare  # noqa: E402
import finetune  # noqa: E402

SITES = [Site(0, keep=0.4), Site(7, keep=0.25)]


@pytest.fixture(scope="module")
def items() -> list[dict[str, Any]]:
    """Bundled recordings with their answers, as the training set has utterances."""
    lines = (FOLDER / "recordings" / "manifest.jsonl").read_text().splitlines()
    entries = [
        entry for line in lines if (entry := json.loads(line)).get("task") in finetune.TASKS and entry.get("text")
    ]
    return [
        {
            "wave": soundfile.read(FOLDER / "recordings" / e["audio"], dtype="float32")[0],
            "task": e["task"],
            "answer": e["text"],
        }
        for e in entries[:4]
    ]


@pytest.fixture
def model() -> Any:
    return Qwen2AudioForConditionalGeneration.from_pretrained(FOLDER / "checkpoint", dtype=torch.float32)


@pytest.fixture
def collator() -> finetune.Collator:
    return finetune.Collator(AutoProcessor.from_pretrained(FOLDER / "checkpoint"))


def test_answers_alone_are_labels(items, collator):
    batch = collator(items)
    for row, labels, item in zip(batch["input_ids"], batch["labels"], items, strict=True):
        asked = labels != finetune.IGNORE
        assert torch.equal(labels[asked], row[asked])
        assert collator.processor.tokenizer.decode(labels[asked]) == f"{item['answer']} <|im_end|>"
    assert batch["attention_mask"][:, 0].all()  # padded on the right


def test_what_the_model_knows_already_is_learnt_at_a_small_loss(items, collator, model):
    batch = collator(items)
    unpooled = model(**batch).loss
    with patch(model, SITES) as handle:
        pooled = model(**batch).loss
        assert handle.stats.sites[0].audio_kept < 0.45
    assert unpooled < 0.2
    assert pooled < 1
    pooled.backward()
    assert model.model.audio_tower.conv1.weight.grad.abs().sum() > 0


def test_adapters_are_in_the_decoder_alone(items, collator, model):
    with patch(model, SITES):
        adapted = finetune.adapted(model, rank=2)
        adapted(**collator(items)).loss.backward()
    learning = {name for name, weight in adapted.named_parameters() if weight.grad is not None}
    assert len(learning) == 2 * 7 * 8  # two matrices for each linear layer
    assert all("language_model" in name and "lora" in name for name in learning)


def test_models_are_compared_recording_by_recording(tmp_path):
    """Two recordings; the model as it was errs on one when pooled, no other model on any."""
    for set_name in compare.SETS:
        for model in compare.MODELS:
            folder = tmp_path / f"{model}-{set_name}"
            folder.mkdir()
            lines = []
            for sites, kept in (None, []), ("0:keep=0.5", [5]):
                for recording in ("one", "two"):
                    wrong = model == compare.BEFORE and sites and recording == "two"
                    line = {
                        "utterance": recording,
                        "condition": f"at {sites}",
                        "facts": {"sites": sites} if sites else {},
                    }
                    line |= {"task": "transcribe", "language": "en", "metric": "wer", "normaliser": "plain"}
                    line |= {"reference": "alpha bravo", "answer": "alpha" if wrong else "alpha bravo"}
                    lines.append(line | {"audio_tokens": 10, "kept": kept})
            (folder / "results.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    entries = compare.compare(tmp_path)
    assert len(entries) == 2 * 6 * 2  # sets, models, pooled or not
    found = {entry["condition"]: entry for entry in entries if entry["set"] == "test-espeak"}
    assert found["as-it-was at 0:keep=0.5"]["value"] == 0.25
    assert found["as-it-was at 0:keep=0.5"]["retention"] == [0.5]
    assert found["pooled at 0:keep=0.5"]["less"]["as it was"]["value"] == -0.25
    assert found["pooled at 0:keep=0.5"]["less"]["beside"]["value"] == 0
    assert "beside" not in found["unpooled at 0:keep=0.5"]["less"]
    of_espeak, _, by_budget = compare.tables({"eval": entries, "budgets": entries})
    assert "| as it was, pooled | 25.0 % |" in of_espeak
    assert "| **trained pooled**, LoRA | 0.0 % (-25.0 [" in of_espeak
    assert by_budget.startswith("| WER of `transcribe`; left at the input, after layer 7 | all | 50 % |")


def test_the_page_says_what_the_runs_showed():
    root = FOLDER.parents[1]
    found = json.loads((root / "benchmarks" / "results" / "tiny-lslm-finetuned.json").read_text())
    page = (root / "docs" / "training.md").read_text()
    assert all(table in page for table in compare.tables(found))
