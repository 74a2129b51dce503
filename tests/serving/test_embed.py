"""What ``embed`` makes for an engine is what a patched model goes on with, and the model is left as it was."""

from __future__ import annotations

import copy
import json
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from torch import Tensor, nn
from torch._dynamo.utils import counters

sys.path.append(str(Path(__file__).parents[1] / "models"))

from random_families import CASES, random_model, random_rows, sites_that_merge_half
from random_speech import AUDIO, INPUT, INPUT_KEPT, SPEECH, batch, embedded, prompt, speech_model, tokens

import affinity_pool
from affinity_pool import PooledPadded, Site, patch
from affinity_pool.models.families import family_of, language_model
from affinity_pool.serving import Embedded, embed

ALL = [Site(0, 1.5)]  # nothing merges
OMNI = "Qwen2_5OmniThinkerForConditionalGeneration"


@pytest.fixture(params=["Qwen2AudioForConditionalGeneration", *CASES])
def case(request: pytest.FixtureRequest) -> tuple[Any, list[dict[str, Tensor]]]:
    """A model and three rows it takes."""
    if request.param in CASES:
        return random_model(request.param), random_rows(request.param)
    return speech_model(), SPEECH


@pytest.fixture
def model() -> Any:
    return speech_model()


@pytest.fixture
def own_model() -> Any:
    return copy.deepcopy(speech_model())


@torch.no_grad()
def decoder_input(model: Any, inputs: dict[str, Tensor]) -> Tensor:
    """The embeddings a model begins with, in a call of its own."""
    if model.config.model_type != "phi4_multimodal":
        return embedded(model, inputs)["inputs_embeds"]
    seen = []  # its decoder is given ids
    hook = model.model.layers[0].register_forward_pre_hook(lambda layer, args: seen.append(args[0]))
    model(**inputs)
    hook.remove()
    return seen[0]


def sites_of(case: tuple[Any, list[dict[str, Tensor]]], rule: str) -> list[Site]:
    model, rows = case
    return [INPUT_KEPT] if rule == "share" else sites_that_merge_half(model, batch(rows), "compact")[:1]


rules = pytest.mark.parametrize("rule", ["threshold", "share"])


# What it makes.


@rules
@torch.inference_mode()
def test_embeddings_do_what_the_patched_model_does(case, rule):
    model, rows = case
    sites = sites_of(case, rule)
    pooled = 0
    for row in rows:
        with patch(model, sites, positions="compact") as handle:
            logits, said = model(**row).logits, tokens(model, row)
            stats = handle.stats.sites[0]
        (it,) = embed(model, row, sites)
        assert ([it.tokens_before], [it.tokens_after]) == (stats.tokens_before, stats.tokens_after)
        assert (it.audio_before, it.audio_after) == (stats.audio_before, stats.audio_after)
        pooled += it.tokens_before - it.tokens_after
        ready = {"inputs_embeds": it.prompt_embeds[None], "attention_mask": torch.ones(1, it.tokens_after).long()}
        torch.testing.assert_close(model(**ready).logits, logits)
        if not transformers.__version__.startswith("4."):  # which takes no embeddings in generate() of most
            assert torch.equal(model.generate(**ready, max_new_tokens=6, do_sample=False), said)
    assert pooled > 0


@rules
def test_the_rows_of_a_clip_are_what_the_op_makes_of_them(case, rule):
    model, rows = case
    (site,) = sites_of(case, rule)
    for row in rows:
        (before,), (after,) = embed(model, row, ALL), embed(model, row, [site])
        (clip,), (pooled,) = before.audio_embeds, after.audio_embeds
        by_share = site.keep is not None
        expected = (
            affinity_pool.pool_to(clip, site.keep)
            if by_share
            else affinity_pool.pool(clip, threshold=site.threshold, window=site.window)
        )
        assert torch.equal(pooled, expected.values)


def test_where_nothing_merges_they_are_the_model_s_own_bit_for_bit(case):
    model, rows = case
    inputs = batch(rows)
    own = decoder_input(model, inputs)
    ids, mask = inputs["input_ids"], inputs["attention_mask"].bool()
    for b, it in enumerate(embed(model, inputs, ALL)):
        assert torch.equal(it.prompt_embeds, own[b, mask[b]])
        assert torch.equal(torch.cat(it.audio_embeds), own[b, ids[b] == AUDIO])


@rules
@pytest.mark.parametrize("side", ["left", "right"])
def test_a_batch_padded_on_either_side_is_its_prompts(case, rule, side):
    model, rows = case
    sites = sites_of(case, rule)
    for it, row in zip(embed(model, batch(rows, side), sites), rows, strict=True):
        (alone,) = embed(model, row, sites)
        assert (it.audio_before, it.audio_after) == (alone.audio_before, alone.audio_after)
        torch.testing.assert_close(it.prompt_embeds, alone.prompt_embeds, rtol=1e-4, atol=1e-4)  # encoders round
        torch.testing.assert_close(torch.cat(it.audio_embeds), torch.cat(alone.audio_embeds), rtol=1e-4, atol=1e-4)


