"""Calibration: what is chosen is what was measured to be best within the budget."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from commands import invoke

from affinity_pool import patch
from affinity_pool.models import Site
from affinity_pool.study.data import open_data
from affinity_pool.study.errors import InputError
from affinity_pool.study.experiments.calibrate.run import (
    THRESHOLDS,
    CostBudget,
    Curves,
    Search,
    Trial,
    bearable,
    best,
    candidates,
    disagreement,
    promising,
    save,
)
from affinity_pool.study.runs.batches import Plan, run
from affinity_pool.study.runs.conditions import divergence
from affinity_pool.study.sites import format_sites
from affinity_pool.study.subject.lslm import Lslm, load


@pytest.fixture(scope="module")
def lslm(folder: Path) -> Lslm:
    return load(str(folder), "cpu")


def trial(layer: int, retention: float, flops: float, changed: float) -> Trial:
    return Trial((Site(layer, 0.5, 3),), retention, flops, changed)


def test_curves_tell_what_the_patch_then_leaves(lslm: Lslm, corpus: Path, tmp_path: Path) -> None:
    windows = (1, 3)
    found = run(lslm, open_data(corpus), Plan("curves", "random", {}, 3), tmp_path, Curves(lslm, windows))
    utterance = open_data(corpus)[0]
    record = next(record for record in found.rows if record["utterance"] == utterance.id)
    inputs = lslm.inputs(utterance.load(lslm.rate), "transcribe")
    for layer, window, threshold in ((0, 1, THRESHOLDS[3]), (2, 3, THRESHOLDS[8]), (3, 1, THRESHOLDS[20])):
        with patch(lslm.model, [Site(layer, threshold, window)]) as handle:
            lslm.generate(inputs, longest=1)
            left = handle.stats.sites[0].audio_after[0]
        at = windows.index(window) * len(THRESHOLDS) + THRESHOLDS.index(threshold)
        assert record["left"][layer][at] == left


def test_candidates_leave_known_shares_and_do_something() -> None:
    shares = np.concatenate([np.linspace(1, 0.02, len(THRESHOLDS)), np.ones(len(THRESHOLDS))])
    curves = [{"audio_tokens": 100, "left": [(100 * shares).tolist()] * 2}]
    sites = candidates(curves, (1, 3), (1,))
    assert {site.layer for site in sites} == {1}
    assert {site.window for site in sites} == {1}  # window 3 merges nothing in this made-up curve
    left = [shares[THRESHOLDS.index(site.threshold)] for site in sites]
    assert max(left) < 0.98
    assert min(abs(share - 0.5) for share in left) < 0.02


def test_the_best_within_the_budget_is_chosen_and_the_cheaper_of_equals() -> None:
    trials = [trial(0, 0.9, 0.9, 0.0), trial(1, 0.5, 0.79, 0.02), trial(2, 0.4, 0.7, 0.02), trial(3, 0.1, 0.5, 0.4)]
    assert best(trials, CostBudget(flops=0.8)) is trials[2]
    assert best(trials, CostBudget(retention=0.2)) is trials[3]
    assert best(trials, CostBudget(flops=0.4)) is None


def test_pairs_are_proposed_where_no_site_alone_meets_the_budget(lslm: Lslm) -> None:
    alone = [trial(0, 0.8, 0.82, 0.01), trial(0, 0.3, 0.35, 0.5), trial(3, 0.2, 0.85, 0.0), trial(1, 0.2, 0.4, 0.9)]
    proposed = promising(alone, CostBudget(flops=0.75), lslm.config, text_tokens=10, audio_tokens=200)
    assert [site.layer for site in proposed[0]] == [0, 3]
    assert proposed[0][0] == alone[0].sites[0]


def test_proposals_are_not_all_of_the_same_layers(lslm: Lslm) -> None:
    alone = [trial(3, share, 0.5, 0.001) for share in (0.5, 0.4, 0.3, 0.2)] + [trial(2, 0.3, 0.5, 0.2)]
    proposed = promising(alone, CostBudget(flops=0.75), lslm.config, text_tokens=10, audio_tokens=200)
    assert [site.layer for (site,) in proposed] == [3, 3, 2]


def test_what_a_layer_bears_is_its_smallest_harmless_share() -> None:
    alone = [trial(1, 0.8, 1, 0.0), trial(1, 0.5, 1, 0.02), trial(2, 0.3, 1, 0.004), trial(3, 0.3, 1, 0.5)]
    assert bearable(alone, 0.01) == {1: 0.8, 2: 0.3, 3: 1.0}


@pytest.mark.parametrize(
    ("unpooled", "pooled", "share"),
    [
        ("one two", "one two", 0),
        ("one two", "One, two.", 0),
        ("one two", "one", 4 / 7),
        ("", "", 0),
        ("a", "b" * 50, 1),
    ],
)
def test_disagreement_counts_changed_characters(unpooled: str, pooled: str, share: float) -> None:
    answers = ({"answer": text, "normaliser": "plain"} for text in (unpooled, pooled))
    assert disagreement(*answers, "answer") == pytest.approx(share)


def test_divergence_is_zero_for_itself_and_torchs_otherwise() -> None:
    logits, other = torch.randn(3, 20), torch.randn(3, 20)
    assert divergence(logits, logits) == [0.0] * 3
    expected = torch.nn.functional.kl_div(other.log_softmax(-1), logits.softmax(-1), reduction="none").sum(-1)
    assert divergence(logits, other) == pytest.approx(expected.tolist(), rel=1e-4)
    logits[:, 4] = -torch.inf  # a token that generation suppresses
    assert all(np.isfinite(divergence(logits, other)))


def test_the_file_it_writes_is_one_that_patch_loads(lslm: Lslm, tmp_path: Path) -> None:
    sites = (Site(0, 0.97, 1), Site(2, 0.8, 3))
    save(Trial(sites, 0.2, 0.7, 0.0), "proportional", tmp_path)
    with patch(lslm.model, tmp_path) as handle:
        assert handle.sites == sites
        assert (handle.positions, handle.attention) == ("keep", "proportional")


@pytest.mark.parametrize(
    ("options", "message"),
    [({}, "flops=None"), ({"flops": 0.5, "retention": 0.5}, "retention=0.5"), ({"flops": 1.5}, "between 0 and 1")],
)
def test_a_budget_is_one_share(options: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        CostBudget(**options)


@pytest.mark.parametrize("criterion", ["answer", "first-token"])
def test_a_search_measures_what_it_proposes(lslm: Lslm, corpus: Path, tmp_path: Path, criterion: Any) -> None:
    weighed: list[str] = []

    def step(name: str, options: dict[str, Any], work: Any) -> Any:
        weighed.extend(condition.pooling.attention for condition in getattr(work, "conditions", ())[1:])
        plan = Plan(name, "random", options, batch=3)
        return run(lslm, open_data(corpus), plan, tmp_path / criterion / name, work)

    found = Search(lslm, CostBudget(flops=0.9), criterion, (0, 2, 3), (3,), longest=3, attention="proportional").run(
        step
    )
    assert set(weighed) == {"proportional"}
    assert len({row["utterance"] for row in found.last.rows}) == 5
    assert len(found.last.unusable) == 2
    assert {trial.sites[0].layer for trial in found.alone} <= {0, 2, 3}
    assert found.chosen is not None
    assert found.chosen in found.together
    assert found.chosen.flops <= 0.9
    assert all(found.chosen.disagreement <= other.disagreement for other in found.together if other.flops <= 0.9)
    assert [thresholds for thresholds, _ in found.pairs] == [trial for trial in found.together if trial.flops <= 0.9]
    for thresholds, shares in found.pairs:
        assert [site.layer for site in shares.sites] == [site.layer for site in thresholds.sites]
        assert all(site.keep is not None for site in shares.sites)
        assert thresholds.retention - 0.02 < shares.retention <= thresholds.retention
    within = [shares for _, shares in found.pairs if shares.flops <= 0.9]
    assert found.chosen_shares in within
    assert all(found.chosen_shares.disagreement <= other.disagreement for other in within)


def test_without_anything_within_the_budget_no_shares_are_looked_for(lslm: Lslm, corpus: Path, tmp_path: Path) -> None:
    steps = []

    def step(name: str, options: dict[str, Any], work: Any) -> Any:
        steps.append(name)
        return run(lslm, open_data(corpus), Plan(name, "random", options, batch=3), tmp_path / name, work)

    found = Search(lslm, CostBudget(retention=1e-3), "first-token", (0,), (3,), longest=1).run(step)
    assert (found.chosen, found.chosen_shares, found.pairs) == (None, None, [])
    assert steps == ["curves", "alone", "together"]


@pytest.mark.parametrize("option", [[], ["--shares"]], ids=["thresholds", "shares"])
def test_a_budget_that_nothing_meets_is_told_on_a_page(
    folder: Path, corpus: Path, tmp_path: Path, option: list[str]
) -> None:
    code, output = invoke(
        "calibrate", "--model", folder, "--data", corpus, "--out", tmp_path, "--device", "cpu", "--batch", 3,
        "--longest", 1, "--retention", 0.001, "--layers", "0", *option,
    )  # fmt: skip
    assert code == 0
    assert "Nothing that was tried meets the budget" in output
    assert "Nothing that was tried meets the budget" in (tmp_path / "index.html").read_text()
    assert not (tmp_path / "affinity_pool.json").exists()


@pytest.mark.parametrize("option", [[], ["--shares"]], ids=["thresholds", "shares"])
def test_the_file_has_the_rule_that_was_asked_for(
    folder: Path, corpus: Path, tmp_path: Path, lslm: Lslm, option: list[str]
) -> None:
    code, output = invoke(
        "calibrate", "--model", folder, "--data", corpus, "--out", tmp_path, "--device", "cpu", "--batch", 3,
        "--longest", 2, "--flops", 0.9, "--layers", "0,2", "--attention", "proportional", *option,
    )  # fmt: skip
    assert code == 0, output
    summary = json.loads((tmp_path / "summary.json").read_text())
    assert summary["config"]["attention"] == "proportional"
    key, other = ("chosen_shares", "chosen") if option else ("chosen", "chosen_shares")
    with patch(lslm.model, tmp_path) as handle:
        assert format_sites(handle.sites) == summary[key]["sites"] != summary[other]["sites"]
        assert handle.attention == "proportional"
    page = (tmp_path / "index.html").read_text()
    assert "Thresholds and shares" in page
    for sites in (summary[key]["sites"], summary[other]["sites"]):
        assert sites in page
        assert sites in output
