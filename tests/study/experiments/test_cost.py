"""The cost of pooling, all the way on tiny models: counts, structure and refusals; nothing depends on a clock."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from commands import invoke

from affinity_pool import Site, pool
from affinity_pool.models import patch
from affinity_pool.models.settings import Pooling
from affinity_pool.study.data.audio import Audio
from affinity_pool.study.errors import InputError
from affinity_pool.study.experiments.cost import measure, parts
from affinity_pool.study.experiments.cost.architectures import config_of, mid, qwen2_audio_7b, random_model, tiny
from affinity_pool.study.experiments.cost.forced import FINAL_RETENTION, INPUT_RETENTION, Forced, speech
from affinity_pool.study.experiments.cost.memory import peak_bytes
from affinity_pool.study.experiments.cost.prompts import (
    Case,
    Prompt,
    Request,
    bucket_cases,
    forced_cases,
    idle,
    inputs_of,
    length_cases,
)
from affinity_pool.study.experiments.cost.run import method, run
from affinity_pool.study.experiments.cost.table import render
from affinity_pool.study.subject.lslm import Lslm, load
from affinity_pool.study.subject.subject import Subject

CPU = torch.device("cpu")
BRIEF = measure.Options(rounds=6, new_tokens=2, idle=True)


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    """For models this small: threads that wait for each other are most of the time where cores are shared."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def subject() -> Subject:
    return Subject(random_model(tiny(), CPU, torch.float32))


@pytest.fixture(scope="module")
def lslm(folder: Path) -> Lslm:
    return load(str(folder), "cpu")


