"""The cost of a prefill at a planned retention, all the way on a tiny model: nothing here depends on a clock."""

from __future__ import annotations

import json
from typing import Any

import pytest
import torch

from affinity_pool import pool
from affinity_pool.bench.table import render
from affinity_pool.models import Site
from affinity_pool.study import cost
from affinity_pool.study.forced import FINAL_RETENTION, INPUT_RETENTION, Forced, speech

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    out = tmp_path_factory.mktemp("cost") / "results" / "ttft.json"
    found = cost.run(cost.tiny(), [(1.0, 1), (5.0, 3)], 6, CPU, torch.float32, out, echo=lambda _: None)
    assert json.loads(out.read_text()) == json.loads(json.dumps(found))
    return found


def test_keeps_the_papers_share_of_the_audio(results: dict[str, Any]) -> None:
    for record in results["results"]:
        at_input, final = record["audio_retention"]
        slack = 1 / record["tokens"][0]
        assert at_input == pytest.approx(INPUT_RETENTION, abs=2 * slack)
        assert final == pytest.approx(FINAL_RETENTION, abs=2 * slack)
        assert record["kv_bytes"][1] < record["kv_bytes"][0]
        assert record["ratio_ci95"][0] <= record["ratio"] <= record["ratio_ci95"][1]
        assert record["pooling_seconds"] > 0
        assert 0 < record["decoder_flops"] < 1


def test_kv_bytes_are_those_of_the_plan(results: dict[str, Any]) -> None:
    """A batch of one: three layers of four at the input's retention, the last at the final one; 2 heads of 16."""
    record = results["results"][0]
    before, after_input, after_deep = record["tokens"]
    per_token = 2 * 2 * 16 * 4
    assert record["kv_bytes"] == [4 * before * per_token, (3 * after_input + after_deep) * per_token]


def test_results_have_a_table(results: dict[str, Any]) -> None:
    table = render(results)
    assert "| 5 s | 3 | 161 → 134 → 54 |" in table
    assert "medians of up to 6 interleaved rounds" in table


def test_long_audio_is_several_clips() -> None:
    config = cost.qwen2_audio_7b()
    assert speech(config, 30, 1).clips[0] == ((750,),)
    assert speech(config, 45, 2).frames == (3000, 1500)
    assert speech(config, 45, 2).clips[0] == ((750, 375),) * 2


def test_a_batch_is_uneven_after_pooling_and_right_on_average() -> None:
    spoken = speech(cost.qwen2_audio_7b(), 60, 16)
    assert len(set(spoken.tokens(1))) > 8
    assert spoken.audio_tokens(1) / spoken.audio_tokens(0) == pytest.approx(INPUT_RETENTION, abs=1e-3)
    assert spoken.audio_tokens(2) / spoken.audio_tokens(0) == pytest.approx(FINAL_RETENTION, abs=1e-3)


@pytest.mark.parametrize("window", [1, 3])
def test_made_rows_pool_to_the_groups_planned(window: int) -> None:
    spoken = speech(cost.qwen2_audio_7b(), 40, 2)
    forced = Forced.at(spoken, 0, 256, torch.bfloat16, CPU)
    pooled = forced.alone(Site(0, 0.8, window))
    assert pooled.lengths.tolist() == spoken.tokens(1)
    row = forced.rows[1, forced.rows.shape[1] - spoken.tokens(0)[1] :]
    assert pool(row, mergeable=forced.audio[1, -len(row) :], window=window).counts.shape[0] == spoken.tokens(1)[1]


def test_rows_for_another_shape_are_refused() -> None:
    forced = Forced.at(speech(cost.tiny(), 1.0, 1), 0, 64, torch.float32, CPU)
    with pytest.raises(RuntimeError, match=r"rows were made for \[1, 57, 64\] torch.float32, got \[1, 56, 64\]"):
        forced(forced.rows[:, 1:])


def test_a_prefill_off_its_plan_is_not_timed(monkeypatch: pytest.MonkeyPatch) -> None:
    unmerged = Forced.at(speech(cost.tiny(), 1.0, 1), 0, 64, torch.float32, CPU)
    unmerged.rows.copy_(torch.randn(unmerged.rows.shape))
    monkeypatch.setattr(Forced, "at", lambda *_: unmerged)
    model = cost.random_model(cost.tiny(), CPU, torch.float32)
    with pytest.raises(RuntimeError, match=r"tokens after the sites are .* as planned"):
        cost.measure(model, 1.0, 1, 6)


def test_the_command_prints_a_table(capsys: pytest.CaptureFixture[str]) -> None:
    cost.main(["--tiny", "--seconds", "1", "--batch", "1", "--runs", "6"])
    assert "| audio | batch | tokens |" in capsys.readouterr().out


def test_the_large_model_is_qwen2_audio_7b() -> None:
    """8.4 billion parameters, counted without making one."""
    model = cost.random_model(cost.qwen2_audio_7b(), torch.device("meta"), torch.bfloat16)
    assert sum(p.numel() for p in model.parameters()) == pytest.approx(8.4e9, rel=0.01)
