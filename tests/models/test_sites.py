"""Sites, presets, ``affinity_pool.json``, reductions other than Affinity Pooling, and the statistics of a prefill."""

from __future__ import annotations

import copy
import json
import pickle
from dataclasses import replace

import pytest
import torch
from random_speech import DEEP, DUAL, INPUT, SPEECH, batch, prompt

from affinity_pool import PooledPadded, pool_padded, pool_padded_to
from affinity_pool.models import Site, patch
from affinity_pool.models.settings import preset


@pytest.mark.parametrize(("depth", "deep"), [(32, 29), (28, 25), (8, 7), (4, 3), (2, 1)])
def test_the_presets_are_the_papers_and_scale_with_depth(depth, deep):
    assert preset("aggressive", depth) == (Site(0, 0.8, 1), Site(deep, 0.7, 3))
    assert preset("conservative", depth) == (Site(0, 0.9, 1), Site(deep, 0.8, 3))


def test_a_decoder_of_one_layer_has_the_input_site_alone():
    assert preset("aggressive", 1) == (Site(0, 0.8, 1),)
    assert preset("aggressive-counted", 1) == (Site(0, keep=0.7864),)


def test_the_counted_preset_is_at_the_same_layers_and_leaves_what_the_paper_tells():
    for depth in (32, 28, 8, 2):
        at_input, deep = preset("aggressive-counted", depth)
        assert [at_input.layer, deep.layer] == [site.layer for site in preset("aggressive", depth)]
        assert at_input.keep == 0.7864
        assert round(at_input.keep * deep.keep, 4) == 0.1491


def test_aggressive_is_the_default(model):
    with patch(model) as handle:
        assert handle.sites == (Site(0, 0.8, 1), Site(3, 0.7, 3))
        assert handle.positions == "keep"


def test_sites_may_come_in_any_order(model):
    with patch(model, [DEEP, INPUT]) as handle:
        assert handle.sites == (INPUT, DEEP)


def test_a_checkpoint_folder_carries_its_sites_and_positions(model, tmp_path):
    sites = [{"layer": 2, "threshold": 0.6, "window": 3}, {"layer": 0, "threshold": 0.7, "window": 1}]
    file = tmp_path / "affinity_pool.json"
    file.write_text(json.dumps({"sites": sites, "positions": "compact"}))
    for path in (tmp_path, file, str(tmp_path)):
        with patch(model, path) as handle:
            assert handle.sites == (INPUT, DEEP)
            assert handle.positions == "compact"
    with patch(model, file, positions="keep") as handle:
        assert handle.positions == "keep"


def test_a_file_may_have_shares_beside_thresholds(model, tmp_path):
    file = tmp_path / "affinity_pool.json"
    file.write_text('{"sites": [{"layer": 2, "keep": 1}, {"layer": 0, "threshold": 0.7, "window": 1}]}')
    with patch(model, file) as handle:
        assert handle.sites == (INPUT, Site(2, keep=1.0))
        assert type(handle.sites[1].keep) is float


@pytest.mark.parametrize(
    "content",
    [
        {"positions": "keep"},
        {"sites": [{"layer": 0, "threshold": 0.9}]},
        {"sites": [{"layer": 0, "threshold": 0.9, "window": 40}]},
        {"sites": [{"layer": 0, "keep": 0}]},
        {"sites": [{"layer": 0, "keep": 2}]},
        {"sites": [{"layer": 0, "keep": True}]},
        {"sites": [{"layer": 0, "keep": None}]},
        {"sites": [{"layer": 0, "keep": 0.5, "window": 1}]},
        {"sites": [{"layer": 0, "threshold": None, "window": 1}]},
        {"sites": [], "postions": "keep"},
        [1, 2],
    ],
    ids=[
        "no-sites",
        "no-window",
        "wide-window",
        "keeps-none",
        "keeps-two",
        "keeps-true",
        "keeps-null",
        "two-rules",
        "no-threshold",
        "typo",
        "list",
    ],
)
def test_a_file_that_is_wrong_is_named_with_what_is_expected(model, tmp_path, content):
    file = tmp_path / "affinity_pool.json"
    file.write_text(json.dumps(content))
    with pytest.raises(ValueError, match=r"affinity_pool\.json: .*expected"):
        patch(model, file)


