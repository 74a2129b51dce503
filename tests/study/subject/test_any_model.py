"""The experiments on every family: nothing in them knows the model they were written with."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import soundfile
from test_prompts import AUDIO, CLIPS, PROCESSORS, RATE, blind, random_model, speech_model

from affinity_pool.study.data import Utterance
from affinity_pool.study.experiments.calibrate.run import THRESHOLDS, Curves
from affinity_pool.study.experiments.dynamics.run import Measuring
from affinity_pool.study.experiments.evaluate import run as evaluate
from affinity_pool.study.experiments.oracle import run as oracle
from affinity_pool.study.experiments.probe import run as probe
from affinity_pool.study.runs.batches import Plan, run
from affinity_pool.study.runs.conditions import Answering, scorable
from affinity_pool.study.runs.results import Finished
from affinity_pool.study.runs.scores import by_condition, retention, summarise
from affinity_pool.study.sites import parse_sites
from affinity_pool.study.subject.lslm import Lslm


@pytest.fixture
def utterances(tmp_path: Path) -> list[Utterance]:
    found = []
    for index, clip in enumerate(CLIPS):
        soundfile.write(tmp_path / f"{index}.wav", clip, RATE)
        found.append(Utterance(f"u{index}", tmp_path / f"{index}.wav", None, "what is", None, (), None))
    return found


@pytest.mark.parametrize("kind", PROCESSORS)
def test_every_experiment_runs_on_every_family(
    kind: str, utterances: list[Utterance], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    blind(monkeypatch)
    name, build = PROCESSORS[kind]
    model: Any = speech_model() if kind == "qwen2_audio" else random_model(name)
    lslm = Lslm(model, build(), kind, "aggressive")
    assert AUDIO in lslm.batch([u.load(RATE) for u in utterances], ["what is", "said"])["input_ids"]

    def done(work: Any, what: str, prepare: Any = None) -> Finished[Any]:
        return run(lslm, utterances, Plan(what, kind, {}, 2), tmp_path / what, work, prepare)

    choice = parse_sites("0:-0.9:1", lslm.depth)
    conditions = evaluate.conditions([choice], ["uniform-drop", "interpolate"], seed=0)
    answers = done(Answering(lslm, conditions, longest=2), "eval", scorable(lslm))
    of = by_condition(answers.rows)
    (kept,) = retention(of[conditions[1].name])
    assert kept < 1
    assert retention(of[conditions[2].name]) == retention(of[conditions[3].name]) == [kept]

    facts = summarise(lslm, answers)
    assert [condition["relative_flops"] for condition in facts["conditions"]] == [
        1,
        *[pytest.approx(kept, abs=0.5)] * 3,
    ]
    assert facts["conditions"][1]["relative_flops"] < 1

    half = oracle.conditions([lslm.depth - 1], ["uniform-merge"], [oracle.UnitBudget(share=0.5)], seed=0)
    records = done(Answering(lslm, half, longest=2), "oracle", oracle.unit_spans("0.3", None, lslm))
    for record in records.rows[1::2]:
        assert record["kept"] == [max(round(record["audio_tokens"] / 2), 4 if record["seconds"] > 1 else 3)]

    figures = done(Measuring(lslm), "dynamics", lambda *_: None)
    assert all(len(record["neighbour"]) == lslm.depth + 1 for record in figures.rows)
    curves = done(Curves(lslm, (1,)), "curves")
    assert all(
        len(record["left"]) == lslm.depth and len(record["left"][0]) == len(THRESHOLDS) for record in curves.rows
    )
    drawn = probe.picture(lslm, utterances[0], utterances[0].load(RATE), None, [0, 1], -0.9, 1)
    assert drawn.mel.ndim == 2
    assert len(drawn.rows) == 3
    assert len(drawn.rows[1].spans) < len(drawn.rows[0].spans)
