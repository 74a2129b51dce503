"""The page on reductions and families of one's own: its code runs, and each method on it leaves the model its words."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers

from affinity_pool.models import FAMILIES
from affinity_pool.models.families import audio_tower, language_model

ROOT = Path(__file__).parents[2]
CODE = re.findall(r"^```python\n(.*?)^```$", (ROOT / "docs" / "extending.md").read_text(encoding="utf-8"), re.M | re.S)


@pytest.fixture(scope="module")
def page() -> dict[str, Any]:
    """What the page's code has defined, and under ``said`` what it printed."""
    pytest.importorskip("soundfile")
    if transformers.__version__.startswith("4."):
        pytest.skip("the bundled model's tokenizer was written by transformers 5")
    said: list[tuple[str, int, int]] = []
    names: dict[str, Any] = {"print": said.append, "said": said}
    with pytest.MonkeyPatch.context() as changed, torch.inference_mode():
        changed.chdir(ROOT)
        changed.setitem(FAMILIES, "my_speech_llm", None)  # so that the page's is gone in the end
        for code in CODE:
            exec(code, names)
        names["family"] = FAMILIES["my_speech_llm"]
    return names


def test_every_way_on_the_page_leaves_fewer_tokens_and_the_same_words(page):
    assert len(page["said"]) == len(CODE) == 5
    assert {words for words, _, _ in page["said"]} == {"star eight one dash zero four pound"}
    assert all(0 < after < before for _, before, after in page["said"])


def test_the_family_on_the_page_finds_what_the_defaults_find(page):
    family, model = page["family"], page["model"]
    assert family.decoder(model) is language_model(model)
    assert family.encoder(model) is audio_tower(model)
    assert family.audio_token_id(model.config) == FAMILIES["qwen2_audio"].audio_token_id(model.config)
    assert family.token_seconds(model.config) == FAMILIES["qwen2_audio"].token_seconds(model.config)


@pytest.mark.parametrize("name", ["drop_weak", "relative", "pairs"])
def test_reductions_on_the_page_keep_text_and_do_not_see_batch_mates(page, name):
    reduction = page["Relative"](0.6) if name == "relative" else page[name]
    x, lengths = torch.randn(3, 20, 8), torch.tensor([20, 13, 5], dtype=torch.int32)
    valid = torch.arange(20) >= 20 - lengths[:, None]
    audio = valid & (torch.rand(3, 20) < 0.7)
    out = reduction(x, lengths, audio)
    row, column = (valid & ~audio).nonzero(as_tuple=True)
    assert torch.equal(out.values[row, out.segment_ids[row, column].long()], x[row, column])
    assert torch.equal(
        out.counts.gather(1, out.segment_ids.clamp(min=0).long())[valid & ~audio].unique(), torch.ones(1).int()
    )
    assert torch.equal(out.lengths, (out.counts > 0).sum(1).int())
    assert out.counts.sum(1).tolist() == (out.segment_ids >= 0).sum(1).tolist()
    for b in range(3):
        own = slice(b, b + 1)
        for part, alone in zip(out, reduction(x[own], lengths[own], audio[own]), strict=True):
            assert torch.equal(part[own], alone)
    whole = reduction(x[:1], None, audio[:1])
    assert all(torch.equal(part[:1], alone) for part, alone in zip(out, whole, strict=True))
