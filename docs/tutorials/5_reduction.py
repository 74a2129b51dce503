"""
A reduction of one's own
========================

A site can do something else than Affinity Pooling. What it does is a function of three tensors; the patch does the
rest: positions, masks, caches, ``generate()``. Here every other audio token is dropped, and compared with pooling to as
many tokens.
"""

# %%
# The bundled model, its processor, and a question with an answer that can be counted. Run this in a clone of the
# repository, where the model is.

import soundfile
import torch
from torch import Tensor
from transformers import AutoProcessor, Qwen2AudioForConditionalGeneration

import affinity_pool
from affinity_pool import PooledPadded, Site
from affinity_pool.study.bundled import BUNDLED

processor = AutoProcessor.from_pretrained(BUNDLED / "checkpoint")
model = Qwen2AudioForConditionalGeneration.from_pretrained(BUNDLED / "checkpoint", dtype=torch.float32)
turn = [{"role": "user", "content": [{"type": "audio", "audio_url": "-"}, {"type": "text", "text": "transcribe"}]}]
prompt = processor.apply_chat_template(turn, add_generation_prompt=True, tokenize=False)


def transcribe(recording: str, sites: list[Site]) -> tuple[str, int]:
    """The words, and the audio tokens that were left."""
    audio, rate = soundfile.read(BUNDLED / "recordings" / f"{recording}.flac", dtype="float32")
    inputs = processor(text=prompt, audio=audio, sampling_rate=rate, return_tensors="pt")
    with affinity_pool.patch(model, sites) as handle:
        tokens = model.generate(**inputs, max_new_tokens=16, do_sample=False)[0, inputs["input_ids"].shape[1] :]
    return processor.tokenizer.decode(tokens, skip_special_tokens=True), handle.stats.sites[-1].audio_after[0]


# %%
# The reduction takes ``x [B, T, D]``, padded on the left, ``lengths [B]`` and ``mergeable [B, T]``, True at audio. It
# returns what ``pool_padded`` returns: text as it is, in order, ``segment_ids`` for where each row went and -1 for what
# was dropped, ``counts`` for how many rows each column stands for.


def drop_every_other(x: Tensor, lengths: Tensor | None, mergeable: Tensor) -> PooledPadded:
    """Of each prompt's audio tokens the first, the third, and so on."""
    width = x.shape[1]
    padding = 0 if lengths is None else width - lengths[:, None]
    odd = mergeable.cumsum(1) % 2 == 1
    stays = (torch.arange(width, device=x.device) >= padding) & (~mergeable | odd)
    counts, order = stays.int().sort(dim=1, stable=True)  # what stays goes to the right, in order
    values = x.gather(1, order[..., None].expand_as(x)).masked_fill(counts[..., None] == 0, 0)
    left = counts.sum(1, dtype=torch.int32)
    segment_ids = torch.where(stays, stays.cumsum(1) - 1 + width - left[:, None], -1)
    return PooledPadded(values, left, segment_ids.int(), counts)


# %%
# At the input, and before a middle layer, beside Affinity Pooling to half of the tokens.

for recording in ("allison-keys", "allison-number", "allison-long"):
    print(recording)
    for layer in (0, 4):
        for name, site in (("drop", Site(layer, reduction=drop_every_other)), ("pool", Site(layer, keep=0.5))):
            words, left = transcribe(recording, [site])
            print(f"  layer {layer}, {name}, {left} tokens: {words}")

# %%
# Three recordings show that it works, not which is better. ``affinity-pool eval`` compares reductions to the very same
# number of tokens over a data set, with intervals: :doc:`how to add one </docs/extending>`.
