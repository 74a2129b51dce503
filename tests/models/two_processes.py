"""What each of two processes does for test_parallel_training.py, which starts `two_processes.py RANK FOLDER`.

A case is a list of steps that put things on a model. Each process trains it on rows of its own, and leaves in the
folder what it found.
"""

from __future__ import annotations

import copy
import importlib.util
import sys
from collections.abc import Callable
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import Any

import torch
from random_speech import DUAL, KEPT, RANGES, SPEECH, labelled, prompt, qwen2, speech_model
from torch import Tensor, distributed, nn
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict

from affinity_pool.models import Handle, patch

RATE = 0.02
ROWS = [[SPEECH[0]], [SPEECH[1], prompt("ab", 24, "cdefg", 9, "hijkl", seed=8)]]
"""Of each process: different ones, of different lengths."""
PATCHES: dict[str, dict[str, Any]] = {
    "patch": {"sites": DUAL},
    "patch with shares": {"sites": KEPT, "positions": "compact", "attention": "proportional"},
    "patch with ranges": {"sites": RANGES},
}
CASES = [
    ["patch", "ddp"],
    ["ddp", "patch"],
    ["patch with ranges", "enable", "ddp"],
    *([["lora", "patch", "ddp"]] if importlib.util.find_spec("peft") else []),
    ["patch", "shard"],
    ["shard", "patch"],
    ["patch", "shard in bfloat16"],
    ["shard in bfloat16", "patch with shares"],
    ["enable", "patch", "shard"],
    ["checkpoint", "patch", "shard"],
    ["patch", "checkpoint", "shard"],
    ["patch", "shard", "checkpoint"],
    ["checkpoint", "shard", "patch"],
    ["patch", "checkpoint reentrant", "shard"],
    ["checkpoint reentrant", "shard in bfloat16", "patch with shares"],
]


def options(steps: list[str]) -> dict[str, Any]:
    """torch's wrapper runs layers again with the cache they were given: without the patch too it may not be used."""
    return {"use_cache": False} if any("checkpoint" in step for step in steps) else {}


def shard(model: Any, dtype: torch.dtype | None = None) -> Any:
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard

    # Gradients are averaged in float32, so that all that is found is what one process finds.
    policy = MixedPrecisionPolicy(param_dtype=dtype, reduce_dtype=torch.float32)
    how = {"mesh": init_device_mesh("cpu", (2,)), "mp_policy": policy}
    for layer in qwen2(model).layers:
        fully_shard(layer, **how)
    return fully_shard(model, **how)


def checkpoint(model: Any, reentrant: bool = False) -> Any:
    from torch.distributed.algorithms._checkpoint import checkpoint_wrapper as torchs
    from transformers.models.qwen2.modeling_qwen2 import Qwen2DecoderLayer

    impl = torchs.CheckpointImpl.REENTRANT if reentrant else torchs.CheckpointImpl.NO_REENTRANT
    torchs.apply_activation_checkpointing(
        model,
        partial(torchs.checkpoint_wrapper, checkpoint_impl=impl),
        check_fn=lambda module: isinstance(module, Qwen2DecoderLayer),
    )
    return model


def enable(model: Any) -> Any:
    model.gradient_checkpointing_enable()
    return model


def lora(model: Any) -> Any:
    import peft

    torch.manual_seed(7)
    names = r".*language_model.*\.(q_proj|down_proj)"
    return peft.get_peft_model(model, peft.LoraConfig(r=2, target_modules=names, init_lora_weights=False))


STEPS: dict[str, Callable[[Any], Any]] = {
    "ddp": nn.parallel.DistributedDataParallel,
    "shard": shard,
    "shard in bfloat16": partial(shard, dtype=torch.bfloat16),
    "checkpoint": checkpoint,
    "checkpoint reentrant": partial(checkpoint, reentrant=True),
    "enable": enable,
    "lora": lora,
}


def built(steps: list[str]) -> tuple[Any, Any, Handle]:
    """A model with these steps taken: what to call, the model inside, and the patch."""
    called = bare = copy.deepcopy(speech_model()).train()
    handle = None
    for step in steps:
        if step in PATCHES:
            handle = patch(called, **PATCHES[step])
        else:
            called = STEPS[step](called)
    assert handle is not None
    return called, bare, handle


def whole(tensor: Any) -> Tensor:
    """A tensor of which the processes may hold a part each."""
    return (tensor.full_tensor() if hasattr(tensor, "full_tensor") else tensor).detach().clone()


def gradients(model: nn.Module) -> dict[str, Tensor]:
    found = {name: weight.grad for name, weight in model.named_parameters() if weight.grad is not None}
    return {name.replace("_checkpoint_wrapped_module.", ""): whole(grad) for name, grad in found.items()}


def step(model: nn.Module) -> None:
    with torch.no_grad():
        for weight in model.parameters():
            if weight.grad is not None:
                weight -= RATE * weight.grad
                weight.grad = None


def train(steps: list[str], rank: int) -> dict[str, Any]:
    """Two steps, what one would save after them, and logits with the patch and without."""
    called, bare, handle = built(steps)
    inputs = labelled(ROWS[rank]) | options(steps)
    losses, learnt, audio = [], [], []
    for number in (0, 1):
        bare.train()
        torch.manual_seed(10 * number + rank)
        loss = called(**inputs).loss
        loss.backward()
        losses.append(loss.detach())
        learnt.append(gradients(bare))
        audio.append([site.audio_after for site in handle.stats.sites])
        step(bare)
    bare.eval()
    saved = get_model_state_dict(bare, options=StateDictOptions(full_state_dict=True))
    with torch.no_grad():
        pooled = called(**inputs).logits
        handle.remove()
        plain = called(**inputs).logits
    found = {"losses": losses, "gradients": learnt, "audio": audio, "pooled": pooled, "plain": plain}
    return found | {"saved": {name: whole(weight) for name, weight in saved.items()}}


def main(rank: int, folder: Path) -> None:
    torch.set_num_threads(1)
    # One group for all cases: beginning and ending one for each has ended a process by SIGSEGV, once in many runs.
    meet, limit = f"file://{folder}/meet", timedelta(seconds=60)
    distributed.init_process_group("gloo", init_method=meet, rank=rank, world_size=2, timeout=limit)
    for number, steps in enumerate(CASES):
        try:
            torch.save(train(steps, rank), folder / f"{number}-{rank}.pt")
        except Exception as error:  # the other one, which waits for this one, ends with it
            raise RuntimeError(f"process {rank}: {' then '.join(steps)}") from error
    distributed.destroy_process_group()


if __name__ == "__main__":
    main(int(sys.argv[1]), Path(sys.argv[2]))
