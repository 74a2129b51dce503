"""How far pooling moves the times of Whisper's tokens: `python timestamps.py MODEL MANIFEST OUT.json [COUNT]`

Whisper reads the time of a token from cross-attention. Pooled and unpooled times are compared over the recordings whose
tokens are the same, in seconds; a frame of the encoder is 0.02 s. Recordings are the first COUNT (64) that a window
holds.
"""

import json
import sys
from pathlib import Path

import torch
import transformers
from affinity_pool import Site, patch
from affinity_pool.provenance import provenance
from affinity_pool.study.data import open_data
from transformers import AutoProcessor, WhisperForConditionalGeneration

THRESHOLDS, BATCH, WINDOW = (0.98, 0.96, 0.94), 8, 30.0


@torch.inference_mode()
def main(name: str, manifest: str, out: str, count: str = "64") -> None:
    transformers.utils.logging.set_verbosity_error()
    processor = AutoProcessor.from_pretrained(name)
    model = WhisperForConditionalGeneration.from_pretrained(name, attn_implementation="eager").eval()
    audio = [utterance.load(16000) for utterance in open_data(manifest)]
    clips = [one.samples for one in audio if one.seconds <= WINDOW][: int(count)]
    batches = [
        processor(clips[at : at + BATCH], sampling_rate=16000, return_tensors="pt", return_attention_mask=True)
        for at in range(0, len(clips), BATCH)
    ]

    def timed() -> list[tuple[list[int], torch.Tensor]]:
        """Of each recording its tokens and their times."""
        found = []
        for inputs in batches:
            answer = model.generate(**inputs, return_token_timestamps=True, do_sample=False, num_beams=1)
            for ids, times in zip(answer["sequences"], answer["token_timestamps"], strict=True):
                kept = ids != model.generation_config.eos_token_id
                found.append((ids[kept].tolist(), times[: len(ids)][kept]))
        return found

    unpooled, results = timed(), []
    for threshold in THRESHOLDS:
        for attention in ("plain", "proportional"):
            with patch(model, [Site("memory", threshold=threshold, window=1)], attention=attention):
                pairs = [pair for pair in zip(unpooled, timed(), strict=True) if pair[0][0] == pair[1][0]]
            moved = torch.cat([(one[1] - other[1]).abs() for one, other in pairs])
            shares = {f"p{share}": round(float(moved.quantile(share / 100)), 4) for share in (50, 95, 100)}
            same = {"recordings": len(clips), "same_tokens": len(pairs), "tokens": len(moved)}
            results.append({"threshold": threshold, "window": 1, "attention": attention, **same})
            results[-1] |= {"mean": round(float(moved.mean()), 4), **shares}
            print(results[-1], flush=True)
    summary = {"model": Path(name).name, "data": Path(manifest).parent.name, "provenance": provenance("cpu")}
    Path(out).write_text(json.dumps({**summary, "moved_seconds": results}, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main(*sys.argv[1:])
