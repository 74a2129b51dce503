"""Audio tokens followed through the sites, on maps written by hand and on a pooled model."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import torch

from affinity_pool.study.groups import Span, containing, spans_after_sites


def site(*rows: list[int]) -> SimpleNamespace:
    return SimpleNamespace(segment_ids=torch.tensor(rows, dtype=torch.int32))


def test_two_sites_compose_over_a_narrowed_output() -> None:
    """Eight columns, tokens 2-6 are audio; the first site leaves six columns, at the right."""
    audio = torch.tensor([[False, False, True, True, True, True, True, False]])
    first = site([2, 3, 4, 4, 5, 5, 6, 7])
    second = site([1, 2, 3, 3, 4, 5])
    assert spans_after_sites([first, second], audio) == [
        [Span(0, 2), Span(2, 4), Span(4, 5)],
        [Span(0, 4), Span(4, 5)],
    ]


def test_a_site_that_merges_nothing_changes_nothing() -> None:
    audio = torch.tensor([[True, True, True]])
    assert spans_after_sites([site([0, 1, 2]), site([1, 1, 2])], audio) == [
        [Span(0, 1), Span(1, 2), Span(2, 3)],
        [Span(0, 2), Span(2, 3)],
    ]


def test_dropped_tokens_are_in_no_span() -> None:
    audio = torch.tensor([[True, True, True, True]])
    assert spans_after_sites([site([2, -1, 3, -1]), site([0, 1])], audio) == [
        [Span(0, 1), Span(2, 3)],
        [Span(0, 1), Span(2, 3)],
    ]


def test_rows_of_a_batch_are_told_apart() -> None:
    audio = torch.tensor([[True, True, True], [False, True, True]])
    assert spans_after_sites([site([1, 1, 2], [0, 2, 2])], audio, row=1) == [[Span(0, 2)]]


def test_spans_of_a_pooled_model_partition_its_audio_tokens(folder: Path, clips: Path) -> None:
    from affinity_pool import patch
    from affinity_pool.study.data.audio import load_audio
    from affinity_pool.study.subject.lslm import load

    lslm = load(str(folder), "cpu")
    inputs = lslm.inputs(load_audio(clips / "chord.flac", lslm.rate), "transcribe")
    with patch(lslm.model, folder) as handle:
        lslm.generate(inputs, longest=2)
        sites = handle.stats.sites
    audio = lslm.audio_positions(inputs)
    previous = int(audio.sum())
    outer = None
    for stats, spans in zip(sites, spans_after_sites(sites, audio), strict=True):
        assert [token for span in spans for token in range(*span)] == list(range(int(audio.sum())))
        assert len(spans) == stats.audio_after[0] <= previous
        if outer is not None:
            assert None not in containing(outer, spans)  # groups only grow
        previous, outer = len(spans), spans
    assert previous < int(audio.sum())


def test_a_span_is_found_in_the_one_that_holds_it() -> None:
    outer = [Span(0, 3), Span(5, 6)]
    assert containing([Span(0, 1), Span(1, 3), Span(3, 5), Span(5, 6), Span(6, 7)], outer) == [0, 0, None, 1, None]
