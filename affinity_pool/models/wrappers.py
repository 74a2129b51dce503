"""Models inside other modules: peft's adapters, data parallel training, torch.compile, averaged weights."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

_INSIDE: dict[str, Callable[[Any], Any]] = {
    "OptimizedModule": lambda module: module._orig_mod,  # torch.compile(model)
    "DistributedDataParallel": lambda module: module.module,
    "AveragedModel": lambda module: module.module,
    "PeftModel": lambda module: module.get_base_model(),
}
_UNFIT = {
    "DataParallel": "it copies the model to every GPU at every call: use DistributedDataParallel",
    "FullyShardedDataParallel": "patch the model first, and wrap what patch() has changed",
    "DeepSpeedEngine": "patch its .module before deepspeed.initialize()",
    "Pipeline": "patch its .model",
}


def unwrapped(model: Any) -> Any:
    """The transformers model inside, whatever is around it; other things are returned as they are.

    Raises:
        NotImplementedError: it is inside something that runs it in ways that a patch cannot follow.
    """
    seen = set()
    while id(model) not in seen:
        seen.add(id(model))
        names = [kind.__name__ for kind in type(model).__mro__]
        if name := next((name for name in names if name in _UNFIT), None):
            raise NotImplementedError(f"a model inside {name} cannot be patched: {_UNFIT[name]}")
        if getattr(getattr(model, "active_peft_config", None), "is_prompt_learning", False):
            raise NotImplementedError(
                "a PeftModel of virtual tokens cannot be patched: it puts them before the prompt, where pooling knows "
                "nothing of them. Adapters inside the layers (LoRA and its kin) can be"
            )
        if name := next((name for name in names if name in _INSIDE), None):
            model = _INSIDE[name](model)
    return model
