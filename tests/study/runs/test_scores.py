"""Scores compare conditions on the same utterances, and count tokens and operations as they were."""

from __future__ import annotations

from typing import Any

import jiwer
import pytest

from affinity_pool.models import Site
from affinity_pool.reference import rows_left
from affinity_pool.study.efficiency.flops import relative_prefill_flops
from affinity_pool.study.runs import scores
from affinity_pool.study.runs.results import Finished
from affinity_pool.study.subject.lslm import Lslm, load


@pytest.fixture(scope="module")
def lslm(folder: Any) -> Lslm:
    return load(str(folder), "cpu")


def record(condition: str, index: int, answer: str, **other: Any) -> dict[str, Any]:
    return {
        "utterance": f"u{index}",
        "condition": condition,
        "facts": {},
        "prompt": "transcribe",
        "task": "transcribe",
        "language": "en",
        "metric": None,
        "normaliser": "plain",
        "reference": "one two three four",
        "answer": answer,
        "text_tokens": 10,
        "audio_tokens": 100,
        "layers": [],
        "kept": [],
        **other,
    }


UNPOOLED = ["one two three four", "one two three", "one two three four", "one two two four"]
POOLED = ["one two three", "one two three", "one two", "one two two four"]


def both() -> list[dict[str, Any]]:
    records: list[dict[str, Any]] = []
    for index, (unpooled, pooled) in enumerate(zip(UNPOOLED, POOLED, strict=True)):
        records.append(record("unpooled", index, unpooled))
        records.append(record("pooled", index, pooled, layers=[0, 2], kept=[60 + index, 20]))
    return records


def test_shares_leave_as_many_tokens_in_all_as_were_left_and_no_more() -> None:
    of = [record("pooled", index, "", layers=[0, 2], kept=[60 + 3 * index, 20 + index]) for index in range(4)]
    sites = scores.as_shares(of)
    assert [site.layer for site in sites] == [0, 2]

    def left(*shares: float) -> int:
        runs = [100] * 4
        for share in shares:
            runs = [rows_left(run, share) for run in runs]
        return sum(runs)

    at_input, deep = (site.keep for site in sites)
    assert left(at_input) <= sum(60 + 3 * index for index in range(4)) < left(at_input + 1e-4)
    assert left(at_input, deep) <= sum(20 + index for index in range(4)) < left(at_input, deep + 1e-4)


def test_shares_are_in_reach_whatever_was_left() -> None:
    whole = scores.as_shares([record("pooled", 0, "", layers=[1], kept=[100])])
    none = scores.as_shares([record("pooled", 0, "", layers=[1], kept=[0])])
    assert (whole, none) == ((Site(1, keep=1.0),), (Site(1, keep=0.0001),))


def test_rates_are_those_of_the_whole_corpus() -> None:
    found = scores.score(scores.by_task(both())["transcribe"])
    reference = ["one two three four"] * 4
    assert found["unpooled"]["wer"].value.value == pytest.approx(jiwer.wer(reference, UNPOOLED))
    assert found["pooled"]["wer"].value.value == pytest.approx(jiwer.wer(reference, POOLED))
    assert found["pooled"]["wer"].value.utterances == 4
    assert found["unpooled"]["wer"].difference is None
    difference = found["pooled"]["wer"].difference
    assert difference is not None
    assert difference.value == pytest.approx(jiwer.wer(reference, POOLED) - jiwer.wer(reference, UNPOOLED))


def test_conditions_may_be_compared_with_another_than_unpooled() -> None:
    records = [*both(), *(record("drop", index, "one") for index in range(4))]
    found = scores.score(records, {"drop": "pooled"})
    difference = found["drop"]["wer"].difference
    assert difference is not None
    assert difference.value == pytest.approx(found["drop"]["wer"].value.value - found["pooled"]["wer"].value.value)
    assert found["pooled"]["wer"].difference is None


def test_languages_of_a_task_are_scored_apart() -> None:
    records = [record("unpooled", 0, "one"), record("unpooled", 1, "uno", language="es")]
    assert list(scores.by_task(records)) == ["transcribe (en)", "transcribe (es)"]
    assert list(scores.by_task(records[:1])) == ["transcribe"]


def test_recordings_without_a_right_answer_are_not_scored() -> None:
    assert scores.by_task([record("unpooled", 0, "one", reference=None)]) == {}


def test_retention_and_operations_are_of_all_recordings_together(lslm: Lslm) -> None:
    of = scores.by_condition(both())
    assert scores.retention(of["unpooled"]) == []
    assert scores.retention(of["pooled"]) == pytest.approx([(60 + 61 + 62 + 63) / 400, 0.2])
    assert scores.relative_flops(lslm, of["unpooled"]) == 1
    same = [record("pooled", index, "", layers=[0, 2], kept=[60, 20]) for index in range(3)]
    expected = relative_prefill_flops(lslm.config, 10, 100, {0: 0.6, 2: 0.2})
    assert scores.relative_flops(lslm, same) == pytest.approx(expected)


def test_a_summary_holds_what_the_pages_need(lslm: Lslm) -> None:
    plan = {"command": "eval", "recordings": 5}
    facts = scores.summarise(lslm, Finished(plan, both(), [{"utterance": "u9", "problem": "unreadable"}], {}))
    assert [condition["name"] for condition in facts["conditions"]] == ["unpooled", "pooled"]
    assert facts["unusable"] == [{"utterance": "u9", "problem": "unreadable"}]
    assert [metric["name"] for metric in facts["metrics"]["transcribe"]] == ["wer", "cwer"]
    pooled = facts["conditions"][1]
    assert pooled["retention"][-1] == 0.2
    assert pooled["utterances"] == 4
    low, high = pooled["scores"]["transcribe"]["wer"]["difference"]["interval_95"]
    assert low <= pooled["scores"]["transcribe"]["wer"]["difference"]["value"] <= high


def test_a_judge_is_asked_once_and_its_word_kept() -> None:
    from affinity_pool.study.metrics.judge import judged

    def never(*_: str) -> float:
        raise AssertionError("the verdict is in the record")

    records = [
        record("unpooled", i, "one", task="first", judged=[value, 1.0]) for i, value in enumerate((1.0, 0.0, 1.0))
    ]
    records.append(record("unpooled", 3, "one", task="first", judged=[None, None]))
    found = scores.score(records, judge=judged("tests:never", never))
    assert list(found["unpooled"]) == ["judge", "exact", "contained"]
    assert found["unpooled"]["judge"].value.value == pytest.approx(2 / 3)
    assert found["unpooled"]["judge"].value.utterances == 3
