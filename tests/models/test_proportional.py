"""``attention="proportional"``: a merged token's scores get the log of its size, at every layer, step and row."""

from __future__ import annotations

import copy
import json
import re
from typing import Any

import pytest
import torch
from kimi_like import kimi
from random_families import CASES, random_model, random_rows, sites_that_merge_half
from random_speech import (
    AUDIO,
    CLOSE,
    DEEP,
    DUAL,
    IDLE,
    INPUT,
    KEPT,
    SITES,
    SPEECH,
    batch,
    prompt,
    qwen2,
    speech_model,
    steps,
    tokens,
)
from torch import Tensor

from affinity_pool import PooledPadded, reference
from affinity_pool.models import Handle, Site, patch

each_sites = pytest.mark.parametrize("sites", SITES.values(), ids=SITES)
each_positions = pytest.mark.parametrize("positions", ["keep", "compact"])


def proportional(model: Any, sites: Any, **options: Any) -> Handle:
    return patch(model, sites, attention="proportional", **options)


# Against forwards that are written by hand.


def weighed_forward(model: Any, inputs: dict[str, Tensor], sites: list[Site], positions: str) -> Tensor:
    """Logits of one row, layer by layer, with the mask that the paper's loop and ToMe's term make: no hook, no cache.

    A site's ``reduction`` is one of :func:`drop_and_pair`'s kind, whose groups the test knows.
    """
    decoder = qwen2(model)
    caught: list[Tensor] = []
    hook = decoder.layers[0].register_forward_pre_hook(lambda layer, args: caught.append(args[0]))
    model(**inputs)
    hook.remove()
    hidden, audio = caught[0][0], inputs["input_ids"][0] == AUDIO
    phase, sizes = torch.arange(len(hidden)), [1] * len(hidden)
    for index, layer in enumerate(decoder.layers):
        for site in sites:
            if site.layer != index:
                continue
            groups = groups_of(site, hidden, audio)
            sizes = [sum(sizes[row] for row in group) for group in groups]
            hidden = torch.stack([hidden[group].mean(0) for group in groups])
            first = [group[0] for group in groups]
            audio, phase = audio[first], phase[first]
            if positions == "compact":
                phase = torch.arange(len(hidden))
        mask = torch.full((len(hidden), len(hidden)), -torch.inf).triu(1) + torch.tensor(sizes).log()
        phases = decoder.rotary_emb(hidden[None], phase[None])
        out = layer(hidden[None], position_embeddings=phases, attention_mask=mask[None, None])
        hidden = (out[0] if isinstance(out, tuple) else out)[0]
    return model.get_output_embeddings()(decoder.norm(hidden))


def groups_of(site: Site, hidden: Tensor, audio: Tensor) -> list[list[int]]:
    """The rows of each column that a site leaves."""
    if site.reduction is not None:
        return groups_with_dropped(audio)
    if site.keep is None:
        out = reference.pool(hidden, mergeable=audio, threshold=site.threshold, window=site.window)
    else:
        out = reference.pool_to(hidden, site.keep, mergeable=audio)
    ids = out.segment_ids.tolist()
    return [[row for row, group in enumerate(ids) if group == wanted] for wanted in range(len(out.counts))]


def groups_with_dropped(audio: Tensor) -> list[list[int]]:
    """Of every three audio tokens the first goes, the others become one; clips before the last have whole threes."""
    groups: list[list[int]] = []
    seen = 0
    for row, is_audio in enumerate(audio.tolist()):
        if not is_audio or seen % 3 == 1:
            groups.append([row])
        elif seen % 3 == 2:
            groups[-1].append(row)
        seen += is_audio
    return groups


