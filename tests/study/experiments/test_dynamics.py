"""Similarities in one pass are those of the full matrix of cosines."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

from affinity_pool.study.data import open_data
from affinity_pool.study.experiments.dynamics.run import Measuring, similarity, summarise, word_spans
from affinity_pool.study.groups import Span
from affinity_pool.study.runs.batches import Plan, run
from affinity_pool.study.runs.results import Finished, Similarities
from affinity_pool.study.subject.lslm import Lslm, load


@pytest.fixture(scope="module")
def lslm(folder: Path) -> Lslm:
    return load(str(folder), "cpu")


@pytest.mark.parametrize(("tokens", "dim"), [(2, 3), (40, 16), (300, 8)])
def test_figures_are_those_of_the_matrix(tokens: int, dim: int) -> None:
    x = torch.randn(tokens, dim, generator=torch.Generator().manual_seed(tokens)).cumsum(0)
    unit = F.normalize(x.double(), dim=-1)
    cosines = unit @ unit.T
    words = [Span(0, tokens // 2), Span(tokens // 2, tokens)]
    found = similarity(x, words)
    adjacent = cosines.diagonal(1)
    assert found.neighbour == pytest.approx(float(adjacent.mean()), abs=1e-5)
    assert found.overall == pytest.approx(float((cosines.sum() - tokens) / (tokens * (tokens - 1))), abs=1e-5)
    inside = [adjacent[w.start : w.end - 1].max() for w in words if w.end - w.start > 1]
    assert found.intra_word == (pytest.approx(float(sum(inside) / len(inside)), abs=1e-5) if inside else None)


def test_equal_tokens_are_alike_and_strangers_are_not() -> None:
    assert similarity(torch.ones(9, 4)).overall == pytest.approx(1)
    assert similarity(torch.eye(9)).overall == pytest.approx(0)
    assert similarity(torch.ones(1, 4)).neighbour is None


def test_a_word_of_one_token_has_no_neighbours_inside() -> None:
    assert similarity(torch.randn(4, 8), [Span(1, 2)]).intra_word is None


def test_memory_grows_with_tokens_not_with_their_square() -> None:
    """Ten minutes of audio, 15000 tokens: the matrix of cosines would be 900 MB."""
    x = torch.randn(15000, 8)
    with torch.profiler.profile(profile_memory=True, activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
        similarity(x)
    largest = max(abs(event.cpu_memory_usage) for event in profile.events())
    assert largest <= 4 * x.numel() * 8


def test_every_layer_is_seen_once(lslm: Lslm, corpus: Path) -> None:
    seen: list[torch.Tensor] = []
    audio = open_data(corpus)[0].load(lslm.rate)
    with lslm.hidden_states(seen.append):
        lslm.generate(lslm.inputs(audio, "transcribe"), longest=1)
    own = lslm.model(**lslm.inputs(audio, "transcribe"), output_hidden_states=True).hidden_states
    assert len(seen) == lslm.depth + 1
    for hidden, expected in zip(seen[:-1], own, strict=False):
        assert torch.equal(hidden, expected)


def test_rows_of_a_batch_are_told_apart(lslm: Lslm, corpus: Path, tmp_path: Path) -> None:
    def measured(batch: int) -> Finished[Similarities]:
        plan = Plan("dynamics", "random", {}, batch)
        return run(lslm, open_data(corpus), plan, tmp_path / str(batch), Measuring(lslm), word_spans(None, lslm))

    alone, together = measured(1), measured(4)
    assert alone.unusable == together.unusable
    for one, other in zip(alone.rows, together.rows, strict=True):
        assert one.keys() == other.keys()
        for name in ("neighbour", "overall", "intra_word"):
            assert one.get(name) == pytest.approx(other.get(name), abs=1e-5)
    facts = summarise(lslm, alone)
    assert [layer["layer"] for layer in facts["layers"]] == list(range(lslm.depth + 1))
    weights = [record["audio_tokens"] for record in alone.rows]
    values = [record["neighbour"][0] for record in alone.rows]
    mean = sum(w * v for w, v in zip(weights, values, strict=True)) / sum(weights)
    assert facts["layers"][0]["neighbour"]["value"] == pytest.approx(mean, abs=1e-5)
