"""The bundled model in vLLM: what it answers is what transformers answers to the same pooled rows."""

from __future__ import annotations

from pathlib import Path

import pytest

pytest.importorskip("vllm.version", reason="needs vLLM: make test-vllm")  # what follows needs what comes with it

from bundled import NAMES, Bundled
from engine import CLOSE, Answer, Request, ask

import affinity_pool
from affinity_pool.serving import embed

SHARES = (1.0, 0.8, None, 0.25)
SEVERAL = [(NAMES[:2], keep) for keep in (1.0, 0.8, None)] + [(NAMES[:3], 0.5), ((NAMES[0], NAMES[0]), 0.5)]
CASES = [((name,), keep) for name in NAMES for keep in SHARES] + SEVERAL
DEFAULT = 0.5
POOLED = {"hf_overrides": {"affinity_pool": {"keep": DEFAULT}}}


@pytest.fixture(scope="module")
def tiny(bundled: Path) -> Bundled:
    return Bundled(bundled)


def test_without_a_word_of_pooling_it_is_vllm_bit_for_bit(tiny):
    requests = [tiny.request(name) for name in NAMES] + [tiny.request(*NAMES[:2]), Request(tiny.prompt(0))]
    (own,) = ask(tiny.folder, requests, plugin=False).turns
    (ours,) = ask(tiny.folder, requests).turns
    (with_key,) = ask(tiny.folder, requests, hf_overrides={"affinity_pool": {"keep": 1.0}}).turns
    assert own == ours == with_key
    assert not any(answer.refusal for answer in own)


@pytest.mark.parametrize("options", [{}, {"max_num_batched_tokens": 64}], ids=["whole", "in chunks"])
def test_shares_of_all_kinds_in_one_batch_and_again_from_the_prefix_cache(tiny, options):
    requests = [tiny.request(*names, keep=keep) for names, keep in CASES]
    session = ask(tiny.folder, requests, requests, **POOLED, **options)
    for turn in session.turns:
        for answer, (names, keep) in zip(turn, CASES, strict=True):
            tiny.check(answer, names, DEFAULT if keep is None else keep)
    again = [answer.cached_tokens for answer, (_, keep) in zip(session.turns[1], CASES, strict=True) if keep != 1.0]
    assert sum(count > 0 for count in again) > len(again) / 2
    if options:
        assert all(
            answer.prompt_tokens > 64 for answer, (_, keep) in zip(session.turns[0], CASES, strict=True) if keep == 1.0
        )


def test_another_task_and_one_by_one(tiny):
    cases = [((name,), keep, "last word") for name in NAMES[:2] for keep in (0.8, None)]
    requests = [tiny.request(*names, keep=keep, text=text) for names, keep, text in cases]
    for turn, (names, keep, text) in zip(
        ask(tiny.folder, *([request] for request in requests), **POOLED).turns, cases, strict=True
    ):
        tiny.check(turn[0], names, DEFAULT if keep is None else keep, text)


@pytest.mark.parametrize("options", [{"enforce_eager": False}, {"mm_processor_cache_type": "shm"}], ids=str)
def test_compiled_and_with_clips_in_shared_memory(tiny, options):
    cases = CASES[:10]
    requests = [tiny.request(*names, keep=keep) for names, keep in cases]
    for turn in ask(tiny.folder, requests, requests, **POOLED, **options).turns:
        for answer, (names, keep) in zip(turn, cases, strict=True):
            tiny.check(answer, names, DEFAULT if keep is None else keep)


REFUSED = [
    ({"affinity_pool": {"keep": 7}}, "above 0 and up to 1, got 7"),
    ({"affinity_pool": {"keep": 0.3}}, "keep must be in 0.4..1 on this server, got 0.3"),
    ({"affinity_pool": {"keep": "half"}}, "above 0 and up to 1, got 'half'"),
    ({"affinity_pool": 0.5}, "expected"),
    ({"audio_kwargs": {"affinity_pool": {"keep": 0.5}}}, "it was found in audio_kwargs"),
]


def test_a_bad_request_is_refused_in_our_words_and_the_engine_goes_on(tiny):
    bad = [[tiny.request(NAMES[0], processor_kwargs=asked)] for asked, _ in REFUSED]
    good = [tiny.request(NAMES[0]), tiny.request(NAMES[1], keep=0.4)]
    bounds = {"min": 0.4, "default": 0.8}
    *refused, last = ask(tiny.folder, *bad, good, hf_overrides={"affinity_pool": {"keep": bounds}}).turns
    for (answer,), (_, words) in zip(refused, REFUSED, strict=True):
        assert answer.refusal.startswith("affinity_pool")
        assert words in answer.refusal
    tiny.check(last[0], NAMES[:1], 0.8)
    tiny.check(last[1], NAMES[1:2], 0.4)