def test_each_clip_has_its_rows_and_text_stays_between_them(model):
    row = prompt("ab", 30, "c", 7, "de", seed=1)
    (it,) = embed(model, row, [Site(0, 0.7, 3)])
    own = decoder_input(model, row)[0]
    first, second = (affinity_pool.pool(rows, threshold=0.7, window=3).values for rows in (own[2:32], own[33:40]))
    assert [len(first) < 30, len(second) < 7] == [True, True]
    assert all(map(torch.equal, it.audio_embeds, (first, second)))
    assert torch.equal(it.prompt_embeds, torch.cat([own[:2], first, own[32:33], second, own[40:]]))
    assert (it.audio_before, it.audio_after) == ([30, 7], [len(first), len(second)])
    assert (it.tokens_before, it.tokens_after) == (42, 5 + len(first) + len(second))


def test_clips_side_by_side_are_one_run_as_for_the_patch(model):
    row = prompt("ab", 12, 9, "c", seed=2)
    sites = [Site(0, keep=0.1)]  # 3 of 21: of two runs it would be 2 and 1, of other groups
    (it,) = embed(model, row, sites)
    with patch(model, sites, positions="compact"):
        logits = model(**row).logits
    assert (it.audio_before, it.audio_after) == ([21], [3])
    torch.testing.assert_close(model(inputs_embeds=it.prompt_embeds[None]).logits, logits)


def test_a_clip_may_be_all_there_is(model):
    (it,) = embed(model, prompt(20, seed=3), [INPUT])
    assert torch.equal(it.audio_embeds[0], it.prompt_embeds)


def test_prompts_without_audio_pass_through(model):
    text = prompt("abcdef", seed=4)
    for inputs, sites in (
        (text, [INPUT]),
        (text, [Site(0, reduction=lambda *_: pytest.fail("there is nothing to reduce"))]),
        (batch([SPEECH[0], text]), [INPUT]),
    ):
        it = embed(model, inputs, sites)[-1]
        assert (it.audio_embeds, it.audio_before, it.tokens_before, it.tokens_after) == ([], [], 6, 6)
        assert torch.equal(it.prompt_embeds, model.get_input_embeddings()(text["input_ids"])[0])


def test_without_a_mask_nothing_is_padding(model):
    row = dict(SPEECH[0])
    (expected,) = embed(model, row, [INPUT])
    del row["attention_mask"]
    assert torch.equal(embed(model, row, [INPUT])[0].prompt_embeds, expected.prompt_embeds)


@pytest.mark.parametrize("keeps", [0, 2])
def test_a_reduction_of_one_s_own_may_leave_few_of_a_run_or_none(model, keeps):
    def firsts(x: Tensor, lengths: Tensor | None, mergeable: Tensor) -> PooledPadded:
        stays = ~mergeable
        stays[:, 2:4] = torch.tensor([keeps > 0, keeps > 0])
        left = stays.sum(1, dtype=torch.int32)
        values, ids = torch.zeros_like(x), torch.full(stays.shape, -1, dtype=torch.int32)
        at = torch.arange(x.shape[1] - int(left), x.shape[1])
        values[0, at], ids[0, stays[0]] = x[0, stays[0]], at.int()
        return PooledPadded(values, left, ids, (torch.arange(x.shape[1]) >= at[0]).int()[None])

    row, sites = prompt("ab", 10, "cd", 6, "e", seed=5), [Site(0, reduction=firsts)]
    (it,) = embed(model, row, sites)
    own = decoder_input(model, row)[0]
    assert it.audio_after == [keeps, 0]
    assert [list(rows.shape) for rows in it.audio_embeds] == [[keeps, 64], [0, 64]]
    assert torch.equal(it.audio_embeds[0], own[2 : 2 + keeps])
    assert torch.equal(it.prompt_embeds, torch.cat([own[: 2 + keeps], own[12:14], own[20:]]))
    assert (it.tokens_before, it.tokens_after) == (21, 5 + keeps)


def test_tensors_own_what_they_show_and_carry_no_gradient(model):
    for it in embed(model, batch([*SPEECH, prompt("abc")]), [INPUT]):
        for tensor in (it.prompt_embeds, *it.audio_embeds):
            assert tensor.untyped_storage().nbytes() == tensor.numel() * tensor.element_size()
            assert not tensor.requires_grad
    assert torch.is_grad_enabled()
    with torch.inference_mode():
        assert isinstance(embed(model, SPEECH[0], [INPUT])[0], Embedded)


def test_the_dtype_is_the_model_s():
    row = SPEECH[0] | {"input_features": SPEECH[0]["input_features"].bfloat16()}
    (it,) = embed(speech_model(dtype=torch.bfloat16), row, [INPUT])
    assert {it.prompt_embeds.dtype, *(rows.dtype for rows in it.audio_embeds)} == {torch.bfloat16}


def test_a_processor_s_own_mapping_and_a_file_of_sites_will_do(model, tmp_path):
    sites = [{"layer": 0, "threshold": INPUT.threshold, "window": INPUT.window}]
    (tmp_path / "affinity_pool.json").write_text(json.dumps({"sites": sites, "positions": "keep"}))
    (it,) = embed(model, transformers.BatchFeature(SPEECH[0]), tmp_path)
    assert torch.equal(it.prompt_embeds, embed(model, SPEECH[0], [INPUT])[0].prompt_embeds)