def drop_and_pair(x: Tensor, lengths: Tensor | None, mergeable: Tensor) -> PooledPadded:
    """A reduction of one's own, with dropped tokens, text in the middle of none of its groups."""
    batch_size, width, _ = x.shape
    values, counts = torch.zeros_like(x), torch.zeros(batch_size, width, dtype=torch.int32)
    ids, left = torch.full((batch_size, width), -1, dtype=torch.int32), torch.zeros(batch_size, dtype=torch.int32)
    for row in range(batch_size):
        first = 0 if lengths is None else width - int(lengths[row])
        groups = [[first + i for i in group] for group in groups_with_dropped(mergeable[row, first:])]
        left[row] = len(groups)
        for column, group in enumerate(groups, width - len(groups)):
            values[row, column], counts[row, column], ids[row, group] = x[row, group].mean(0), len(group), column
    return PooledPadded(values, left, ids, counts)


OWN = Site(0, reduction=drop_and_pair)


@each_positions
@pytest.mark.parametrize(
    "sites",
    [*SITES.values(), [Site(1, 0.6, 2), DEEP, Site(3, 0.5, 4)], [OWN], [OWN, DEEP]],
    ids=[*SITES, "three", "own", "own-and-deep"],
)
def test_a_prefill_equals_a_forward_whose_mask_holds_the_log_of_sizes(any_model, sites, positions):
    for row in (SPEECH[0], prompt("ab", 21, "c", 13, "defg", seed=6)):
        with proportional(any_model, sites, positions=positions):
            logits = any_model(**row, use_cache=False).logits[0]
        assert logits.shape[0] < row["input_ids"].shape[1]
        torch.testing.assert_close(logits, weighed_forward(any_model, row, sites, positions), **CLOSE)


def test_it_is_not_what_plain_attention_gives(model, speech):
    """Else every equality in this file would hold for a patch that weighs nothing."""
    for sites in SITES.values():
        with patch(model, sites):
            plain = steps(model, speech)
        with proportional(model, sites):
            assert (steps(model, speech) - plain).abs().max() > 0.1


def test_dropped_tokens_are_missed_by_nobody(any_model, speech):
    """What is left of dropping alone stands for itself: the attention is the plain one."""

    def drop(x: Tensor, lengths: Tensor | None, mergeable: Tensor) -> PooledPadded:
        left = DEEP.reduce(x, lengths, mergeable)
        groups = left.segment_ids.long()
        first = torch.ones_like(groups, dtype=torch.bool)
        first[:, 1:] = groups[:, 1:] != groups[:, :-1]
        values, ids = torch.zeros_like(x), torch.where(first & (groups >= 0), groups, -1)
        rows, columns = (ids >= 0).nonzero(as_tuple=True)
        values[rows, ids[rows, columns]] = x[rows, columns]
        return PooledPadded(values, left.lengths, ids.int(), (left.counts > 0).int())

    sites = [Site(2, reduction=drop)]
    with patch(any_model, sites) as handle:
        plain = steps(any_model, speech)
        assert handle.stats.sites[0].audio_kept < 0.8
    with proportional(any_model, sites):
        torch.testing.assert_close(steps(any_model, speech), plain, **CLOSE)


@pytest.mark.parametrize("sites", IDLE.values(), ids=IDLE)
@each_positions
def test_where_nothing_merges_no_bit_changes(any_model, speech, sites, positions):
    logits, generated = any_model(**speech).logits, tokens(any_model, speech)
    with proportional(any_model, sites, positions=positions):
        assert torch.equal(any_model(**speech).logits, logits)
        assert torch.equal(tokens(any_model, speech), generated)


def test_removing_leaves_the_model_as_it_was(any_model, speech):
    logits = any_model(**speech).logits
    with patch(any_model, DUAL):
        plain = any_model(**speech).logits
    with proportional(any_model, DUAL) as handle:
        assert not torch.equal(any_model(**speech).logits, plain)
        handle.remove()
        assert torch.equal(any_model(**speech).logits, logits)
    with patch(any_model, DUAL):
        assert torch.equal(any_model(**speech).logits, plain)


# Batches and caches.


@each_positions
@each_sites
def test_a_batch_gives_each_row_alone_and_the_cache_what_no_cache_does(any_model, speech, sites, positions):
    with proportional(any_model, sites, positions=positions):
        together = steps(any_model, speech)
        torch.testing.assert_close(together, steps(any_model, speech, use_cache=False), **CLOSE)
        for row, alone in zip(together, SPEECH, strict=True):
            torch.testing.assert_close(row, steps(any_model, alone)[0], **CLOSE)