AROUND = [
    ({"hf_overrides": {"affinity_pool": {"keep": 0}}}, "above 0 and up to 1, got 0"),
    ({"mm_processor_kwargs": {"affinity_pool": {"keep": 0.5}}}, "belongs into the model's config"),
    ({"compilation_config": {"cudagraph_mm_encoder": True}}, "CUDA graphs of the encoder"),
    ({"enable_lora": True, "enable_tower_connector_lora": True}, "LoRA on the audio tower"),
    ({"mm_encoder_only": True}, "an encoder apart from the language model"),
    ({"model_impl": "transformers"}, "vLLM serves it as TransformersMultiModalForCausalLM, which is not pooled"),
]


def test_an_engine_that_would_go_around_the_pooling_does_not_start(tiny):
    refusals = ask(tiny.folder, attempts=[options for options, _ in AROUND], **POOLED).refusals
    for refusal, (_, words) in zip(refusals, AROUND, strict=True):
        assert "affinity_pool" in refusal
        assert words in refusal


def test_no_more_audio_is_encoded_at_once_than_memory_was_measured_with(tiny):
    """At keep 0.1 vLLM would let ten times as many clips into a step."""
    requests = [tiny.request(name, keep=0.1, tokens=1) for name in NAMES] * 4
    options = {"max_num_seqs": 32, "max_num_batched_tokens": 760, "enable_prefix_caching": False}
    clips = [Request(one.prompt, [one.clips[0] + 1e-4 * i], 0.1, tokens=1) for i, one in enumerate(requests)]
    session = ask(tiny.folder, clips, **options)
    assert sum(session.encoded) == len(clips)
    assert max(session.encoded) > 1  # and yet clips are encoded together
    order = [len(tiny.judge().rows(tiny.audio[name])) for name in NAMES] * 4
    for count in session.encoded:
        assert sum(order[:count]) <= 760
        order = order[count:]


def test_the_threshold_rule_in_front_of_an_engine_as_it_is(tiny):
    site = affinity_pool.Site(layer=0, threshold=0.98, window=1)
    found = {name: embed(tiny.model, tiny.inputs(tiny.audio[name]), [site])[0] for name in NAMES}
    as_items = [Request(tiny.prompt(), embeddings=one.audio_embeds) for one in found.values()]
    as_prompts = [Request(one.prompt_embeds) for one in found.values()]
    options = {"plugin": False, "enable_mm_embeds": True, "enable_prompt_embeds": True}
    items, prompts = ask(tiny.folder, as_items, as_prompts, **options).turns
    assert sum(one.tokens_after for one in found.values()) < sum(one.tokens_before for one in found.values())
    for name, by_item, by_prompt in zip(NAMES, items, prompts, strict=True):
        with affinity_pool.patch(tiny.model, [site], positions="compact"):
            inputs = tiny.inputs(tiny.audio[name])
            out = tiny.model.generate(
                **inputs, max_new_tokens=8, do_sample=False, output_logits=True, return_dict_in_generate=True
            )
        ids = out.sequences[0, inputs["input_ids"].shape[1] :].tolist()  # vLLM was told to go on after the end
        logprobs = [float(step[0].log_softmax(-1)[token]) for step, token in zip(out.logits, ids, strict=True)]
        for answer in (by_item, by_prompt):
            assert answer.prompt_tokens == found[name].tokens_after
            assert Answer(answer.ids[: len(ids)], answer.logprobs[: len(ids)]).difference(ids, logprobs) < CLOSE


def test_embeddings_pass_through_an_engine_that_pools(tiny):
    found = embed(tiny.model, tiny.inputs(tiny.audio[NAMES[0]]), [affinity_pool.Site(layer=0, keep=0.7)])[0]
    silent = Request(tiny.prompt(), embeddings=found.audio_embeds)
    asking = Request(tiny.prompt(), embeddings=found.audio_embeds, keep=0.3)
    (taken,), (refused,) = ask(tiny.folder, [silent], [asking], enable_mm_embeds=True, **POOLED).turns
    tiny.check(taken, NAMES[:1], 0.7)
    assert "audio given as embeddings is taken as it is" in refused.refusal
