"""The releases of vLLM for which the seam is made. vLLM promises no stability there, and moves every two weeks."""

from __future__ import annotations

import inspect
import re
from importlib import import_module
from typing import Any

RUN = ("0.31", "0.32")
"""Releases with which the tests under tests/with_vllm were run."""

_PROCESSOR = "vllm.multimodal.processing", "BaseMultiModalProcessor"
_CACHE = "vllm.multimodal.cache", "BaseMultiModalProcessorCache"
_CONFIG = "vllm.model_executor.models.config", "VerifyAndUpdateConfig"
_FIELD = "vllm.multimodal.inputs", "MultiModalFieldConfig"
_PLACE = "vllm.multimodal.inputs", "PlaceholderRange"

SEAM: dict[tuple[str, str, str], tuple[str, ...]] = {
    (*_PROCESSOR, "apply"): ("self", "inputs", "timing_ctx"),
    (*_PROCESSOR, "get_dummy_inputs"): ("self", "seq_len", "mm_counts", "mm_options"),
    (*_PROCESSOR, "_apply_hf_processor_main"): ("self", "mm_items", "hf_kwargs"),
    (*_PROCESSOR, "_get_mm_fields_config"): ("self", "hf_inputs", "hf_processor_mm_kwargs"),
    (*_PROCESSOR, "_get_mm_prompt_updates"): ("self", "mm_items", "hf_processor_mm_kwargs", "out_mm_kwargs"),
    (*_PROCESSOR, "_maybe_apply_prompt_updates"): ("self", "mm_items", "mm_res"),
    (*_CACHE, "invalidate"): ("self", "mm_hash"),
    (*_CONFIG, "verify_and_update_config"): ("vllm_config",),
    (*_FIELD, "batched"): ("modality", "keep_on_cpu"),
    (*_FIELD, "shared"): ("modality", "batch_size", "keep_on_cpu"),
    (*_PLACE, "get_num_embeds"): ("self",),
}
"""Methods that are wrapped or called there, and the names of their arguments."""


def unfit() -> str | None:
    """Why the vLLM that is installed cannot be wrapped; None if it can."""
    version: str = import_module("vllm").__version__
    if not re.fullmatch(rf"({'|'.join(map(re.escape, RUN))})\.\d+(\+.*)?", version):  # no nightly or candidate either
        return f"this is vLLM {version}, affinity_pool was run with {' and '.join(RUN)}; its own classes stay in place"
    for (module, owner, name), expected in SEAM.items():
        found = _arguments(module, owner, name)
        if found != expected:
            return (
                f"{owner}.{name} of vLLM {version} takes {_words(found)}, affinity_pool was made for "
                f"{_words(expected)}; vLLM's own classes stay in place"
            )
    return None


def _arguments(module: str, owner: str, name: str) -> tuple[str, ...] | None:
    try:
        method: Any = getattr(getattr(import_module(module), owner), name)
    except (ImportError, AttributeError):
        return None
    return tuple(inspect.signature(method).parameters)


def _words(arguments: tuple[str, ...] | None) -> str:
    return "nothing: it is not there" if arguments is None else f"({', '.join(arguments)})"
