"""Every experiment as its command, from end to end on a random model; what it writes is what its parts measured."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from commands import invoke

from affinity_pool import patch
from affinity_pool.models import Site
from affinity_pool.models.settings import Pooling
from affinity_pool.provenance import versions
from affinity_pool.study.data import open_data
from affinity_pool.study.errors import InputError
from affinity_pool.study.experiments.calibrate import run as calibrate
from affinity_pool.study.experiments.dynamics.page import turns
from affinity_pool.study.experiments.evaluate import page as evaluate_page
from affinity_pool.study.experiments.evaluate import run as evaluate
from affinity_pool.study.experiments.oracle import run as oracle
from affinity_pool.study.experiments.probe import run as probe
from affinity_pool.study.reductions import planned, quota, uniform_merge_plan
from affinity_pool.study.runs.batches import Batch, Plan, run
from affinity_pool.study.runs.conditions import UNPOOLED, Answering, scorable
from affinity_pool.study.sites import NamedSites, parse_sites
from affinity_pool.study.subject.lslm import Lslm, load


@pytest.fixture(scope="module")
def lslm(folder: Path) -> Lslm:
    return load(str(folder), "cpu")


def command(name: str, folder: Path, corpus: Path, out: Path, *options: object) -> tuple[int, str]:
    arguments = [name, "--model", folder, "--data", corpus, "--out", out, "--device", "cpu", "--batch", 3, *options]
    return invoke(*arguments)


EXPERIMENTS = {
    "eval": ["--longest", 4, "--sites", "0:0.3:1", "--sites", "0:0.3:1,2:0.15:3", "--sites", "0:keep=0.6,2:keep=0.4"],
    "oracle": ["--longest", 4, "--budgets", "2,50%", "--layers", "0,2-3"],
    "probe": ["--longest", 4, "--thresholds", "0.7,0.5", "--attention", "proportional"],
    "dynamics": [],
    "calibrate": ["--longest", 4, "--flops", "0.9", "--layers", "0,2,3"],
}


BRIEF = {
    "eval": ["--longest", 2, "--sites", "0:0.3:1", "--baselines", "none"],
    "oracle": ["--longest", 2, "--budgets", "2", "--layers", "0", "--operators", "uniform-drop"],
    "probe": ["--longest", 2, "--thresholds", "0.7", "--windows", "1", "--layers", "0"],
    "calibrate": ["--longest", 2, "--flops", "0.9", "--layers", "0"],
}


@pytest.mark.parametrize("name", BRIEF)
def test_texts_are_compared_by_the_normaliser_that_is_asked_for(
    name: str, folder: Path, corpus: Path, tmp_path: Path
) -> None:
    code, output = command(name, folder, corpus, tmp_path, *BRIEF[name], "--normaliser", "whisper")
    assert code == 0, output
    summary = json.loads((tmp_path / "summary.json").read_text())
    assert summary["config"]["normaliser"] == "whisper"
    for metric in summary.get("metrics", {}).get("transcribe", ()):
        assert "normaliser:whisper-english" in metric["signature"]
    page = (tmp_path / "index.html").read_text()
    assert "normaliser" in page
    code, output = command(name, folder, corpus, tmp_path, *BRIEF[name])
    assert code == 2
    assert "holds a run with other settings (normaliser)" in output
    code, output = command(name, folder, corpus, tmp_path, *BRIEF[name], "--normaliser", "openai")
    assert code == 2
    assert "'openai' is not one of" in output


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_an_experiment_writes_results_summary_and_page(name: str, folder: Path, corpus: Path, tmp_path: Path) -> None:
    code, output = command(name, folder, corpus, tmp_path, *EXPERIMENTS[name])
    assert code == 0, output
    assert "Left out: missing: no such recording" in output
    summary = json.loads((tmp_path / "summary.json").read_text())
    assert summary["command"] == name
    assert sorted(entry["utterance"] for entry in summary["unusable"]) == ["empty", "missing"]
    assert summary["provenance"]["versions"] == versions()
    page = (tmp_path / "index.html").read_text()
    assert "2 of " in page
    assert "could not be used" in page
    assert "What it ran on" in page
    assert ("Attention is proportional" in page) == ("--attention" in EXPERIMENTS[name])
    assert "http://" not in page.replace("http://www.w3.org", "")
    assert "https://" not in page
    assert "data:image/svg+xml" in page
    before = {path: path.read_bytes() for path in tmp_path.rglob("results.jsonl")}
    assert command(name, folder, corpus, tmp_path, *EXPERIMENTS[name])[0] == 0
    assert {path: path.read_bytes() for path in tmp_path.rglob("results.jsonl")} == before
    code, output = command(name, folder, corpus, tmp_path, *EXPERIMENTS[name], "--limit", 3)
    assert code == 2
    assert "holds a run with other settings (recordings)" in output


def test_the_oracle_keeps_its_budget_at_every_layer(lslm: Lslm, corpus: Path, tmp_path: Path) -> None:
    budgets = [oracle.UnitBudget.parse("2"), oracle.UnitBudget.parse("50%")]
    conditions = oracle.conditions([0, 3], list(oracle.OPERATORS), budgets, seed=0)
    assert len(conditions) == 1 + 2 * 3 * 2
    work = Answering(lslm, conditions, longest=2)
    units = oracle.unit_spans("words", None, lslm)
    records = run(lslm, open_data(corpus), Plan("oracle", "m", {}, 3), tmp_path, work, scorable(lslm, units)).rows
    utterances = {utterance.id: utterance for utterance in open_data(corpus)}
    checked = 0
    for record in records:
        if record.get("facts", {}).get("operator") is None:
            continue
        utterance = utterances[record["utterance"]]
        cut = units(utterance, utterance.load(lslm.rate), record["audio_tokens"])
        assert cut[0].start == 0
        assert cut[-1].end == record["audio_tokens"]
        if record["facts"]["budget"].startswith("2 "):
            assert record["kept"] == [sum(min(2, span.end - span.start) for span in cut)]
        else:
            assert record["kept"] == [max(round(record["audio_tokens"] / 2), len(cut))]
        assert record["layers"] == [record["facts"]["layer"]]
        checked += 1
    assert checked == 12 * 5


def test_an_oracle_of_an_operator_that_is_not_there_is_refused() -> None:
    with pytest.raises(
        InputError, match="operator must be one of random-drop, uniform-drop, uniform-merge, got 'drop'"
    ):
        oracle.conditions([0], ["drop"], [oracle.UnitBudget.parse("2")], seed=0)


def test_an_oracles_means_are_those_of_its_units(lslm: Lslm, corpus: Path) -> None:
    """Uniform Merge to one token a unit: what enters the next layer are the means of what entered this one."""
    utterance = open_data(corpus)[0]
    inputs = lslm.inputs(utterance.load(lslm.rate), "transcribe")
    tokens = int(lslm.audio_positions(inputs).sum())
    units = oracle.unit_spans("0.2", None, lslm)(utterance, utterance.load(lslm.rate), tokens)
    seen: list[torch.Tensor] = []

    def reduce(x: torch.Tensor, lengths: torch.Tensor | None, mergeable: torch.Tensor) -> Any:
        pooled = planned(lambda row, n: uniform_merge_plan(units, quota(units, tokens=1)))(x, lengths, mergeable)
        audio = mergeable[0]
        first = int(audio.nonzero()[0]) + x.shape[1] - int(pooled.lengths[0])  # what is left ends at the right
        for place, span in enumerate(units):
            mean = x[0, audio][span.start : span.end].double().mean(0)
            seen.append((pooled.values[0, first + place].double() - mean).abs().max())
        return pooled

    with patch(lslm.model, [Site(1, reduction=reduce)]):
        lslm.generate(inputs, longest=1)
    assert len(seen) == len(units) > 2
    assert max(seen) < 1e-6


def test_baselines_get_affinity_poolings_own_counts(lslm: Lslm, corpus: Path, tmp_path: Path) -> None:
    choices = [parse_sites("0:0.3:1", lslm.depth), parse_sites("0:0.3:1,2:0.15:3", lslm.depth)]
    conditions = evaluate.conditions(choices, evaluate.BASELINES, seed=0)
    names = [condition.name for condition in conditions]
    assert names[0] == UNPOOLED.name
    assert sum("speed-up" in name for name in names) == 1  # it has no deeper site
    work = Answering(lslm, conditions, longest=2)
    records = run(lslm, open_data(corpus), Plan("eval", "m", {}, 3), tmp_path, work, scorable(lslm)).rows
    pooled = {
        (record["utterance"], record["facts"]["sites"]): record["kept"]
        for record in records
        if record.get("facts", {}).get("method") == "affinity"
    }
    whole = {record["utterance"]: record["audio_tokens"] for record in records if "problem" not in record}
    assert all(kept[-1] < whole[name] for (name, sites), kept in pooled.items() if "," in sites)
    assert any(kept[0] < whole[name] for (name, _), kept in pooled.items())
    compared = 0
    for record in records:
        method = record.get("facts", {}).get("method")
        if method in evaluate.REDUCTIONS:
            assert record["kept"] == pooled[record["utterance"], record["facts"]["sites"]]
            compared += 1
        elif method == evaluate.SPEED_UP:
            (kept,), (wanted,) = record["kept"], pooled[record["utterance"], record["facts"]["sites"]]
            assert abs(kept - wanted) <= 1
            compared += 1
    assert compared == 5 * (6 + 5)


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("moderate", "neither a preset"),
        ("0:0.9", "sites '0:0.9'"),
        ("9:0.9:1", "layers 0 to 3"),
        ("0:x:1", "is not LAYER:THRESHOLD:WINDOW"),
        ("0:0.9:99", "window"),
    ],
)
def test_sites_that_cannot_be_are_refused(lslm: Lslm, spec: str, message: str) -> None:
    with pytest.raises(InputError, match=message):
        parse_sites(spec, lslm.depth)


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("oracle", ["--budgets", "150%"], "share up to 100"),
        ("oracle", ["--operators", "best-drop"], "operator must be one of"),
        ("oracle", ["--layers", "7"], "layers 0 to 3"),
        ("oracle", ["--units", "syllables"], "units must be 'words' or a number of seconds"),
        ("probe", ["--thresholds", "high"], "thresholds must be"),
        ("probe", ["--picture", "nobody"], "no recording 'nobody'"),
        ("eval", ["--baselines", "magic"], "baseline must be one of"),
        ("eval", ["--judge", "nowhere:judge"], "cannot import the judge"),
        ("eval", ["--task", "sing"], "no recording for the task 'sing', only for first, transcribe"),
        ("calibrate", [], "either flops or retention"),
        ("calibrate", ["--flops", "0.5", "--criterion", "taste"], "criterion must be one of"),
        ("dynamics", ["--alignments", "nowhere"], "nowhere"),
    ],
)
def test_bad_options_end_in_a_sentence(
    folder: Path, corpus: Path, tmp_path: Path, name: str, options: list[str], message: str
) -> None:
    code, output = command(name, folder, corpus, tmp_path / "out", *options)
    assert code == 2, output
    assert message in output.replace("│ ", "").replace(" │", "")
    assert "Traceback" not in output


@pytest.mark.parametrize(
    ("values", "ways"),
    [
        ([0, 1, 0.4, 0.9], ["up", "down", "up"]),
        ([0, 1, 2], ["up"]),
        ([0, 1, 0.99, 2], ["up"]),
        ([3, 1, 2], ["down", "up"]),
    ],
)
def test_a_curves_turns_leave_out_small_swings(values: list[float], ways: list[str]) -> None:
    assert [way for way, _, _ in turns(values)] == ways


def test_a_judge_looks_at_questions_alone(
    folder: Path, corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "referee.py").write_text(
        "def judge(question, reference, answer):\n    return question == 'first' and reference == 'one two'\n"
    )
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    code, output = command(
        "eval", folder, corpus, tmp_path / "out", "--judge", "referee:judge", "--baselines", "none", "--longest", 2
    )
    assert code == 0, output
    records = [json.loads(line) for line in (tmp_path / "out" / "results.jsonl").read_text().splitlines()]
    assert {record["task"] for record in records if "judged" in record} == {"first"}
    summary = json.loads((tmp_path / "out" / "summary.json").read_text())
    assert summary["metrics"]["first"][0]["name"] == "judge"
    assert summary["conditions"][1]["scores"]["first"]["judge"]["value"] == 1


def test_shares_stand_beside_the_thresholds_at_their_layers(folder: Path, corpus: Path, tmp_path: Path) -> None:
    choices = ["0:0.3:1", "2:0.2:1", "0:0.2:1", "0:keep=0.5", "0:0.1:1", "3:keep=0.5", "0:0.3:1,2:keep=0.5"]
    code, output = command(
        "eval", folder, corpus, tmp_path, "--longest", 2, "--baselines", "uniform-drop",
        *(part for choice in choices for part in ("--sites", choice)),
    )  # fmt: skip
    assert code == 0, output
    summary = json.loads((tmp_path / "summary.json").read_text())
    pooled = {c["sites"]: c for c in summary["conditions"][1:] if c["method"] in ("affinity", "shares")}
    assert {sites for sites, c in pooled.items() if c["method"] == "shares"} == {*choices[3:6:2], choices[6]}
    assert {sites: c["beside"] for sites, c in pooled.items() if "beside" in c} == {"0:keep=0.5": "0:0.2:1"}
    thresholds, shares = pooled["0:0.2:1"], pooled["0:keep=0.5"]
    for task, metrics in shares["against_affinity"].items():
        for metric, difference in metrics.items():
            own, other = (c["scores"][task][metric]["value"] for c in (shares, thresholds))
            assert difference["value"] == pytest.approx(own - other, abs=2e-6)
            assert len(difference["interval_95"]) == 2
    (site,) = parse_sites(thresholds["as_shares"], 4).pooling.sites
    assert site.keep == pytest.approx(thresholds["retention"][0], abs=0.02)
    assert "as_shares" not in shares
    page = (tmp_path / "index.html").read_text()
    assert "Thresholds and shares" in page
    assert "shares - thresholds, points" in page
    assert f"--sites {thresholds['as_shares']}" in output
    assert "against 0:0.2:1." in output


def test_proportional_attention_stands_beside_plain(folder: Path, corpus: Path, tmp_path: Path) -> None:
    choices = ["0:-0.3:1", "0:keep=0.3", "0:-0.3:1,2:-0.2:3"]
    arguments = [
        "eval", folder, corpus, tmp_path, "--longest", 2, "--baselines", "uniform-merge",
        *(part for choice in choices for part in ("--sites", choice)),
    ]  # fmt: skip
    code, output = command(*arguments, "--attention", "proportional,plain")
    assert code == 0, output
    summary = json.loads((tmp_path / "summary.json").read_text())
    assert summary["config"]["attention"] == ["plain", "proportional"] * 3
    of = {c["name"]: c for c in summary["conditions"][1:]}
    for choice in choices:
        plain, weighed = of[f"affinity at {choice}"], of[f"affinity at {choice}, proportional"]
        assert (plain["attention"], weighed["attention"]) == ("plain", "proportional")
        assert weighed["beside"] == plain["sites"] == choice
        assert plain["retention"][0] == weighed["retention"][0]  # known before anything is weighed
        for task, metrics in weighed["against_affinity"].items():
            for metric, difference in metrics.items():
                own, other = (c["scores"][task][metric]["value"] for c in (weighed, plain))
                assert difference["value"] == pytest.approx(own - other, abs=2e-6)
        merged = of[f"uniform-merge at {choice}, proportional"]
        assert merged["attention"] == "proportional"
        assert merged["retention"] == weighed["retention"]
    assert of["affinity at 0:keep=0.3"]["beside"] == "0:-0.3:1"
    page = (tmp_path / "index.html").read_text()
    for text in ("Plain and proportional attention", "proportional - plain, points", "shares - thresholds, points"):
        assert text in page
    assert "against 0:keep=0.3." in output
    code, output = command(*arguments, "--attention", "plain")
    assert code == 2
    assert "other settings (attention, conditions, positions)" in output


def test_a_condition_patches_with_all_that_it_says(lslm: Lslm, corpus: Path) -> None:
    for attention in ("plain", "proportional"):
        with lslm.patched(Pooling((Site(0, -0.3, 1),), "compact", attention)) as handle:
            assert (handle.sites, handle.positions, handle.attention) == ((Site(0, -0.3, 1),), "compact", attention)
    answers: list[torch.Tensor] = []
    utterance = open_data(corpus)[0]
    inputs = lslm.inputs(utterance.load(lslm.rate), "transcribe")
    for condition in evaluate.conditions(
        [parse_sites("0:-0.3:1", lslm.depth, attention) for attention in ("plain", "proportional")], [], seed=0
    )[1:]:
        assert isinstance(condition.pooling, Pooling)
        with lslm.patched(condition.pooling):
            lslm.generate(inputs, 1, answers.append)
    assert not torch.equal(*answers)


def test_a_baseline_has_the_positions_and_the_attention_of_what_it_is_compared_with(lslm: Lslm, corpus: Path) -> None:
    pooling = Pooling((Site(0, 0.3, 1), Site(2, 0.15, 3)), "compact", "proportional")
    _, pooled, merged = evaluate.conditions([NamedSites("those", pooling)], ["uniform-merge"], seed=0)
    utterances = open_data(corpus)[:1]
    audio = utterances[0].load(lslm.rate)
    batch = Batch(utterances, [audio], ["transcribe"], {}, [20], kept={pooled.name: [[12], [5]]})
    assert callable(merged.pooling)
    found = merged.pooling(batch)
    assert (found.positions, found.attention) == ("compact", "proportional")
    with lslm.patched(found) as handle:
        lslm.generate(lslm.inputs(audio, "transcribe"), 1)
    assert [site.audio_after for site in handle.stats.sites] == [[12], [5]]


def test_probe_and_calibrate_weigh_too() -> None:
    found = [
        *probe.conditions([0], [0.5], [1], "proportional"),
        *calibrate.conditions([[Site(0, 0.5, 1)]], "proportional"),
    ]
    pooled = [condition for condition in found if condition is not UNPOOLED]
    assert [condition.name for condition in pooled] == ["layer 0, threshold 0.5, window 1, proportional", "0:0.5:1"]
    for condition in pooled:
        assert condition.pooling == Pooling((Site(0, 0.5, 1),), attention="proportional")


def test_the_sites_file_says_the_attention_unless_the_command_does(folder: Path, corpus: Path, tmp_path: Path) -> None:
    file = tmp_path / "sites.json"
    file.write_text(json.dumps({"sites": [{"layer": 0, "keep": 0.5}], "attention": "proportional"}))
    for options, expected in (([], "proportional"), (["--attention", "plain"], "plain")):
        out = tmp_path / expected
        arguments = ["--longest", 1, "--limit", 3, "--baselines", "none", "--sites", file, *options]
        assert command("eval", folder, corpus, out, *arguments)[0] == 0
        summary = json.loads((out / "summary.json").read_text())
        assert summary["config"]["attention"] == [summary["conditions"][1]["attention"]] == [expected]
        named = "0:keep=0.5" if expected == "plain" else "0:keep=0.5, proportional"
        assert summary["conditions"][1]["sites"] == named


def test_curves_tell_attentions_apart() -> None:
    """Else a line would run to and fro between the two at each number of tokens."""

    def condition(method: str, attention: str | None, left: float, value: float) -> dict[str, Any]:
        scores = {"transcribe": {"wer": {"value": value, "interval_95": [None, None]}}}
        told = {} if attention is None else {"attention": attention}
        return {"method": method, "retention": [left], "scores": scores, **told}

    plain = [condition("affinity", None, 0.5, 0.2), condition("affinity", "plain", 0.8, 0.1)]
    others = [condition("affinity", "proportional", 0.5, 0.15), condition("uniform-drop", "plain", 0.5, 0.3)]
    head = {"name": "wer", "title": "WER", "better": "lower", "percent": True, "signature": ""}
    lines = evaluate_page.series_of([others[1], *plain, others[0]], "transcribe", head)
    assert [(line.name, list(line.ys)) for line in lines] == [
        ("Affinity Pooling", [0.2, 0.1]),
        ("Affinity Pooling, proportional", [0.15]),
        ("Uniform Drop", [0.3]),
    ]


def test_baselines_stand_behind_the_sites_they_are_compared_with(folder: Path, corpus: Path, tmp_path: Path) -> None:
    code, output = command(
        "eval", folder, corpus, tmp_path, "--longest", 2, "--sites", "0:0.3:1", "--sites", "0:0.2:1",
        "--baselines", "speed-up,uniform-drop",
    )  # fmt: skip
    assert code == 0, output
    summary = json.loads((tmp_path / "summary.json").read_text())
    methods = [(c.get("method"), c.get("sites")) for c in summary["conditions"]]
    assert methods == [
        (None, None),
        *((method, sites) for sites in ("0:0.3:1", "0:0.2:1") for method in ("affinity", "speed-up", "uniform-drop")),
    ]
    affinity, _, drop = summary["conditions"][1:4]
    difference = drop["against_affinity"]["transcribe"]["wer"]["value"]
    own = (condition["scores"]["transcribe"]["wer"]["value"] for condition in (drop, affinity))
    assert difference == pytest.approx(next(own) - next(own), abs=2e-6)
