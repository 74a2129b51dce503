"""What is looked at when an engine starts: its settings, and what would go around the pooling.

vLLM asks a class of each architecture to check the whole configuration, once, before anything is loaded. What is found
there travels with the model's config to the process in which requests arrive.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from .architectures import ARCHITECTURES
from .settings import KEY, Settings, misplaced, of_config

ENGINE = "affinity_pool_engine"
"""Attribute of vLLM's ``ModelConfig`` that holds an :class:`Engine`."""


@dataclass(frozen=True)
class Engine:
    """What requests must know of the engine that they go to."""

    settings: Settings
    encoder_budget: int
    """Rows that the audio encoder may make at once, before pooling."""
    refusal: str | None
    """Why no request may be pooled here."""


def logger() -> Any:
    """vLLM shows what loggers below its own say."""
    from vllm.logger import init_logger

    return init_logger(f"vllm.{__name__}")


def take() -> None:
    """Register the pooled classes, and for all architectures that there are a check of the configuration."""
    import vllm
    from vllm.model_executor.models.config import MODELS_CONFIG_MAP

    for name in ARCHITECTURES:
        vllm.ModelRegistry.register_model(name, f"{__package__}.models:{name}-{vllm.__version__}")
    for name in vllm.ModelRegistry.get_supported_archs():
        own = MODELS_CONFIG_MAP.get(name)
        if not getattr(own, "looks_for_pooling", False):
            MODELS_CONFIG_MAP[name] = _check(own, look_at if name in ARCHITECTURES else look_at_another)


def _check(own: Any, look: Callable[[Any], None]) -> Any:
    """A class as vLLM asks for the check of a configuration, before that which the architecture has of its own."""
    from vllm.model_executor.models.config import VerifyAndUpdateConfig

    class Check(own or VerifyAndUpdateConfig):  # type: ignore[misc]
        looks_for_pooling = True

        @classmethod
        def verify_and_update_config(cls, vllm_config: Any) -> None:
            super().verify_and_update_config(vllm_config)
            look(vllm_config)

    return Check


def look_at_another(vllm_config: Any) -> None:
    """Of an architecture that is not pooled.

    Raises:
        ValueError: its settings say that it is.
    """
    model = vllm_config.model_config
    if getattr(model.hf_config, KEY, None) is not None:
        raise ValueError(
            f"{KEY} is in the model's config, but vLLM serves it as {model.architecture}, which is not pooled: only "
            f"{', '.join(ARCHITECTURES)} are"
        )


def look_at(vllm_config: Any) -> None:
    """Note on vLLM's ``ModelConfig`` what requests must know.

    Raises:
        ValueError: the settings make no sense, or something in this engine would go around the pooling they ask for.
    """
    model = vllm_config.model_config
    settings = of_config(model.hf_config)
    _check_processor_kwargs(model.multimodal_config.mm_processor_kwargs or {})
    refusal = _around_the_seam(vllm_config)
    if refusal and settings is not None:
        raise ValueError(f"{KEY} is in the model's config, but {refusal}")
    scheduler = vllm_config.scheduler_config
    budget = min(scheduler.max_num_encoder_input_tokens, scheduler.max_num_seqs * model.max_model_len)
    setattr(model, ENGINE, Engine(settings or Settings(), budget, refusal))
    if settings is not None:
        logger().info(
            "audio tokens are pooled: %g of them are left, requests may ask for %g to %g",
            settings.default,
            settings.least,
            settings.most,
        )


def _check_processor_kwargs(kwargs: Mapping[str, Any]) -> None:
    """vLLM hands those of an engine to the Hugging Face processor alone, past the plug-in."""
    if KEY in kwargs or misplaced(kwargs):
        raise ValueError(
            f"{KEY} is in the engine's mm_processor_kwargs, where it would do nothing: a default for all requests "
            f'belongs into the model\'s config, --hf-overrides \'{{"{KEY}": {{"keep": 0.8}}}}\''
        )


def _around_the_seam(vllm_config: Any) -> str | None:
    """What in this configuration would serve unpooled rows for pooled placeholders, or was never tried."""
    multimodal = vllm_config.model_config.multimodal_config
    if vllm_config.lora_config is not None and vllm_config.lora_config.enable_tower_connector_lora:
        return (
            "LoRA on the audio tower (enable_tower_connector_lora) counts the encoder's rows by the pooled placeholders"
        )
    if vllm_config.compilation_config.cudagraph_mm_encoder:
        return "CUDA graphs of the encoder (cudagraph_mm_encoder) go around the function that pools"
    if vllm_config.ec_transfer_config is not None or multimodal.mm_encoder_only:
        return "an encoder apart from the language model (ec_transfer_config, mm_encoder_only) was never tried"
    return None


def of(model_config: Any) -> Engine:
    """What :func:`look_at` noted.

    Raises:
        RuntimeError: it never looked.
    """
    engine = getattr(model_config, ENGINE, None)
    if engine is None:
        raise RuntimeError(
            "vLLM did not ask affinity_pool about the configuration of this engine: set VLLM_PLUGINS to leave the "
            "plug-in out, and report it"
        )
    return engine
