"""
Choose sites for a budget
=========================

How hard a model can be pooled, and where, is a property of the model. ``affinity-pool calibrate`` finds it out from
recordings alone, without texts: what it compares is the pooled model's answers with the model's own.
"""

# %%
# Run this in a clone of the repository, where the bundled model is. The budget here: at most 80 % of the decoder's
# prefill FLOPs. Eleven recordings and three layers keep this short; give it some hundred recordings of yours, and leave
# ``--layers`` out. On the command line this is ``affinity-pool calibrate --model FOLDER --data MANIFEST --flops 0.8``.

import json
import tempfile
from pathlib import Path

from affinity_pool.cli.commands import app

out = Path(tempfile.mkdtemp())
app(["calibrate", "--flops", "0.8", "--layers", "0,4,7", "--windows", "1", "--out", str(out)], standalone_mode=False)

# %%
# What was tried last: sites as LAYER:THRESHOLD:WINDOW, audio tokens left at the end, decoder prefill FLOPs, and how
# many characters of the answers changed.

summary = json.loads((out / "summary.json").read_text())
for trial in summary["together"]:
    left, flops, changed = (trial[name] for name in ("retention", "relative_flops", "disagreement"))
    print(f"{trial['sites']:24} tokens {left:4.0%}   FLOPs {flops:4.0%}   changed {changed:.1%}")

# %%
# The choice is a file. Put beside a checkpoint as ``affinity_pool.json`` it goes with the model, and every command and
# ``patch(model, folder)`` finds it there.

print((out / "affinity_pool.json").read_text())

# %%
# A threshold gives each recording what it needs, and nobody knows beforehand how much that is. Where the number must be
# known (a serving engine, static shapes) a site keeps a share instead; ``--shares`` writes those that leave as many
# tokens as the thresholds found. Both can be written by hand:

from affinity_pool import Site

by_threshold = [Site(0, threshold=0.98, window=1), Site(7, threshold=0.85, window=3)]
by_share = [Site(0, keep=0.75), Site(7, keep=0.2)]

# %%
# Both on a recording, beside the model as it is.

import soundfile
import torch
from transformers import AutoProcessor, Qwen2AudioForConditionalGeneration

import affinity_pool
from affinity_pool.study.bundled import BUNDLED

processor = AutoProcessor.from_pretrained(BUNDLED / "checkpoint")
model = Qwen2AudioForConditionalGeneration.from_pretrained(BUNDLED / "checkpoint", dtype=torch.float32)
audio, rate = soundfile.read(BUNDLED / "recordings" / "allison-keys.flac", dtype="float32")
turn = [{"role": "user", "content": [{"type": "audio", "audio_url": "-"}, {"type": "text", "text": "transcribe"}]}]
prompt = processor.apply_chat_template(turn, add_generation_prompt=True, tokenize=False)
inputs = processor(text=prompt, audio=audio, sampling_rate=rate, return_tensors="pt")


def answer() -> str:
    tokens = model.generate(**inputs, max_new_tokens=16, do_sample=False)
    return processor.tokenizer.decode(tokens[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True)


print(f"unpooled: {answer()}")
for name, sites in (("thresholds", by_threshold), ("shares", by_share)):
    with affinity_pool.patch(model, sites) as handle:
        said = answer()
    left = [site.audio_after[0] for site in handle.stats.sites]
    print(f"{name}: {said}, {left} of {handle.stats.sites[0].audio_before[0]} audio tokens left")
