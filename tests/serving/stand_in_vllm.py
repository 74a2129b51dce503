"""A stand-in for the parts of vLLM that the plug-in wraps: they take the same arguments and call each other alike.

Tokens are ints, ``AUDIO`` is the placeholder. A clip is a tensor ``[n, D]``: what the encoder makes of it are its rows.
What vLLM really does is tested by tests/with_vllm; here is what can be said without it.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from types import ModuleType, SimpleNamespace
from typing import Any, NamedTuple

import torch

AUDIO, BEGIN, END = 7, 8, 9


@dataclass
class PromptUpdateDetails:
    full: list[int]
    is_embed: Callable[[list[int]], torch.Tensor] | None = None


@dataclass(frozen=True)
class Update:
    content: PromptUpdateDetails
    item_idx: int


class Place(NamedTuple):
    """Where a clip's tokens are in a prompt."""

    offset: int
    length: int
    is_embed: torch.Tensor | None

    def to_range(self) -> Place:
        return self

    def get_num_embeds(self) -> int:
        return self.length if self.is_embed is None else int(self.is_embed.sum())


class Elem(NamedTuple):
    data: torch.Tensor
    shared: bool = False
    keep_on_cpu: bool = False


@dataclass
class Field:
    shared: bool
    keep_on_cpu: bool

    def build_elems(self, modality: str, key: str, data: torch.Tensor) -> list[Elem]:
        rows = [data] if self.shared else list(data)
        return [Elem(row, self.shared, self.keep_on_cpu) for row in rows]


class MultiModalFieldConfig(NamedTuple):
    field: Field

    @staticmethod
    def batched(modality: str, *, keep_on_cpu: bool = False) -> Any:
        return MultiModalFieldConfig(Field(False, keep_on_cpu))

    @staticmethod
    def shared(modality: str, batch_size: int, *, keep_on_cpu: bool = False) -> Any:
        assert batch_size == 1
        return MultiModalFieldConfig(Field(True, keep_on_cpu))


@dataclass
class ProcessorInputs:
    prompt: list[int]
    mm_data_items: dict[str, Any]
    hf_processor_mm_kwargs: dict[str, Any] = field(default_factory=dict)
    cache: Cache | None = None


class Result(NamedTuple):
    prompt_ids: list[int]
    kwargs: dict[str, list[dict[str, Elem] | None]]
    hashes: dict[str, list[str]]
    prompt_updates: dict[str, list[list[Update]]]


class Cache(dict):  # type: ignore[type-arg]
    """Of clips that were processed: vLLM takes those in it for sent."""

    def invalidate(self, mm_hash: str) -> None:
        self.pop(mm_hash, None)


class EmbeddingItems(list):  # type: ignore[type-arg]
    pass


class DictEmbeddingItems(dict):  # type: ignore[type-arg]
    pass


def _hashes(modality: str, items: Any, request: dict[str, Any]) -> list[str]:
    """Keyword arguments that belong to another modality alone are no part of it."""
    other = {"audio": "images_kwargs", "image": "audio_kwargs"}[modality]
    factors = sorted((name, repr(value)) for name, value in request.items() if name != other)
    return [repr((modality, getattr(item, "tolist", lambda item=item: item)(), factors)) for item in items]


