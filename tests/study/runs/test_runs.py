"""Runs: what is done stays done, what cannot be used is told, and neither batches nor processes change a figure."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from affinity_pool.models import Site
from affinity_pool.models.settings import Pooling
from affinity_pool.study.data import open_data
from affinity_pool.study.errors import InputError
from affinity_pool.study.runs.batches import Plan, run
from affinity_pool.study.runs.conditions import UNPOOLED, Answering, Condition, scorable
from affinity_pool.study.runs.results import Answer, Finished
from affinity_pool.study.subject.lslm import Lslm, load

POOLED = Condition("pooled", {"threshold": 0.6}, Pooling((Site(0, 0.3, 1), Site(2, 0.15, 3))))


@pytest.fixture(scope="module")
def lslm(folder: Path) -> Lslm:
    return load(str(folder), "cpu")


def answers(lslm: Lslm, corpus: Path, out: Path, batch: int = 2, **options: Any) -> Finished[Answer]:
    work = Answering(lslm, [UNPOOLED, POOLED], longest=4)
    return run(lslm, open_data(corpus), Plan("test", "random", options, batch), out, work, scorable(lslm))


def test_every_recording_has_a_record_a_condition_or_a_problem(lslm: Lslm, corpus: Path, tmp_path: Path) -> None:
    finished = answers(lslm, corpus, tmp_path)
    records = [json.loads(line) for line in (tmp_path / "results.jsonl").read_text().splitlines()]
    assert [record for record in records if "problem" not in record] == finished.rows
    assert [record for record in records if "problem" in record] == finished.unusable
    of: dict[str, list[str]] = {}
    for record in records:
        of.setdefault(record["utterance"], []).append(record.get("condition", "problem"))
    assert list(of) == [utterance.id for utterance in open_data(corpus)]
    assert sorted(map(tuple, of.values())) == [("problem",)] * 2 + [("unpooled", "pooled")] * 5
    missing, empty = finished.unusable
    assert "missing.wav" in missing["problem"]
    assert "empty.wav" in empty["problem"]


def test_a_run_started_again_does_only_what_is_missing(
    lslm: Lslm, corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = answers(lslm, corpus, tmp_path)
    part = tmp_path / "parts" / "0.jsonl"
    lines = part.read_text().splitlines(keepends=True)
    part.write_text("".join(lines[:2]) + lines[2][:40])  # the machine went down while the third batch was written
    done = []
    own = Answering.__call__

    def counted(self: Answering, batch: Any) -> Any:
        done.append([utterance.id for utterance in batch.utterances])
        return own(self, batch)

    monkeypatch.setattr(Answering, "__call__", counted)
    assert answers(lslm, corpus, tmp_path) == first
    usable = [row["utterance"] for row in first.rows if row["condition"] == "unpooled"]
    assert [name for batch in done for name in batch] == usable[-2:]
    done.clear()
    about = (tmp_path / "provenance.json").read_bytes()
    assert answers(lslm, corpus, tmp_path) == first
    assert not done
    assert (tmp_path / "provenance.json").read_bytes() == about  # of the beginning


def test_a_folder_of_another_run_is_left_alone(lslm: Lslm, corpus: Path, tmp_path: Path) -> None:
    answers(lslm, corpus, tmp_path, seed=0)
    before = (tmp_path / "results.jsonl").read_bytes()
    with pytest.raises(InputError, match=r"other settings \(seed\)"):
        answers(lslm, corpus, tmp_path, seed=1)
    assert (tmp_path / "results.jsonl").read_bytes() == before


def test_answers_do_not_depend_on_the_batch(lslm: Lslm, corpus: Path, tmp_path: Path) -> None:
    alone, together = (answers(lslm, corpus, tmp_path / str(batch), batch) for batch in (1, 4))
    assert alone.rows == together.rows
    assert alone.unusable == together.unusable


def test_nothing_usable_is_an_error(lslm: Lslm, tmp_path: Path) -> None:
    (tmp_path / "manifest.jsonl").write_text('{"audio": "absent.wav", "text": "one"}\n')
    with pytest.raises(InputError, match=r"not one recording could be used.*absent\.wav"):
        answers(lslm, tmp_path / "manifest.jsonl", tmp_path / "out")


@pytest.mark.parametrize("text", ["...", "quite unknown words"])
def test_a_reference_that_cannot_be_scored_is_a_problem(lslm: Lslm, corpus: Path, tmp_path: Path, text: str) -> None:
    lines = [{"audio": str(corpus.parent / f"{index}.wav"), "text": text if index else "one"} for index in range(2)]
    (tmp_path / "manifest.jsonl").write_text("\n".join(map(json.dumps, lines)) + "\n")
    finished = answers(lslm, tmp_path / "manifest.jsonl", tmp_path / "out")
    assert len(finished.unusable) == 1
    assert len(finished.rows) == 2


def test_two_processes_give_the_results_of_one(folder: Path, corpus: Path, tmp_path: Path) -> None:
    command = ["eval", "--model", folder, "--data", corpus, "--batch", "2", "--longest", "4"]
    command += ["--baselines", "random-drop,bipartite-merge"]
    launch = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", "--master-port", "0"]
    launch += ["--rdzv-backend", "c10d", "--rdzv-endpoint", "localhost:0"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    for out, how in (("one", [sys.executable]), ("two", launch)):
        arguments = [*how, "-m", "affinity_pool.cli", *command, "--out", tmp_path / out]
        done = subprocess.run(list(map(str, arguments)), capture_output=True, text=True, env=environment, check=False)
        assert done.returncode == 0, done.stderr[-3000:]
    assert (tmp_path / "one" / "run.json").read_bytes() == (tmp_path / "two" / "run.json").read_bytes()
    one, two = ((tmp_path / out / "results.jsonl").read_bytes() for out in ("one", "two"))
    assert one == two
    assert len(list((tmp_path / "two" / "parts").iterdir())) == 2


@pytest.mark.parametrize("device", ["cpu", "cpu:0"])
def test_a_checkpoint_in_bfloat16_runs_in_float32_on_any_name_of_the_cpu(
    folder: Path, tmp_path: Path, device: str
) -> None:
    """Launchers say cpu:0; a run of two processes would else be in another dtype than a run of one."""
    shutil.copytree(folder, tmp_path / "half")
    load(str(folder), "cpu").model.bfloat16().save_pretrained(tmp_path / "half")
    assert json.loads((tmp_path / "half" / "config.json").read_text())["dtype"] == "bfloat16"
    assert load(str(tmp_path / "half"), device).model.dtype == torch.float32
    assert load(str(tmp_path / "half"), device, "bfloat16").model.dtype == torch.bfloat16