def continued(model: Any, cache: Any, rows: int) -> Tensor:
    return model(input_ids=torch.arange(40, 42).expand(rows, -1), past_key_values=cache).logits


@each_positions
def test_rows_of_a_cache_take_their_sizes_along(any_model, speech, positions, dual):
    with proportional(any_model, dual, positions=positions):
        expected = continued(any_model, any_model(**speech).past_key_values, 3)
        for change, rows in (
            (lambda cache: cache.batch_select_indices(torch.tensor([2, 0])), [2, 0]),
            (lambda cache: cache.batch_repeat_interleave(2), [0, 0, 1, 1, 2, 2]),
            (lambda cache: cache.reorder_cache(torch.tensor([1, 2, 0])), [1, 2, 0]),
        ):
            cache = any_model(**speech).past_key_values
            twin = copy.deepcopy(cache)
            change(cache)
            torch.testing.assert_close(continued(any_model, cache, len(rows)), expected[rows], **CLOSE)
            torch.testing.assert_close(continued(any_model, twin, 3), expected, **CLOSE)


def test_cropping_the_text_after_the_audio_equals_a_shorter_prompt(any_model, dual):
    row = SPEECH[0]
    shorter = row | {key: row[key][:, :-3] for key in ("input_ids", "attention_mask")}
    with proportional(any_model, dual):
        cache = any_model(**row).past_key_values
        cache.crop(-3)
        assert all(state.log_sizes.shape[1] == cache.columns(layer) for layer, state in cache.states.items())
        expected = continued(any_model, any_model(**shorter).past_key_values, 1)
        torch.testing.assert_close(continued(any_model, cache, 1), expected, **CLOSE)
        cache.crop(-2)
        torch.testing.assert_close(continued(any_model, cache, 1), expected, **CLOSE)


@each_sites
def test_sizes_are_those_of_the_callers_tokens_together(model, speech, sites):
    asked = speech["attention_mask"].sum(1)
    with proportional(model, sites) as handle:
        states = model(**speech).past_key_values.states
        assert states
        for layer, state in states.items():
            there = torch.ones_like(state.log_sizes, dtype=torch.bool) if state.valid is None else state.valid
            assert torch.equal((state.log_sizes.exp().round() * there).sum(1).long(), asked)
            (site,) = (site for site in handle.stats.sites if site.layer == layer)
            assert there.sum(1).tolist() == site.tokens_after


def test_a_cache_keeps_its_weights_under_a_patch_of_the_other_kind(any_model, speech):
    """What is cached says what it weighs; sites and positions alone decide who may continue it."""
    with patch(any_model, DUAL):
        plain = any_model(**speech).past_key_values
        expected_plain = continued(any_model, copy.deepcopy(plain), 3)
    with proportional(any_model, DUAL):
        weighed = any_model(**speech).past_key_values
        expected = continued(any_model, copy.deepcopy(weighed), 3)
        assert torch.equal(continued(any_model, plain, 3), expected_plain)
    with patch(any_model, DUAL):
        assert torch.equal(continued(any_model, weighed, 3), expected)


# Attention functions and number formats.


@pytest.mark.parametrize("attention", ["plain", "proportional"])
@each_positions
def test_attention_functions_agree(speech, positions, attention):
    sdpa, other = speech_model("sdpa"), speech_model("eager")
    for inputs in (speech, batch([SPEECH[0]] * 2)):  # with padding and without
        with patch(sdpa, DUAL, positions=positions, attention=attention):
            expected = steps(sdpa, inputs)
        with patch(other, DUAL, positions=positions, attention=attention):
            torch.testing.assert_close(steps(other, inputs), expected, **CLOSE)