@pytest.mark.parametrize(
    ("content", "key"),
    [
        ('{"sites": [{"layer": 0, "keep": 0.5, "keep": 0.9}]}', "keep"),
        ('{"sites": [{"layer": 0, "keep": 0.5}], "sites": [{"layer": 0, "keep": 0.9}]}', "sites"),
    ],
)
def test_a_key_that_stands_twice_is_not_decided_by_the_last(model, tmp_path, content, key):
    (tmp_path / "affinity_pool.json").write_text(content)
    with pytest.raises(ValueError, match=f"'{key}' stands there more than once"):
        patch(model, tmp_path)


@pytest.mark.parametrize(
    ("arguments", "error"),
    [
        ((-1,), ValueError),
        ((1.0,), TypeError),
        ((0, float("nan")), ValueError),
        ((0, 0.8, 33), ValueError),
        ((0, 0.8, 3, 0.5), TypeError),
    ],
)
def test_a_site_checks_its_numbers(arguments, error):
    with pytest.raises(error):
        Site(*arguments)


@pytest.mark.parametrize(
    ("arguments", "error", "match"),
    [
        ({"keep": 0.0}, ValueError, r"keep must be a share of rows in \(0, 1\], got 0.0"),
        ({"keep": 1.01}, ValueError, r"keep must be .*got 1.01"),
        ({"keep": float("nan")}, ValueError, "keep must be .*got nan"),
        ({"keep": 2}, TypeError, "keep must be a float, a share .*got int 2"),
        ({"keep": True}, TypeError, "keep must be a float, a share .*got bool True"),
        ({"keep": "half"}, TypeError, "keep must be a float, a share .*got str 'half'"),
        ({"keep": 0.5, "threshold": 0.8}, ValueError, "keep=0.5 and threshold=0.8 are two rules"),
        ({"keep": 0.5, "window": 3}, ValueError, "keep=0.5 and window=3 are two rules"),
        ({"keep": 0.5, "reduction": pool_padded}, ValueError, "keep=0.5 and reduction=<function pool_padded"),
    ],
)
def test_a_share_is_checked_and_goes_with_no_other_rule(arguments, error, match):
    with pytest.raises(error, match=match):
        Site(0, **arguments)


def test_a_site_has_the_papers_numbers_or_a_share_and_none_of_the_other():
    assert (Site(3).threshold, Site(3).window, Site(3).keep) == (0.8, 3, None)
    kept = Site(3, keep=1)
    assert (kept.threshold, kept.window, kept.keep) == (None, None, 1.0)
    assert kept == Site(3, keep=1.0) != Site(3)
    assert len({kept, Site(3, keep=1.0), Site(3), Site(3, 0.8, 3)}) == 2
    for site in (kept, Site(3), Site(3, 0.9, 1)):
        assert pickle.loads(pickle.dumps(site)) == site == eval(repr(site)) == copy.deepcopy(site)
        assert replace(site, layer=4) != site == replace(site, layer=3)


# Statistics.


def test_stats_tell_tokens_and_groups_of_each_site_and_row(model, speech, dual):
    with patch(model, dual) as handle:
        assert handle.stats is None
        model(**speech)
        first, second = handle.stats.sites
    text = [9, 9, 9]
    assert (first.layer, second.layer) == (0, 2)
    assert first.audio_before == [30, 17, 8]
    assert first.audio_after == second.audio_before
    assert first.tokens_after == second.tokens_before
    for site in (first, second):
        assert site.tokens_before == [a + t for a, t in zip(site.audio_before, text, strict=True)]
        assert site.tokens_after == [a + t for a, t in zip(site.audio_after, text, strict=True)]
        assert site.counts.sum(1).tolist() == site.tokens_before
        assert (site.counts > 0).sum(1).tolist() == site.tokens_after
        assert (site.segment_ids >= 0).sum(1).tolist() == site.tokens_before
    assert first.audio_kept == sum(first.audio_after) / 55


def test_stats_are_those_of_the_last_prefill_and_outlive_decoding_and_removal(model, speech):
    with patch(model, DUAL) as handle:
        model(**SPEECH[0])
        cache = model(**speech).past_key_values
        model(input_ids=torch.full((3, 1), 20), past_key_values=cache)
    assert handle.stats.sites[0].audio_before == [30, 17, 8]


def test_stats_of_a_second_site_in_a_prompt_that_ends_in_audio_do_not_count_padding(model):
    with patch(model, DUAL) as handle:
        model(**batch([prompt("ab", 30, seed=1), prompt("abc", 12, seed=2)]))
        first, second = handle.stats.sites
    assert second.audio_before == first.audio_after
    assert [a - b for a, b in zip(second.tokens_before, second.audio_before, strict=True)] == [2, 3]