class BaseMultiModalProcessor:
    """Puts placeholders for the one that a prompt has for each clip."""

    def __init__(self, info: Any, dummy_inputs: Any = None) -> None:
        self.info = info
        self.seen: list[dict[str, Any]] = []
        """The keyword arguments that the Hugging Face processor and the model's own methods were given."""

    def get_dummy_inputs(self, seq_len: int, mm_counts: Any, mm_options: Any) -> ProcessorInputs:
        return ProcessorInputs([AUDIO], {"audio": [torch.ones(20, 4)]}, {"rate": 16})

    def _apply_hf_processor_main(self, mm_items: Any, hf_kwargs: Any) -> Any:
        self.seen.append(dict(hf_kwargs))
        return mm_items

    def _get_mm_fields_config(self, hf_inputs: Any, hf_processor_mm_kwargs: Any) -> Any:
        self.seen.append(dict(hf_processor_mm_kwargs))

    def _content(self, rows: int) -> PromptUpdateDetails:
        return PromptUpdateDetails([AUDIO] * rows)

    def _get_mm_prompt_updates(self, mm_items: Any, hf_processor_mm_kwargs: Any, out_mm_kwargs: Any) -> Any:
        self.seen.append(dict(hf_processor_mm_kwargs))
        clips = mm_items.get("audio", [])
        return {"audio": [[Update(self._content(len(clip)), i)] for i, clip in enumerate(clips)]}

    def apply(self, inputs: ProcessorInputs, timing_ctx: Any) -> dict[str, Any]:
        clips, request = inputs.mm_data_items.get("audio", []), inputs.hf_processor_mm_kwargs
        hashes = {modality: _hashes(modality, items, request) for modality, items in inputs.mm_data_items.items()}
        cache = Cache() if inputs.cache is None else inputs.cache
        fresh = {name for names in hashes.values() for name in names if name not in cache}
        names = hashes.get("audio", [])
        missing = [(name, clip) for name, clip in zip(names, clips, strict=True) if name in fresh]
        items = {"audio": [clip for _, clip in missing]}
        self._get_mm_fields_config(self._apply_hf_processor_main(items, request), request)
        out = {"audio": [{"rows": Elem(clip)} for clip in items["audio"]]} if missing else {}
        updates = self._get_mm_prompt_updates(items, request, out)
        for (name, _), item, update in zip(missing, out.get("audio", []), updates["audio"], strict=True):
            cache[name] = item, update
        for name in hashes.get("image", []):
            cache.setdefault(name, ({}, None))
        kwargs = {
            modality: [cache[name][0] if name in fresh else None for name in names]
            for modality, names in hashes.items()
        }
        placed = [[replace(one, item_idx=i) for one in cache[name][1]] for i, name in enumerate(names)]
        result = Result(inputs.prompt, kwargs, hashes, {"audio": placed})
        prompt, places = self._maybe_apply_prompt_updates(inputs.mm_data_items, result)
        return {"prompt": prompt, "kwargs": kwargs.get("audio", []), "hashes": hashes, "places": places["audio"]}

    def _maybe_apply_prompt_updates(self, mm_items: Any, mm_res: Result) -> Any:
        prompt: list[int] = []
        places: list[Place] = []
        for token in mm_res.prompt_ids:
            if token == AUDIO and len(places) < len(mm_res.prompt_updates["audio"]):
                content = mm_res.prompt_updates["audio"][len(places)][0].content
                is_embed = None if content.is_embed is None else content.is_embed(content.full)
                places.append(Place(len(prompt), len(content.full), is_embed))
                prompt += content.full
            else:
                prompt.append(token)
        return prompt, {"audio": places}