def test_bfloat16_weighs_to_its_own_precision(speech, dual):
    def distance(one: Tensor, other: Tensor) -> float:
        return float((one.float().softmax(-1) - other.float().softmax(-1)).abs().sum(-1).mean())

    found = {}
    for dtype in (torch.float32, torch.bfloat16):
        model = speech_model(dtype=dtype)
        for attention in ("plain", "proportional"):
            with patch(model, [Site(0, keep=0.5)], attention=attention):
                found[dtype, attention] = model(**SPEECH[0]).logits[0, -1:]
    whole = distance(found[torch.float32, "plain"], found[torch.float32, "proportional"])
    assert distance(found[torch.float32, "proportional"], found[torch.bfloat16, "proportional"]) < 0.5 * whole
    with proportional(speech_model(dtype=torch.bfloat16), dual):
        assert tokens(speech_model(dtype=torch.bfloat16), speech).shape == (3, 6)


# Families.


@pytest.mark.parametrize("name", CASES)
@each_positions
def test_in_every_family_batch_equals_single_and_cache_equals_no_cache(name, positions):
    model, rows = random_model(name), random_rows(name)
    inputs = batch(rows)
    if not all(
        torch.equal(row, tokens(model, alone)[0]) for row, alone in zip(tokens(model, inputs), rows, strict=True)
    ):
        pytest.skip(f"{name} is not batch-invariant itself in this version of transformers")
    sites = sites_that_merge_half(model, inputs, positions)
    with patch(model, sites, positions=positions):
        plain = steps(model, inputs)
    with proportional(model, sites, positions=positions):
        together = steps(model, inputs)
        assert (together - plain).abs().max() > 0.01
        torch.testing.assert_close(together, steps(model, inputs, use_cache=False), **CLOSE)
        for row, alone in zip(together, rows, strict=True):
            torch.testing.assert_close(row, steps(model, alone)[0], **CLOSE)


# What is asked for, and what cannot be had.


def test_it_is_asked_for_by_name_or_in_a_file(model, tmp_path):
    with patch(model, DUAL) as handle:
        assert handle.attention == "plain"
    with proportional(model, DUAL) as handle:
        assert handle.attention == "proportional"
    content = {"sites": [{"layer": 0, "threshold": 0.7, "window": 1}], "attention": "proportional"}
    (tmp_path / "affinity_pool.json").write_text(json.dumps(content))
    with patch(model, tmp_path) as handle:
        assert (handle.sites, handle.attention) == ((INPUT,), "proportional")
    with patch(model, tmp_path, attention="plain") as handle:
        assert handle.attention == "plain"


@pytest.mark.parametrize("wrong", ["Plain", "", 1, ["plain"], True])
def test_another_attention_is_refused(model, tmp_path, wrong):
    told = re.escape(f"attention must be 'plain' or 'proportional', got {wrong!r}")
    with pytest.raises(ValueError, match=told):
        patch(model, DUAL, attention=wrong)
    (tmp_path / "affinity_pool.json").write_text(json.dumps({"sites": [{"layer": 0, "keep": 0.5}], "attention": wrong}))
    with pytest.raises(ValueError, match=f"affinity_pool.json: {told}"):
        patch(model, tmp_path)


def test_kernels_that_add_nothing_to_scores_are_refused(speech):
    model = speech_model("eager")
    config = qwen2(model).config
    with proportional(model, KEPT):
        cache = model(**speech).past_key_values
        config._attn_implementation = "flash_attention_2"
        try:
            with pytest.raises(
                NotImplementedError,
                match=r"adds to attention scores, for which 'flash_attention_2' has no argument: call model.set_attn",
            ):
                model(**speech)
            with pytest.raises(
                NotImplementedError, match=r"cache was pooled with attention='proportional', and 'flash"
            ):
                continued(model, cache, 3)
        finally:
            config._attn_implementation = "eager"
        assert model(**speech).logits.shape[0] == 3


def test_kimi_audio_is_refused():
    with pytest.raises(NotImplementedError, match="Kimi-Audio's layers take no mask that could bring it"):
        proportional(kimi(), [Site(0, 0.7, 1)])
    assert not any(module._forward_pre_hooks for module in kimi().modules())