# Other reductions at a site.


def drop_at_same_counts(site):
    """Keep the first token of each group Affinity Pooling would form, and drop the others."""

    def reduction(x, lengths, mergeable):
        pooled = site.reduce(x, lengths, mergeable)
        ids = pooled.segment_ids
        opens = (ids >= 0) & (ids != torch.nn.functional.pad(ids[:, :-1], (1, 0), value=-1))
        values = torch.zeros_like(x)
        rows = opens.nonzero()
        values[rows[:, 0], ids[opens].long()] = x[opens]
        return PooledPadded(values, pooled.lengths, ids.masked_fill(~opens, -1), (pooled.counts > 0).int())

    return replace(site, reduction=reduction)


def test_a_site_pools_by_its_own_threshold_and_window():
    x, lengths = torch.randn(2, 30, 4), torch.tensor([30, 11], dtype=torch.int32)
    audio = torch.rand(2, 30) < 0.8
    expected = pool_padded(x, lengths, mergeable=audio, threshold=0.3, window=2, left_padded=True)
    for part, wanted in zip(Site(1, 0.3, 2).reduce(x, lengths, audio), expected, strict=True):
        assert torch.equal(part, wanted)


def test_a_site_pools_to_its_own_share():
    x, lengths = torch.randn(2, 30, 4), torch.tensor([30, 11], dtype=torch.int32)
    audio = torch.rand(2, 30) < 0.8
    expected = pool_padded_to(x, 0.3, lengths, mergeable=audio, left_padded=True)
    for part, wanted in zip(Site(1, keep=0.3).reduce(x, lengths, audio), expected, strict=True):
        assert torch.equal(part, wanted)


def test_a_site_can_reduce_otherwise_and_keeps_the_phases_of_the_rows_kept(any_model, speech):
    sites = [drop_at_same_counts(site) for site in DUAL]
    with patch(any_model, DUAL) as handle:
        pooled = any_model(**speech).logits
        kept = handle.stats.sites[0].audio_after
    with patch(any_model, sites) as handle:
        dropped = any_model(**speech)
        assert handle.stats.sites[0].audio_after == kept
        assert dropped.logits.shape[0] == pooled.shape[0]
        assert not torch.equal(dropped.logits[:, -1], pooled[:, -1])
        assert (handle.stats.sites[0].segment_ids == -1).any()


def test_dropping_rows_equals_never_having_had_them_where_attention_is_all_that_sees_positions(model):
    """Drop the clip's second half at the input: the model must then see the prompt without it, phases apart."""

    def first_half(x, lengths, mergeable):
        audio = mergeable[0].nonzero().flatten()
        stays = torch.ones(x.shape[1], dtype=torch.bool)
        stays[audio[len(audio) // 2 :]] = False
        n, missing = int(stays.sum()), int((~stays).sum())
        values = torch.nn.functional.pad(x[:, stays], (0, 0, missing, 0))
        ids = torch.full(x.shape[:2], -1, dtype=torch.int32)
        ids[0, stays] = torch.arange(missing, missing + n, dtype=torch.int32)
        counts = torch.nn.functional.pad(torch.ones(1, n, dtype=torch.int32), (missing, 0))
        return PooledPadded(values, torch.tensor([n], dtype=torch.int32), ids, counts)

    row = SPEECH[0]
    audio = (row["input_ids"][0] == 5).nonzero().flatten()
    gone = audio[len(audio) // 2 :]
    stays = torch.ones(row["input_ids"].shape[1], dtype=torch.bool)
    stays[gone] = False
    caught = []
    decoder = next(module for module in model.modules() if type(module).__name__ == "Qwen2Model")
    hook = decoder.register_forward_pre_hook(lambda m, a, k: caught.append(k["inputs_embeds"]), with_kwargs=True)
    model(**row)
    hook.remove()
    for positions, phases in (("keep", stays.nonzero().flatten()[None]), ("compact", None)):
        hidden = decoder(inputs_embeds=caught[0][:, stays], position_ids=phases, use_cache=True).last_hidden_state
        with patch(model, [Site(0, reduction=first_half)], positions=positions):
            logits = model(**row).logits
        torch.testing.assert_close(logits, model.get_output_embeddings()(hidden), rtol=1e-3, atol=1e-3)