# What it does with the model.


def test_the_encoder_runs_once_and_no_decoder_layer_does(case):
    model, rows = case
    calls: list[str] = []
    family = family_of(model)
    noted = [(family.encoder(model), "encoder"), *((layer, "layer") for layer in family.decoder(model).layers)]
    hooks = [module.register_forward_hook(lambda *_, name=name: calls.append(name)) for module, name in noted]
    try:
        embed(model, batch(rows), ALL)
        assert calls == ["encoder"]
        model(**rows[0])
        assert calls.count("layer") == len(hooks) - 1  # else the hooks would not tell
    finally:
        for hook in hooks:
            hook.remove()


def state(model: nn.Module) -> list[tuple[type, dict[str, Any]]]:
    """What is in each module, and for its tables of hooks what is in them."""
    return [
        (type(module), {key: list(of) if "hooks" in key else of for key, of in vars(module).items()})
        for module in model.modules()
    ]


def test_nothing_is_left_on_the_model(case):
    model, rows = case
    before = state(model)
    embed(model, batch(rows), ALL)
    assert state(model) == before


def test_nor_is_after_an_error(model):
    before = state(model)

    def broken(*_: Any) -> None:
        raise KeyboardInterrupt

    hook = family_of(model).encoder(model).register_forward_hook(broken)
    with pytest.raises(KeyboardInterrupt):
        embed(model, SPEECH[0], [INPUT])
    hook.remove()
    assert state(model) == before


def test_embeddings_of_a_batch_leave_multimodal_positions_alone():
    """Qwen2.5-Omni notes how far positions of the last call with ids lie from columns, for the next without ids."""
    model, rows = random_model(OMNI), random_rows(OMNI)
    (it,) = embed(model, rows[0], [INPUT])
    before = model(inputs_embeds=it.prompt_embeds[None]).logits
    embed(model, batch(rows), [INPUT])
    assert torch.equal(model(inputs_embeds=it.prompt_embeds[None]).logits, before)


def test_another_thread_may_run_the_model_meanwhile(model):
    expected = model(**SPEECH[1]).logits
    ours, theirs, found = threading.Event(), threading.Event(), []

    def wait(*_: Any) -> None:
        if threading.current_thread() is other:
            ours.set()
            assert theirs.wait(20)

    other = threading.Thread(target=lambda: found.extend(embed(model, SPEECH[0], ALL)))
    hook = family_of(model).encoder(model).register_forward_hook(wait)
    try:
        other.start()
        assert ours.wait(20)
        assert torch.equal(model(**SPEECH[1]).logits, expected)
    finally:
        theirs.set()
        other.join()
        hook.remove()
    assert torch.equal(found[0].prompt_embeds, decoder_input(model, SPEECH[0])[0])


def test_threads_that_embed_at_once_take_turns_and_get_each_its_own(model):
    expected = [embed(model, row, [INPUT])[0].prompt_embeds for row in SPEECH]
    found: list[Any] = [None] * 3
    inside, most = [], []

    def linger(*_: Any) -> None:
        inside.append(1)
        time.sleep(0.02)
        most.append(len(inside))
        inside.pop()

    def work(at: int) -> None:
        found[at] = embed(model, SPEECH[at], [INPUT])[0].prompt_embeds

    hook = family_of(model).encoder(model).register_forward_hook(linger)
    threads = [threading.Thread(target=work, args=(at,)) for at in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    hook.remove()
    assert most == [1, 1, 1]
    assert all(map(torch.equal, found, expected))


@pytest.mark.parametrize("compiled", ["model", "decoder", "layers"])
def test_compiled_code_stays_compiled_and_is_stepped_around(own_model, compiled):
    (expected,) = embed(own_model, SPEECH[0], [INPUT])
    decoder = language_model(own_model)
    torch.compiler.reset()
    counters.clear()
    for module in {"model": [own_model], "decoder": [decoder], "layers": decoder.layers}[compiled]:
        module.compile(backend="eager")
    with torch.no_grad():
        logits = own_model(**SPEECH[0]).logits
        graphs = counters["stats"]["unique_graphs"]
        assert graphs > 0
        for _ in range(2):
            assert torch.equal(embed(own_model, SPEECH[0], [INPUT])[0].prompt_embeds, expected.prompt_embeds)
        assert torch.equal(own_model(**SPEECH[0]).logits, logits)
    assert counters["stats"]["unique_graphs"] == graphs


class DistributedDataParallel(nn.Module):
    """Where torch's has the model."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = module


@pytest.mark.parametrize("wrap", [DistributedDataParallel, torch.compile], ids=["ddp", "compiled"])
def test_a_model_inside_another_module_is_found(model, wrap):
    (expected,), (found,) = embed(model, SPEECH[0], [INPUT]), embed(wrap(model), SPEECH[0], [INPUT])
    assert torch.equal(found.prompt_embeds, expected.prompt_embeds)
