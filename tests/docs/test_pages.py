"""Code on the pages that a newcomer reads first runs as it stands: on the bundled model, and a small random Whisper."""

from __future__ import annotations

import re
import shutil
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers

sys.path.append(str(Path(__file__).parents[1] / "models"))

from random_encoder_decoders import BINS, FRAMES, random_model

from affinity_pool.models.settings import load

ROOT = Path(__file__).parents[2]
CHECKPOINT = ROOT / "examples" / "tiny-lslm" / "checkpoint"
RECORDING = ROOT / "examples" / "tiny-lslm" / "recordings" / "allison-keys.flac"
WORDS = "star eight one dash zero four pound"

# What stands on the pages for what there is here: a published model of 32 layers, what it bears, what it is asked.
HERE = {
    '"Qwen/Qwen2-Audio-7B-Instruct"': repr(str(CHECKPOINT)),
    '"Transcribe the speech."': '"transcribe"',
    '"aggressive"': repr(str(CHECKPOINT)),
    "layer=29": "layer=7",
    'dtype="auto", device_map="auto"': "dtype=torch.float32",
}


def blocks(page: str, language: str = "python") -> list[str]:
    text = (ROOT / page).read_text(encoding="utf-8")
    return re.findall(rf"^```{language}\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)


def run(code: str, names: dict[str, Any]) -> list[str]:
    """The lines that it prints."""
    for there, here in HERE.items():
        code = code.replace(there, here)
    said: list[str] = []
    names["print"] = lambda *things: said.append(" ".join(map(str, things)))
    exec(code, names)
    return said


class RandomWhisper:
    """What is asked of the processor of a small random model, which hears 1.2 s."""

    extractor = transformers.WhisperFeatureExtractor(feature_size=BINS, chunk_length=2)

    def __call__(self, audio: Any, **options: Any) -> Any:
        heard = self.extractor(audio, **options)
        heard["input_features"] = heard["input_features"][..., :FRAMES]
        return heard

    def batch_decode(self, tokens: torch.Tensor, skip_special_tokens: bool) -> list[int]:
        return [len(row) for row in tokens]


@pytest.fixture
def names(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """Where a page's code runs: a folder with a recording, and no network."""
    pytest.importorskip("soundfile")
    if transformers.__version__.startswith("4."):
        pytest.skip("the bundled model's tokenizer was written by transformers 5")
    shutil.copy(RECORDING, tmp_path / "speech.wav")  # soundfile looks into the file
    monkeypatch.chdir(tmp_path)
    whisper, processor = random_model("whisper"), RandomWhisper()
    monkeypatch.setattr(transformers.WhisperForConditionalGeneration, "from_pretrained", lambda _: whisper)
    monkeypatch.setattr(transformers.WhisperProcessor, "from_pretrained", lambda _: processor)
    return {"torch": torch, "whisper": whisper, "whisper_processor": processor}


def test_readme_pools_transcribes_and_hears(names: dict[str, Any]) -> None:
    op, patch, whisper = blocks("README.md")
    run(op, names)
    assert len(names["counts"]) == 375
    said = run(patch, names)
    assert said[0] == WORDS
    (_, before, left), (_, _, after) = eval(said[1])
    assert before == [155]
    assert before > left > after
    names["processor"] = names["whisper_processor"]
    assert len(run(whisper, names)) == 1


def test_the_quick_start_pools_transcribes_and_hears(names: dict[str, Any]) -> None:
    op, patch, whisper = blocks("docs/quickstart.md")
    assert run(op, names) == ["torch.Size([250, 4096])", "[0, 0, 0, 1, 1, 1, 2]", "[3, 3, 3]"]
    assert run(patch, names)[0] == WORDS
    assert len(run(whisper, names)) == 1


def test_the_pages_on_op_patch_and_sites(names: dict[str, Any]) -> None:
    (op,) = blocks("docs/op.md")
    run(op, names)
    assert len(names["values"]) == 375
    run(blocks("README.md")[1], names)
    (patch,) = blocks("docs/patch.md")
    assert len(run(patch, names)) == 1
    (sites,) = blocks("docs/sites.md")
    run(sites, names)


def test_whisper_s_page(names: dict[str, Any]) -> None:
    import soundfile

    names["samples"], _ = soundfile.read("speech.wav", dtype="float32")
    (code,) = blocks("docs/whisper.md")
    _, left = run(code, names)
    assert 0 < eval(left)[0] <= FRAMES // 2


def test_a_file_of_sites_is_one(tmp_path: Path) -> None:
    (written,) = blocks("docs/sites.md", "json")
    (tmp_path / "affinity_pool.json").write_text(written)
    assert load(tmp_path) == load(CHECKPOINT)


@pytest.mark.parametrize("page", sorted(str(path.relative_to(ROOT)) for path in ROOT.glob("docs/*.md")))
def test_all_code_is_python(page: str) -> None:
    for code in blocks(page):
        compile(code, page, "exec")
