"""
Patch a model and transcribe
============================

A speech LLM hears a recording with all its audio tokens, and with most of them merged: the same answer, a shorter
prompt, a smaller KV cache.
"""

# %%
# The bundled model has the architecture of Qwen2-Audio and knows 63 words; run this in a clone of the repository, where
# it is. For a published one these three lines change: ``"Qwen/Qwen2-Audio-7B-Instruct"``, a recording of yours, and
# ``"aggressive"`` or ``"conservative"``, the paper's settings for it.

import soundfile
import torch
from transformers import AutoProcessor, Qwen2AudioForConditionalGeneration

import affinity_pool
from affinity_pool.study.bundled import BUNDLED

CHECKPOINT = BUNDLED / "checkpoint"
RECORDING = BUNDLED / "recordings" / "allison-long.flac"
SITES = CHECKPOINT  # a folder with an affinity_pool.json, which says where

processor = AutoProcessor.from_pretrained(CHECKPOINT)
model = Qwen2AudioForConditionalGeneration.from_pretrained(CHECKPOINT, dtype=torch.float32)

audio, rate = soundfile.read(RECORDING, dtype="float32")
print(f"{len(audio) / rate:.1f} s at {rate} Hz")

# %%
# A prompt, as for any model with a chat template.

turn = [{"role": "user", "content": [{"type": "audio", "audio_url": "-"}, {"type": "text", "text": "transcribe"}]}]
prompt = processor.apply_chat_template(turn, add_generation_prompt=True, tokenize=False)
inputs = processor(text=prompt, audio=audio, sampling_rate=rate, return_tensors="pt")


def answer() -> str:
    tokens = model.generate(**inputs, max_new_tokens=16, do_sample=False)
    return processor.tokenizer.decode(tokens[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True)


print(answer())

# %%
# One word is wrong, the model's own mistake: it was "victor". Now pooled, at the decoder's input and before layer 7:
# the same answer.

with affinity_pool.patch(model, SITES) as handle:
    print(answer())
    stats = handle.stats

for site in stats.sites:
    print(f"layer {site.layer}: {site.audio_before[0]} audio tokens, {site.audio_after[0]} after it")
whole = stats.kv_bytes + stats.kv_bytes_saved
print(f"keys and values of the prompt: {stats.kv_bytes / whole:.0%} of what they were")

# %%
# Behind the ``with`` block the model is what it was, to the bit. Which tokens went together is in ``segment_ids``, and
# ``counts`` says how many of what was left at the input are in each group of the deep site. The ones are also text.

counts = stats.sites[1].counts[0]
print("tokens in each group:", counts[counts > 0].tolist())

# %%
# The same over time: a bar for each group, as wide as the stretch of audio it stands for. ``affinity-pool demo --audio
# FILE`` draws this above a spectrogram, with the words.

import matplotlib.pyplot as plt

from affinity_pool.study.groups import spans_after_sites

is_audio = inputs["input_ids"] == model.config.audio_token_id
second = len(audio) / rate / is_audio.sum().item()
figure, axes = plt.subplots(figsize=(9, 1.6), layout="constrained")
for row, spans in enumerate(spans_after_sites(stats.sites, is_audio)):
    bars = [(span.start * second, (span.end - span.start) * second) for span in spans]
    axes.broken_barh(bars, (-row - 0.4, 0.8), facecolors=["#2a78d6", "#9cc3f0"])
axes.set(xlabel="seconds", yticks=[0, -1], yticklabels=[f"layer {site.layer}" for site in stats.sites])
plt.show()
