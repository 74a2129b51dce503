"""The seam before a stand-in for vLLM's processor and model."""

from __future__ import annotations

import re
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest
import stand_in_vllm as vllm
import torch
from stand_in_vllm import AUDIO, BEGIN, END, ProcessorInputs

import affinity_pool

TEXT = 1


@pytest.fixture(autouse=True)
def stand_in() -> Iterator[SimpleNamespace]:
    with vllm.installed() as found:
        yield found


def clip(rows: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(rows, 4, generator=torch.Generator().manual_seed(seed + rows))


def model_of(architecture: str) -> Any:
    from affinity_pool.serving.vllm import models

    return getattr(models, f"{architecture}-0.32.0")


def info_of(written: Any, refusal: str | None = None, budget: int = 1000) -> Any:
    from affinity_pool.serving.vllm.engine import ENGINE, Engine
    from affinity_pool.serving.vllm.settings import Settings, of_config

    settings = of_config(SimpleNamespace(affinity_pool=written)) or Settings()
    return SimpleNamespace(
        ctx=SimpleNamespace(model_config=SimpleNamespace(**{ENGINE: Engine(settings, budget, refusal)}))
    )


def processor(written: Any = None, architecture: str = "Qwen2AudioForConditionalGeneration", **engine: Any) -> Any:
    return model_of(architecture)._processor_factory.processor(info_of(written, **engine))


def stock(architecture: type = vllm.BaseMultiModalProcessor) -> Any:
    return architecture(None)


def request(*clips: Any, keep: float | None = None, cache: Any = None, **more: Any) -> ProcessorInputs:
    prompt = [TEXT]
    for _ in clips:
        prompt += [AUDIO, TEXT]
    kwargs = more if keep is None else {**more, "affinity_pool": {"keep": keep}}
    return ProcessorInputs(prompt, {"audio": list(clips)}, kwargs, cache)


def embed(architecture: str, answer: dict[str, Any]) -> list[torch.Tensor]:
    """What the model makes of the features that lie with an answer, as one batch."""
    model = model_of(architecture)(vllm_config=None)
    items = answer["kwargs"]
    batch = {key: [item[key].data for item in items] for key in items[0]}
    if "affinity_pool_promise" in batch:
        batch["affinity_pool_promise"] = torch.stack(batch["affinity_pool_promise"])
    return list(model.embed_multimodal(**batch))


def without_tensors(answer: dict[str, Any]) -> Any:
    return answer["prompt"], answer["hashes"], [set(item) for item in answer["kwargs"]], answer["places"]


@pytest.mark.parametrize("written", [None, {"keep": 1.0}, {"keep": {"min": 0.2}}], ids=str)
@pytest.mark.parametrize("keep", [None, 1.0, 1])
def test_where_all_is_kept_everything_is_vllms_own(written, keep):
    answer = processor(written).apply(request(clip(10), clip(7), keep=keep, rate=16), None)
    assert without_tensors(answer) == without_tensors(stock().apply(request(clip(10), clip(7), rate=16), None))


@pytest.mark.parametrize(
    ("written", "keep", "share"), [({"keep": 0.5}, None, 0.5), (None, 0.3, 0.3), ({"keep": 0.5}, 0.9, 0.9)]
)
@pytest.mark.parametrize("architecture", ["Qwen2AudioForConditionalGeneration", "GlmAsrForConditionalGeneration"])
def test_promise_and_rows_are_one_number(written, keep, share, architecture):
    clips = [clip(10), clip(7), clip(1)]
    answer = processor(written, architecture).apply(request(*clips, keep=keep), None)
    promised = [place.get_num_embeds() for place in answer["places"]]
    assert promised == [affinity_pool.rows_left(len(one), share) for one in clips]
    assert answer["prompt"].count(AUDIO) == sum(promised)
    for rows, one, count in zip(embed(architecture, answer), clips, promised, strict=True):
        assert torch.equal(rows, affinity_pool.pool_to(one, count).values)


def test_another_number_of_rows_than_the_formula_says_is_told(stand_in):
    answer = processor({"keep": 0.5}).apply(request(clip(10)), None)
    embed("Qwen2AudioForConditionalGeneration", answer)
    assert stand_in.logger.said == []
    answer["kwargs"][0]["rows"] = vllm.Elem(clip(12), False)
    (rows,) = embed("Qwen2AudioForConditionalGeneration", answer)
    assert torch.equal(rows, affinity_pool.pool_to(clip(12), 5).values)
    assert (
        "made [12] rows of clips for which vLLM's formula says [Promise(rows=5, encoded=10)]" in stand_in.logger.said[0]
    )


def test_text_around_and_in_the_middle_of_a_clip_stays():
    answer = processor({"keep": 0.5}, "GlmAsrForConditionalGeneration").apply(request(clip(8)), None)
    assert answer["prompt"] == [TEXT, BEGIN, *[AUDIO] * 4, 5, END, TEXT]
    assert answer["places"][0].is_embed.tolist() == [False, True, True, True, True, False, False]


def test_the_models_own_methods_never_see_the_key():
    made = processor({"keep": 0.5})
    made.apply(request(clip(10), keep=0.3, rate=16), None)
    assert made.seen == [{"rate": 16}] * 3


def test_a_clips_hash_holds_the_share_and_nothing_else():
    def hashes(written: Any, keep: float | None) -> list[str]:
        return processor(written).apply(request(clip(10), keep=keep), None)["hashes"]["audio"]

    assert hashes({"keep": 0.5}, None) == hashes(None, 0.5) == hashes({"keep": 0.7}, 0.5)
    assert hashes(None, None) == hashes({"keep": 0.5}, 1.0) == stock().apply(request(clip(10)), None)["hashes"]["audio"]
    assert len({*hashes(None, 0.5), *hashes(None, 0.51), *hashes(None, None)}) == 3


def test_an_image_beside_a_clip_is_the_same_whatever_is_left_of_the_clip():
    def image(keep: float | None) -> list[str]:
        asked = ProcessorInputs(
            [AUDIO], {"audio": [clip(10)], "image": ["a"]}, request(keep=keep).hf_processor_mm_kwargs
        )
        return processor({"keep": 0.5}).apply(asked, None)["hashes"]["image"]

    assert image(None) == image(0.3) == image(1.0)


def test_a_clip_from_vllms_cache_keeps_its_promise():
    made, cache = processor({"keep": 0.5}), vllm.Cache()
    first = made.apply(request(clip(10), cache=cache), None)
    again = made.apply(request(clip(7), clip(10), cache=cache), None)
    assert again["kwargs"][1] is None
    assert [place.get_num_embeds() for place in again["places"]] == [4, 5]
    all_cached = made.apply(request(clip(10), cache=cache), None)
    assert all_cached["prompt"] == first["prompt"]
    other = made.apply(request(clip(10), keep=0.8, cache=cache), None)
    assert other["places"][0].get_num_embeds() == 8


def test_memory_is_measured_with_clips_as_the_encoder_makes_them():
    made = processor({"keep": {"max": 0.5}})
    dummy = made.get_dummy_inputs(100, {"audio": 1}, None)
    assert dummy.hf_processor_mm_kwargs["rate"] == 16  # the model's own
    answer = made.apply(dummy, None)
    assert answer["places"][0].get_num_embeds() == 20
    assert set(answer["kwargs"][0]) == {"rows"}


def test_clips_beyond_what_was_measured_are_not_encoded_at_once():
    made = processor({"keep": 0.1}, budget=25)
    answers = [made.apply(request(clip(10, seed)), None) for seed in range(6)]
    numbers = [int(answer["kwargs"][0]["affinity_pool_batch"].data) for answer in answers]
    assert [numbers.count(number) for number in dict.fromkeys(numbers)] == [2, 2, 2]
    for answer in answers:
        promise, batch = (answer["kwargs"][0][f"affinity_pool_{name}"] for name in ("promise", "batch"))
        assert batch.shared  # else vLLM would batch them
        assert promise.keep_on_cpu  # else reading them would wait for the device
        assert batch.keep_on_cpu


def test_embeddings_are_taken_as_they_are():
    rows = vllm.EmbeddingItems([clip(10)])
    made = processor({"keep": 0.5})
    assert made.apply(ProcessorInputs([AUDIO], {"audio": rows}), None)["places"][0].get_num_embeds() == 10
    assert made.apply(ProcessorInputs([AUDIO], {"audio": rows}, {"affinity_pool": None}), None)["places"]
    for given in (rows, vllm.DictEmbeddingItems({"audio_embeds": rows})):
        with pytest.raises(
            ValueError, match=r"audio given as embeddings is taken as it is, so keep=0\.3 cannot be had"
        ):
            made.apply(ProcessorInputs([AUDIO], {"audio": given}, {"affinity_pool": {"keep": 0.3}}), None)


def test_an_engine_that_cannot_pool_serves_unpooled_and_refuses_who_asks():
    made = processor(None, refusal="the moon is full")
    assert made.apply(request(clip(10)), None)["places"][0].get_num_embeds() == 10
    assert made.apply(request(clip(10), keep=1.0), None)["places"][0].get_num_embeds() == 10
    with pytest.raises(ValueError, match=r"keep=0\.5 cannot be had: the moon is full"):
        made.apply(request(clip(10), keep=0.5), None)


def test_a_prompt_without_audio_passes():
    assert processor({"keep": 0.5}).apply(ProcessorInputs([TEXT], {}), None)["prompt"] == [TEXT]


def expanded(*clips: torch.Tensor) -> list[int]:
    prompt = [TEXT]
    for one in clips:
        prompt += [BEGIN, *[AUDIO] * len(one)]
    return [*prompt, TEXT]


def test_a_prompt_that_arrives_expanded_is_cut_at_each_clip():
    clips = clip(10), clip(7)
    made = processor({"keep": 0.5}, "VoxtralForConditionalGeneration")
    answer = made.apply(ProcessorInputs(expanded(*clips), {"audio": list(clips)}), None)
    assert answer["prompt"] == [TEXT, BEGIN, *[AUDIO] * 5, BEGIN, *[AUDIO] * 4, TEXT]
    assert [place[:2] for place in answer["places"]] == [(2, 5), (8, 4)]
    whole = made.apply(
        ProcessorInputs(expanded(*clips), {"audio": list(clips)}, {"affinity_pool": {"keep": 1.0}}), None
    )
    assert whole["prompt"] == expanded(*clips)


@pytest.mark.parametrize(("written", "heard"), [([9], [10]), ([9, 8], [8, 9]), ([9], [9, 9]), ([9, 9], [9])])
def test_an_expanded_prompt_that_does_not_fit_its_clips_is_refused(written, heard):
    made = processor({"keep": 0.5}, "VoxtralForConditionalGeneration")
    prompt = expanded(*map(clip, written))
    with pytest.raises(ValueError, match=re.escape(f"runs of {written} audio placeholders for clips of {heard}")):
        made.apply(ProcessorInputs(prompt, {"audio": list(map(clip, heard))}), None)


def test_a_clip_whose_prompt_was_refused_is_sent_with_the_next_request():
    made, cache = processor({"keep": 0.5}, "VoxtralForConditionalGeneration"), vllm.Cache()
    first, second = clip(10), clip(7)
    made.apply(ProcessorInputs(expanded(first), {"audio": [first]}, {}, cache), None)
    with pytest.raises(ValueError, match="audio placeholders for clips of"):
        made.apply(
            ProcessorInputs(expanded(first, clip(6)), {"audio": [first, second], "image": ["a"]}, {}, cache), None
        )
    answer = made.apply(ProcessorInputs(expanded(first, second), {"audio": [first, second]}, {}, cache), None)
    assert [features is None for features in answer["kwargs"]] == [True, False]
    assert not any("image" in name for name in cache)


def test_a_model_that_expands_prompts_unknown_to_us_is_never_half_cut(stand_in):
    """As Voxtral would be without a wrapper of its own: the shorter pattern is found in the longer run."""
    from affinity_pool.serving.vllm import seam

    unknown = seam.pooled(vllm.with_processor(vllm.ExpandedProcessor), seam.PooledProcessor, seam.PooledModel)
    made = unknown._processor_factory.processor(info_of({"keep": 0.5}))
    with pytest.raises(ValueError, match="has 10 audio placeholders and its clips take 5: its text must not hold"):
        made.apply(ProcessorInputs(expanded(clip(10)), {"audio": [clip(10)]}), None)


def test_placeholders_in_a_prompts_own_text_are_refused_where_clips_are_pooled():
    made, asked = processor({"keep": 0.5}), ProcessorInputs([AUDIO, TEXT, AUDIO], {"audio": [clip(10)]})
    with pytest.raises(ValueError, match="has 6 audio placeholders and its clips take 5: its text must not hold"):
        made.apply(asked, None)
    asked.hf_processor_mm_kwargs = {"affinity_pool": {"keep": 1}}
    assert made.apply(asked, None)["prompt"] == stock().apply(asked, None)["prompt"]


def test_a_clip_in_pieces_is_never_half_cut():
    """As audio between a video's frames: the tokens in the prompt are not those that were promised."""
    from affinity_pool.serving.vllm import seam

    class InPieces(vllm.BaseMultiModalProcessor):
        def _maybe_apply_prompt_updates(self, mm_items: Any, mm_res: Any) -> Any:
            pieces = [AUDIO] * 3 + [TEXT] + [AUDIO] * 2
            mask = torch.tensor(pieces[:5]) == AUDIO
            return pieces, {"audio": [vllm.Place(0, 5, mask)]}

    made = seam.pooled(vllm.with_processor(InPieces), seam.PooledProcessor, seam.PooledModel)
    with pytest.raises(ValueError, match=r"use_audio_in_video"):
        made._processor_factory.processor(info_of({"keep": 0.5})).apply(request(clip(10)), None)


def test_a_clip_that_would_take_another_number_in_another_place_is_refused():
    from affinity_pool.serving.vllm import seam

    class Undecided(vllm.BaseMultiModalProcessor):
        def _get_mm_prompt_updates(self, *arguments: Any) -> Any:
            return {"audio": [[vllm.Update(self._content(rows), 0) for rows in (10, 12)]]}

    made = seam.pooled(vllm.with_processor(Undecided), seam.PooledProcessor, seam.PooledModel)
    with pytest.raises(ValueError, match="a clip may take another number of tokens in another place"):
        made._processor_factory.processor(info_of({"keep": 0.5})).apply(request(clip(10)), None)


def test_what_else_vllm_registers_with_a_model_stays():
    factory = model_of("Qwen2AudioForConditionalGeneration")._processor_factory
    assert (factory.info, factory.dummy_inputs) == ("info", "dummies")
    assert model_of("Qwen2AudioForConditionalGeneration") is model_of("Qwen2AudioForConditionalGeneration")


def test_positions_by_the_length_of_features_follow_the_placeholders():
    from affinity_pool.serving.vllm import seam, special

    class Omni(vllm.with_processor(vllm.BaseMultiModalProcessor)):  # type: ignore[misc]
        def iter_mm_features(self, mm_features: Any) -> Any:
            for one in mm_features:
                yield one.mm_position.offset, one.modality, {"audio_feature_length": 1000, "grid": 3}

    made = seam.pooled(Omni, seam.PooledProcessor, special.OmniModel)(vllm_config=None)
    features = [
        SimpleNamespace(modality="audio", mm_position=SimpleNamespace(offset=3, length=5)),
        SimpleNamespace(modality="image", mm_position=SimpleNamespace(offset=30, length=50)),
        SimpleNamespace(modality="video", mm_position=SimpleNamespace(offset=3, length=60)),  # holds the clip
    ]
    audio, image, _ = made.iter_mm_features(features)
    assert audio == (3, "audio", {"audio_feature_length": 20, "grid": 3})
    assert ((20 - 1) // 2 + 1 - 2) // 2 + 1 == 5  # vLLM's formula
    assert image == (30, "image", {"audio_feature_length": 1000, "grid": 3})


def test_a_loop_in_python_is_told(stand_in):
    with affinity_pool.use("reference"):
        model_of("Qwen2AudioForConditionalGeneration")(vllm_config=None)
    assert [line for line in stand_in.logger.said if "pooled by a loop in Python" in line]
