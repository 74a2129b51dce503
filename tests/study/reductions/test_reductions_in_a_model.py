"""Reductions at a site of a model: the counts they were told, bit for bit nothing at the full budget, batch or not."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from affinity_pool.models import Reduction, Site, patch
from affinity_pool.study.data.audio import Audio
from affinity_pool.study.groups import Span, spans_after_sites
from affinity_pool.study.reductions import (
    bipartite_merge,
    interpolate,
    planned,
    quota,
    random_drop,
    random_drop_plan,
    uniform_drop,
    uniform_drop_plan,
    uniform_merge,
    uniform_merge_plan,
)
from affinity_pool.study.subject.lslm import Lslm, load

SECONDS = (0.8, 1.9, 1.3)


def seeds(kept: Tensor) -> list[int]:
    return [5] * len(kept)  # for a row alone draws what it draws among others


REDUCTIONS = {
    "random-drop": lambda kept: random_drop(kept, seeds(kept)),
    "uniform-drop": uniform_drop,
    "uniform-merge": uniform_merge,
    "interpolate": interpolate,
    "bipartite-merge": bipartite_merge,
}
every_reduction = pytest.mark.parametrize("at_budget", REDUCTIONS.values(), ids=REDUCTIONS)
layers = pytest.mark.parametrize("layer", [0, 2])


@pytest.fixture(scope="module")
def lslm(folder: Path) -> Iterator[Lslm]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # equal work then gives equal bits
    yield load(str(folder))
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def recordings(lslm: Lslm) -> list[Audio]:
    random = np.random.default_rng(0)
    return [Audio(random.normal(0, 0.1, round(s * lslm.rate)).astype(np.float32), lslm.rate) for s in SECONDS]


@pytest.fixture(scope="module")
def inputs(lslm: Lslm, recordings: list[Audio]) -> dict[str, Tensor]:
    return lslm.batch(recordings, ["transcribe", "first one", "transcribe"])


@torch.inference_mode()
def logits(lslm: Lslm, inputs: dict[str, Tensor], layer: int, reduction: Reduction) -> tuple[Tensor, list[int]]:
    """``[B, vocabulary]`` after the prompt, and the audio tokens left of each row."""
    with patch(lslm.model, [Site(layer, reduction=reduction)]) as handle:
        out = lslm.model(**inputs).logits[:, -1]
    assert handle.stats is not None
    return out, handle.stats.sites[0].audio_after


@layers
@every_reduction
def test_a_site_leaves_the_counts_it_was_told(lslm, inputs, at_budget, layer) -> None:
    kept = torch.tensor([4, 9, 1])
    assert logits(lslm, inputs, layer, at_budget(kept))[1] == [4, 9, 1]


@layers
@every_reduction
def test_at_the_full_budget_the_logits_are_the_unpatched_models_bit_for_bit(lslm, inputs, at_budget, layer) -> None:
    audio = lslm.audio_positions(inputs).sum(1)
    with torch.inference_mode():
        unpatched = lslm.model(**inputs).logits[:, -1]
    assert torch.equal(logits(lslm, inputs, layer, at_budget(audio))[0], unpatched)


@layers
@every_reduction
def test_a_batch_answers_as_its_recordings_do_alone(lslm, inputs, recordings, at_budget, layer) -> None:
    kept = torch.tensor([4, 9, 6])
    together, _ = logits(lslm, inputs, layer, at_budget(kept))
    for row, prompt in enumerate(["transcribe", "first one", "transcribe"]):
        alone, counts = logits(lslm, lslm.batch([recordings[row]], [prompt]), layer, at_budget(kept[row : row + 1]))
        assert counts == [int(kept[row])]
        torch.testing.assert_close(together[row], alone[0], rtol=1e-3, atol=1e-4)


@layers
@pytest.mark.parametrize(
    "operator", [uniform_drop_plan, uniform_merge_plan, lambda units, keep: random_drop_plan(units, keep, 3)]
)
def test_an_oracle_compresses_each_unit_of_each_recording(lslm, inputs, operator, layer) -> None:
    audio = lslm.audio_positions(inputs)
    units = [[Span(0, 3), Span(3, 4), Span(4, n)] for n in audio.sum(1).tolist()]
    keep = [quota(row, share=0.4) for row in units]
    reduction = planned(lambda row, n: operator(units[row], keep[row]))
    with torch.inference_mode(), patch(lslm.model, [Site(layer, reduction=reduction)]) as handle:
        lslm.model(**inputs)
    assert handle.stats is not None
    for row, (own, kept) in enumerate(zip(units, keep, strict=True)):
        (groups,) = spans_after_sites(handle.stats.sites, audio, row)
        found = [sum(unit.start <= group.start and group.end <= unit.end for group in groups) for unit in own]
        assert found == kept


def test_generation_and_a_second_site_go_on_from_what_is_left(lslm, inputs) -> None:
    sites = [
        Site(0, reduction=uniform_drop(torch.tensor([8, 12, 9]))),
        Site(2, reduction=interpolate(torch.tensor([3] * 3))),
    ]
    with patch(lslm.model, sites) as handle:
        assert lslm.generate(inputs).shape[0] == 3
    assert handle.stats is not None
    assert [site.audio_after for site in handle.stats.sites] == [[8, 12, 9], [3, 3, 3]]


def test_a_plan_for_another_recording_is_refused(lslm, inputs) -> None:
    reduction = planned(lambda row, n: uniform_merge_plan([Span(0, 7)], [3]))
    with pytest.raises(ValueError, match=r"plan of row 0 must be int64 \[\d+\], one entry for each"):
        logits(lslm, inputs, 0, reduction)