class SurroundedProcessor(BaseMultiModalProcessor):
    """Of a model with tokens of its own around a clip's, and a newline in the middle."""

    def _content(self, rows: int) -> PromptUpdateDetails:
        full = [BEGIN, *[AUDIO] * (rows // 2), 5, *[AUDIO] * (rows - rows // 2), END]
        return PromptUpdateDetails(full, lambda tokens: torch.tensor(tokens) == AUDIO)


class ExpandedProcessor(BaseMultiModalProcessor):
    """Of a model whose prompts arrive with the placeholders written out: looks where they are."""

    def _maybe_apply_prompt_updates(self, mm_items: Any, mm_res: Result) -> Any:
        prompt, places, at = mm_res.prompt_ids, [], 0
        for alternatives in mm_res.prompt_updates["audio"]:
            full = alternatives[0].content.full
            while prompt[at : at + len(full)] != full:
                at += 1
            places.append(Place(at, len(full), None))
            at += len(full)
        return prompt, {"audio": places}


class Registry:
    def __init__(self) -> None:
        self.registered: dict[str, str] = {}

    def register_model(self, name: str, model: str) -> None:
        self.registered[name] = model

    def get_supported_archs(self) -> list[str]:
        return [*self.registered, "WhisperForConditionalGeneration", "TransformersMultiModalForCausalLM"]

    def register_processor(self, processor: Any, *, info: Any, dummy_inputs: Any) -> Callable[[Any], Any]:
        def wrapper(model: Any) -> Any:
            model._processor_factory = SimpleNamespace(processor=processor, info=info, dummy_inputs=dummy_inputs)
            return model

        return wrapper


class VerifyAndUpdateConfig:
    @staticmethod
    def verify_and_update_config(vllm_config: Any) -> None:
        return


class Logger:
    def __init__(self) -> None:
        self.said: list[str] = []

    def warning(self, text: str, *arguments: Any) -> None:
        self.said.append("warning: " + text % arguments)

    def info(self, text: str, *arguments: Any) -> None:
        self.said.append("info: " + text % arguments)


class Model(torch.nn.Module):
    """Its encoder makes a clip's own rows, of each clip of a batch."""

    def __init__(self, *, vllm_config: Any, prefix: str = "") -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.ones(1))

    def embed_multimodal(self, **kwargs: Any) -> Any:
        assert set(kwargs) == {"rows"}
        return list(kwargs["rows"])


def with_processor(processor: type) -> type:
    """A model class as vLLM registers it."""
    factory = SimpleNamespace(processor=processor, info="info", dummy_inputs="dummies")
    return type("StandIn", (Model,), {"_processor_factory": factory})


@contextmanager
def installed(version: str = "0.32.0") -> Iterator[SimpleNamespace]:
    """``import vllm`` finds the stand-in; what was imported of the plug-in with it is forgotten afterwards."""
    registry, logger = Registry(), Logger()
    contents: dict[str, dict[str, Any]] = {
        "vllm": {"__version__": version, "ModelRegistry": registry},
        "vllm.logger": {"init_logger": lambda name: logger},
        "vllm.multimodal": {"MULTIMODAL_REGISTRY": registry},
        "vllm.multimodal.cache": {"BaseMultiModalProcessorCache": Cache},
        "vllm.multimodal.inputs": {"MultiModalFieldConfig": MultiModalFieldConfig, "PlaceholderRange": Place},
        "vllm.multimodal.parse": {"EmbeddingItems": EmbeddingItems, "DictEmbeddingItems": DictEmbeddingItems},
        "vllm.multimodal.processing": {
            "PromptUpdateDetails": PromptUpdateDetails,
            "BaseMultiModalProcessor": BaseMultiModalProcessor,
        },
        "vllm.model_executor": {},
        "vllm.model_executor.models": {},
        "vllm.model_executor.models.config": {
            "VerifyAndUpdateConfig": VerifyAndUpdateConfig,
            "MODELS_CONFIG_MAP": {},
        },
        "vllm.model_executor.models.qwen2_audio": {
            "Qwen2AudioForConditionalGeneration": with_processor(BaseMultiModalProcessor)
        },
        "vllm.model_executor.models.qwen2_5_omni_thinker": {
            "Qwen2_5OmniThinkerForConditionalGeneration": with_processor(BaseMultiModalProcessor)
        },
        "vllm.model_executor.models.voxtral": {"VoxtralForConditionalGeneration": with_processor(ExpandedProcessor)},
        "vllm.model_executor.models.glmasr": {"GlmAsrForConditionalGeneration": with_processor(SurroundedProcessor)},
    }
    before = set(sys.modules)
    for name, attributes in contents.items():
        module = ModuleType(name)
        vars(module).update(attributes)
        sys.modules[name] = module
    try:
        yield SimpleNamespace(registry=registry, logger=logger, modules=contents)
    finally:
        for name in set(sys.modules) - before:
            if name.split(".")[0] == "vllm" or name.startswith("affinity_pool.serving.vllm"):
                del sys.modules[name]