@pytest.fixture(scope="module")
def written(subject: Subject, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("cost") / "out"
    cases = [*forced_cases(subject, [1.0], [1]), *forced_cases(subject, [5.0], [3])]
    run(subject, cases, BRIEF, method(subject, "tiny", BRIEF, None), {}, out, echo=lambda _: None)
    return out


@pytest.fixture(scope="module")
def summary(written: Path) -> dict[str, Any]:
    return json.loads((written / "summary.json").read_text())


def recordings(lslm: Lslm, *seconds: float) -> list[Request]:
    noise = np.random.default_rng(0)
    return [
        Request(Audio(noise.standard_normal(round(s * lslm.rate)).astype(np.float32), lslm.rate), "transcribe")
        for s in seconds
    ]


POOLING = Pooling((Site(0, 0.9, 1), Site(2, -1.0, 3)), "keep")


# Prompts that pool as planned.


def test_keeps_the_papers_share_of_the_audio(summary: dict[str, Any]) -> None:
    for record in summary["results"]:
        slack = 1 / record["tokens"][0]
        at_input, final = record["audio_retention"]
        assert at_input == pytest.approx(INPUT_RETENTION, abs=2 * slack)
        assert final == pytest.approx(FINAL_RETENTION, abs=2 * slack)


def test_long_audio_is_several_clips() -> None:
    config = qwen2_audio_7b()
    assert speech(config, 30, 1).clips[0] == ((750,),)
    assert speech(config, 45, 2).frames == (3000, 1500)
    assert speech(config, 45, 2).clips[0] == ((750, 375),) * 2


def test_a_batch_is_uneven_after_pooling_and_right_on_average() -> None:
    spoken = speech(qwen2_audio_7b(), 60, 16)
    assert len(set(spoken.tokens(1))) > 8
    assert spoken.audio_tokens(1) / spoken.audio_tokens(0) == pytest.approx(INPUT_RETENTION, abs=1e-3)
    assert spoken.audio_tokens(2) / spoken.audio_tokens(0) == pytest.approx(FINAL_RETENTION, abs=1e-3)


@pytest.mark.parametrize("window", [1, 3])
def test_made_rows_pool_to_the_groups_planned(window: int) -> None:
    spoken = speech(qwen2_audio_7b(), 40, 2)
    forced = Forced.at(Site(0, window=window), spoken, 0, 256, torch.bfloat16, CPU)
    pooled = forced(forced.rows, forced.lengths, forced.audio)
    assert pooled.lengths.tolist() == spoken.tokens(1)
    row = forced.rows[1, forced.rows.shape[1] - spoken.tokens(0)[1] :]
    assert pool(row, mergeable=forced.audio[1, -len(row) :], window=window).counts.shape[0] == spoken.tokens(1)[1]


def test_rows_for_another_shape_are_refused() -> None:
    forced = Forced.at(Site(0), speech(tiny(), 1.0, 1), 0, 64, torch.float32, CPU)
    with pytest.raises(RuntimeError, match=r"rows were made for \[1, 57, 64\] torch.float32, got \[1, 56, 64\]"):
        forced(forced.rows[:, 1:], forced.lengths, forced.audio[:, 1:])


def test_a_prefill_off_its_plan_is_not_timed(subject: Subject, monkeypatch: pytest.MonkeyPatch) -> None:
    unmerged = Forced.at(Site(0), speech(tiny(), 1.0, 1), 0, 64, torch.float32, CPU)
    unmerged.rows.copy_(torch.randn(unmerged.rows.shape))
    monkeypatch.setattr(Forced, "at", lambda *_: unmerged)
    with pytest.raises(RuntimeError, match=r"tokens after the sites are .* as planned"):
        measure.measure(subject, next(forced_cases(subject, [1.0], [1])), BRIEF)


def test_where_nothing_is_to_merge_nothing_does(subject: Subject) -> None:
    prompt = next(forced_cases(subject, [1.0], [1])).prompts()[0]
    with measure.patched(subject, idle(prompt.pooling)) as handle:
        measure.first_token(subject, prompt)
    assert [site.layer for site in handle.stats.sites] == [site.layer for site in prompt.pooling.sites]
    assert handle.stats.kv_bytes_saved == 0


# Architectures.


def test_the_large_model_is_qwen2_audio_7b() -> None:
    """8.4 billion parameters, counted without making one."""
    large = random_model(qwen2_audio_7b(), torch.device("meta"), torch.bfloat16)
    assert sum(p.numel() for p in large.parameters()) == pytest.approx(8.4e9, rel=0.01)


def test_the_middle_model_has_its_proportions() -> None:
    """170 million parameters; the encoder's share of a prefill of 30 s, 15 %, lies near the large one's 18 %."""
    from affinity_pool.study.efficiency.flops import prefill_flops

    assert sum(p.numel() for p in random_model(mid(), torch.device("meta"), torch.float32).parameters()) == (
        pytest.approx(1.7e8, rel=0.02)
    )
    share = {}
    for name, config in (("mid", mid()), ("large", qwen2_audio_7b())):
        flops = prefill_flops(config, [782] * config.text_config.num_hidden_layers, mel_frames=3000)
        share[name] = flops.encoder / flops.total
    assert share["large"] == pytest.approx(0.18, abs=0.01)
    assert share["mid"] == pytest.approx(0.15, abs=0.01)


def test_a_config_may_be_a_folder_or_a_file(folder: Path, tmp_path: Path) -> None:
    for path in (folder, folder / "config.json"):
        assert config_of(str(path)).text_config.hidden_size == 48
    with pytest.raises(
        InputError, match="is neither qwen2-audio-7b, mid, tiny, whisper-large-v3-turbo nor a config that can be read"
    ):
        config_of(str(tmp_path))
    (tmp_path / "config.json").write_text('{"model_type": "bert"}')
    with pytest.raises(InputError, match=r"is a bert model: .* for the architectures of Qwen2-Audio and Whisper only"):
        config_of(str(tmp_path))


# Recordings.


def test_buckets_hold_the_recordings_of_their_lengths(lslm: Lslm) -> None:
    heard = recordings(lslm, 0.5, 1.0, 1.5, 0.7, 3.0, 0.9)
    cases = list(bucket_cases(lslm, heard, POOLING, [1.0, 2.0, 2.5], most=2))
    assert [case.name for case in cases] == ["0-1 s", "1-2 s", "2.5 s and longer"]  # none from 2 to 2.5
    assert [[prompt.seconds for prompt in case.prompts()] for case in cases] == [[0.5, 0.7], [1.0, 1.5], [3.0]]


def test_buckets_suit_a_model_that_hears_little(lslm: Lslm) -> None:
    """It hears 2 s: fifths of them."""
    names = [case.name for case in bucket_cases(lslm, recordings(lslm, 0.3, 0.5, 2.0), POOLING, None, 8)]
    assert names == ["0-0.4 s", "0.4-0.8 s", "2 s and longer"]


def test_a_length_is_reached_by_repeating_recordings(lslm: Lslm) -> None:
    case = next(length_cases(lslm, recordings(lslm, 0.5, 0.4), POOLING, [1.6]))
    (prompt,) = case.prompts()
    assert prompt.seconds == pytest.approx(1.6)
    assert int(lslm.audio_positions(prompt.inputs).sum()) == 40  # 25 a second


def test_what_a_model_does_not_hear_at_once_is_several_clips(lslm: Lslm) -> None:
    """And a rest of a twentieth of a second, no whole token's worth of speech, is dropped."""
    (long,) = recordings(lslm, 5.05)
    inputs = inputs_of(lslm, long.audio, "transcribe")
    assert inputs["input_features"].shape[0] == 3
    assert inputs_of(lslm, long.audio.first(4.05), "transcribe")["input_features"].shape[0] == 2
    assert int(lslm.audio_positions(inputs).sum()) == pytest.approx(5.05 * 25, abs=3)
    with patch(lslm.model, POOLING.sites) as handle:
        lslm.generate(inputs, longest=1)
    assert handle.stats.sites[1].audio_after == [3]  # one group for each clip


# Measuring.


def test_kv_bytes_are_those_of_the_plan(summary: dict[str, Any]) -> None:
    """A batch of one: three layers of four at the input's retention, the last at the final one; 2 heads of 16."""
    record = summary["results"][0]
    before, after_input, after_deep = record["tokens"]
    per_token = 2 * 2 * 16 * 4
    assert record["kv_bytes"] == [4 * before * per_token, (3 * after_input + after_deep) * per_token]


def test_peak_memory_is_every_tensor_at_its_time() -> None:
    def work() -> None:
        first = torch.empty(1000)
        second = torch.empty(2000)
        del first
        torch.empty(1500)
        del second
        torch.empty(100)

    assert peak_bytes(work, CPU) == 4 * (2000 + 1500)
    assert peak_bytes(work, torch.device("meta")) is None


def test_pooling_takes_less_memory_and_always_the_same(subject: Subject, summary: dict[str, Any]) -> None:
    prompt = next(forced_cases(subject, [5.0], [1])).prompts()[0]
    peaks = {measure._memory(subject, prompt, way) for way in [None] * 2}
    pooled = {measure._memory(subject, prompt, way) for way in [prompt.pooling] * 2}
    assert len(peaks) == len(pooled) == 1
    assert pooled.pop() < peaks.pop()
    for record in summary["results"]:
        assert record["dynamic_bytes"][1] < record["dynamic_bytes"][0]


def test_decoding_goes_on_past_the_end_token(subject: Subject, lslm: Lslm) -> None:
    """So that all conditions do the same work."""
    prompt = length_prompt(lslm)
    for end in range(lslm.config.text_config.vocab_size):  # whatever it says, it is an end token
        lslm.model.generation_config.eos_token_id = [end]
        assert measure.generate(lslm, prompt, 3).shape == (1, 3)


def length_prompt(lslm: Lslm) -> Prompt:
    return next(length_cases(lslm, recordings(lslm, 1.0), POOLING, [1.0])).prompts()[0]


def test_the_parts_of_a_prefill_add_up_to_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """By construction: each lasts until the next begins. On a clock that tells 1, 2, 4, ... seconds."""
    ticks = iter(2.0**n for n in range(10))
    monkeypatch.setattr(parts.time, "perf_counter", lambda: next(ticks))
    line = parts.Timeline(CPU)
    for part in ("rest", "encoder", "rest", "head", "end"):
        line.begin(part)
    found = line.seconds()
    assert found == {"rest": 1 + 4, "encoder": 2, "head": 8}
    assert sum(found.values()) == 16 - 1


def test_parts_come_in_the_order_of_a_prefill(subject: Subject, monkeypatch: pytest.MonkeyPatch) -> None:
    begun: list[str] = []
    monkeypatch.setattr(parts.Timeline, "begin", lambda self, part: begun.append(part))
    monkeypatch.setattr(parts.Timeline, "seconds", lambda self: {})
    prompt = next(forced_cases(subject, [1.0], [1])).prompts()[0]
    hooks = count_hooks(subject.model)

    def marked(pooling: Pooling | None) -> list[str]:
        begun.clear()
        with measure.patched(subject, pooling):
            parts.timed_parts(subject, lambda: measure.first_token(subject, prompt), [0, 3], pooling is not None)
        return list(begun)

    layers = ["layers 0-2", "layer 3", "head", "end"]
    assert marked(None) == ["rest", "encoder", "rest", *layers]
    reduce = Site.reduce
    monkeypatch.setattr(Site, "reduce", lambda *args, **more: (begun.append("reduced"), reduce(*args, **more))[1])
    first, deep = ["pooling, input", "reduced", "layers 0-2"], ["pooling, layer 3", "reduced", "layer 3"]
    found = [name for name, _ in groupby(marked(prompt.pooling))]  # a forced site asks the op's own too
    assert found == ["rest", "encoder", "rest", *first, *deep, "head", "end"]
    assert count_hooks(subject.model) == hooks


def count_hooks(model: Any) -> int:
    return sum(len(module._forward_pre_hooks) + len(module._forward_hooks) for module in model.modules())


def test_prompts_of_a_case_are_averaged(lslm: Lslm) -> None:
    """Counts of both prompts together are the mean of their own."""
    heard = recordings(lslm, 0.5, 1.5)
    both, *alone = (
        measure.measure(lslm, next(bucket_cases(lslm, chosen, POOLING, [2.0], 2)), replace(BRIEF, idle=False))
        for chosen in (heard, heard[:1], heard[1:])
    )
    assert both["prompts"] == 2
    assert both["idle"] is None
    for figure in ("kv_bytes", "dynamic_bytes"):
        assert both[figure] == [sum(pair) // 2 for pair in zip(*(one[figure] for one in alone), strict=True)]
    decoder = [one["flops"]["decoder"]["pooled"] for one in alone]
    assert both["flops"]["decoder"]["pooled"] == pytest.approx(sum(decoder) / 2)
    for way in ("unpooled", "pooled"):
        assert len(both["rounds"]["prefill"][way]) == 6


# The run.


def test_summary_and_lines_say_the_same(written: Path, summary: dict[str, Any]) -> None:
    lines = [json.loads(line) for line in (written / "results.jsonl").read_text().splitlines()]
    assert [line["name"] for line in lines] == ["1 s", "5 s, batch 3"]
    for line, record in zip(lines, summary["results"], strict=True):
        times = line.pop("rounds")
        assert line == record
        assert {len(seconds) for part in times.values() for seconds in part.values()} == {6}
        low, high = record["ratio_ci95"]
        assert low <= record["ratio"] <= high
        assert record["pooling_seconds"] > 0
        assert 0 < record["flops"]["ratio"] < 1


def test_results_have_a_table(summary: dict[str, Any]) -> None:
    table = render(summary)
    assert "| 5 s, batch 3 | 161 → 134 → 54 |" in table
    assert "where nothing merges" in table
    assert "medians of up to 6 interleaved rounds" in table


def test_a_run_goes_on_from_what_is_there(subject: Subject, written: Path, summary: dict[str, Any]) -> None:
    def never() -> list[Prompt]:
        raise AssertionError("this case is done")

    lines = (written / "results.jsonl").read_text()
    again = [Case("1 s", 1, never), Case("5 s, batch 3", 3, never)]
    found = run(subject, again, BRIEF, method(subject, "tiny", BRIEF, None), {}, written, echo=lambda _: None)
    assert found["results"] == summary["results"]
    assert (written / "results.jsonl").read_text() == lines
    with pytest.raises(InputError, match=r"holds a run with other settings \(rounds\)"):
        run(subject, again, BRIEF, method(subject, "tiny", replace(BRIEF, rounds=7), None), {}, written)


def test_nothing_to_measure_is_said(subject: Subject, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no recording has a length in any of the buckets"):
        run(subject, [], BRIEF, {}, {}, tmp_path)


# The command.


def cost(*arguments: object) -> tuple[int, str]:
    return invoke("cost", "--rounds", 6, "--new-tokens", 2, "--device", "cpu", *arguments)


def test_the_command_measures_recordings(folder: Path, clips: Path, tmp_path: Path) -> None:
    code, output = cost(
        "--model", folder, "--data", clips / "manifest.jsonl", "--buckets", "1.5", "--per-bucket", 1, "--out", tmp_path
    )
    assert code == 0, output
    assert "0-1.5 s: " in output
    assert "1.5 s and longer: " in output
    assert "| audio | tokens | TTFT | pooled |" in output
    summary = json.loads((tmp_path / "summary.json").read_text())
    assert [site["layer"] for site in summary["method"]["sites"]] == [0, 2]  # of the folder's affinity_pool.json
    page = (tmp_path / "index.html").read_text()
    assert "Where the time goes" in page
    assert "pooling, layer 2" in page


def test_the_command_measures_shares_too(folder: Path, clips: Path, tmp_path: Path) -> None:
    code, output = cost(
        "--model", folder, "--data", clips / "manifest.jsonl", "--lengths", 1.5, "--out", tmp_path, "--idle",
        "--sites", "aggressive-counted", "--attention", "proportional",
    )  # fmt: skip
    assert code == 0, output
    summary = json.loads((tmp_path / "summary.json").read_text())
    assert summary["method"]["attention"] == "proportional"
    assert "Attention is proportional" in (tmp_path / "index.html").read_text()
    assert summary["method"]["sites"] == [{"layer": 0, "keep": 0.7864}, {"layer": 3, "keep": 0.1896}]
    assert "layer 0: 0.7864 is kept; layer 3: 0.1896 is kept" in (tmp_path / "index.html").read_text()
    before, middle, after = summary["results"][0]["tokens"]
    assert before > middle > after
    assert summary["results"][0]["idle"] is not None


def test_shares_merge_nothing_when_idle() -> None:
    pooling = Pooling((Site(0, keep=0.5), Site(2, 0.8, 1)), "compact", "proportional")
    assert idle(pooling) == replace(pooling, sites=(Site(0, keep=1.0), Site(2, 2.0, 1)))


def test_the_command_measures_a_config(tmp_path: Path) -> None:
    code, output = cost("--random-weights", "tiny", "--lengths", 1, "--batch", "1,2", "--idle", "--out", tmp_path)
    assert code == 0, output
    assert "1 s, batch 2: " in output
    assert "where nothing merges" in output
    assert json.loads((tmp_path / "summary.json").read_text())["method"]["weights"] == "random"


def test_made_prompts_are_weighed_where_that_is_asked_for(subject: Subject) -> None:
    (prompt,) = next(forced_cases(subject, [1.0], [1], "proportional")).prompts()
    assert prompt.pooling.attention == "proportional"
    assert method(subject, "tiny", BRIEF, None, "proportional")["attention"] == "proportional"
    assert method(subject, "tiny", BRIEF, None)["attention"] == "plain"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--random-weights", "{clips}"], "is neither qwen2-audio-7b, mid, tiny"),
        (["--random-weights", "tiny", "--data", "x"], "--data does not go with --random-weights"),
        (["--random-weights", "tiny", "--dtype", "int8"], "auto, float32, bfloat16 or float16"),
        (["--random-weights", "tiny", "--lengths", "long"], "lengths must be floats"),
        (["--batch", "2"], "--batch needs --random-weights"),
        (["--lengths", "1", "--buckets", "1"], "in place of --buckets"),
        (["--model", "{folder}", "--sites", "moderate", "--data", "{clips}/manifest.jsonl"], "neither a preset"),
    ],
)
def test_bad_input_ends_in_a_sentence(
    folder: Path, clips: Path, tmp_path: Path, arguments: list[str], message: str
) -> None:
    filled = [argument.format(folder=folder, clips=clips) for argument in arguments]
    code, output = cost("--out", tmp_path, *filled)
    assert code == 2
    assert message in " ".join(output.replace("│", " ").split())
