"""What pooling saves at full size: time to first token, memory and KV cache of Qwen2-Audio-7B's shape.

The weights are random: a prefill takes the same time whatever they are. What each site keeps is the paper's, by rows
made for it (see :mod:`.forced`): the op is in the measured time with all its work, and nothing else is. Run it by
``python -m affinity_pool.study.cost``; with ``--tiny`` it goes the same way on a CPU in seconds.
"""

from __future__ import annotations

import argparse
import gc
import json
import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from statistics import median, quantiles
from typing import Any

import torch

from ..models import patch
from ..models.sites import preset
from ..provenance import provenance
from . import ttft
from .flops import relative_prefill_flops
from .forced import FINAL_RETENTION, FRAMES, INPUT_RETENTION, SPREAD, Forced, check_forced, model_inputs, speech

Record = dict[str, Any]


def qwen2_audio_7b() -> Any:
    """The config of Qwen2-Audio-7B: a decoder of 32 layers and 4096 features, the encoder of Whisper large-v3."""
    return _config(
        audio={
            "num_mel_bins": 128,
            "d_model": 1280,
            "encoder_layers": 32,
            "encoder_attention_heads": 20,
            "encoder_ffn_dim": 5120,
            "max_source_positions": 1500,
        },
        text={
            "hidden_size": 4096,
            "num_hidden_layers": 32,
            "num_attention_heads": 32,
            "num_key_value_heads": 32,
            "intermediate_size": 11008,
            "vocab_size": 156032,
            "max_position_embeddings": 8192,
            "rms_norm_eps": 1e-5,
        },
        audio_token=151646,
    )


def tiny() -> Any:
    """The same path in a model of a few thousand parameters, which hears two seconds at once."""
    return _config(
        audio={
            "num_mel_bins": 8,
            "d_model": 32,
            "encoder_layers": 1,
            "encoder_attention_heads": 2,
            "encoder_ffn_dim": 32,
            "max_source_positions": FRAMES,
        },
        text={
            "hidden_size": 64,
            "num_hidden_layers": 4,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            "intermediate_size": 96,
            "vocab_size": 120,
            "max_position_embeddings": 1024,
        },
        audio_token=5,
    )


def _config(audio: Record, text: Record, audio_token: int) -> Any:
    from transformers import Qwen2AudioConfig

    return Qwen2AudioConfig(
        audio_config={"model_type": "qwen2_audio_encoder", **audio},
        text_config={"model_type": "qwen2", "pad_token_id": 0, "eos_token_id": None, **text},
        audio_token_index=audio_token,
    )


def random_model(config: Any, device: torch.device, dtype: torch.dtype) -> Any:
    """A model of random weights, made where and as it is used: 7B in float32 on the host would take minutes."""
    from transformers import Qwen2AudioForConditionalGeneration

    torch.manual_seed(0)
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        with device:
            model: Any = Qwen2AudioForConditionalGeneration(config)
    finally:
        torch.set_default_dtype(before)
    model.generation_config.pad_token_id = 0
    model.generation_config.eos_token_id = None
    return model.eval()


def measure(model: Any, seconds: float, batch: int, runs: int) -> Record:
    """Prefills of one size with and without pooling, in turns; see :mod:`.ttft` for how."""
    config, device = model.config, model.device
    spoken = speech(config, seconds, batch)
    inputs = model_inputs(model, spoken)
    depth, dim = config.text_config.num_hidden_layers, config.text_config.hidden_size
    forced = [Forced.at(spoken, stage, dim, model.dtype, device) for stage in (0, 1)]
    sites = [replace(site, reduce=f) for site, f in zip(preset("aggressive", depth), forced, strict=True)]

    @torch.inference_mode()
    def first_token() -> None:
        model.generate(**inputs, max_new_tokens=1, do_sample=False)[:, -1].tolist()

    def pooled(run: Callable[[], Any]) -> Any:
        with patch(model, sites):
            return run()

    with patch(model, sites) as handle:
        first_token()
        stats = handle.stats
    check_forced(spoken, stats)
    assert stats is not None
    clock = partial(ttft.timed, first_token, device)
    times = ttft.interleave(clock, partial(pooled, clock), runs)
    memory = [peak(first_token, device), pooled(partial(peak, first_token, device))]

    @torch.inference_mode()
    def both_sites() -> None:
        for site, f in zip(sites, forced, strict=True):
            f.alone(site)

    audio_tokens = [spoken.audio_tokens(stage) for stage in range(3)]
    audio, text = audio_tokens[0] / batch, (sum(spoken.tokens(0)) - audio_tokens[0]) / batch
    retention = {site.layer: n / audio_tokens[0] for site, n in zip(sites, audio_tokens[1:], strict=True)}
    low, high = times.interval
    return {
        "seconds": seconds,
        "batch": batch,
        "tokens": [round(sum(spoken.tokens(stage)) / batch) for stage in range(3)],
        "audio_retention": [round(kept, 4) for kept in retention.values()],
        "vanilla_seconds": percentiles(times.vanilla),
        "pooled_seconds": percentiles(times.pooled),
        "ratio": round(times.ratio, 4),
        "ratio_ci95": [round(low, 4), round(high, 4)],
        "pooling_seconds": round(median(ttft.timed(both_sites, device) for _ in range(21)), 7),
        "kv_bytes": [stats.kv_bytes + stats.kv_bytes_saved, stats.kv_bytes],
        "dynamic_bytes": None if None in memory else memory,
        "decoder_flops": round(relative_prefill_flops(config, text, audio, retention), 4),
    }


def peak(run: Callable[[], object], device: torch.device) -> int | None:
    """Most memory a run takes beside what was there before: weights and inputs. None where it cannot be told."""
    if device.type != "cuda":
        return None
    gc.collect()  # what cycles hold of the runs before would be counted as there
    torch.cuda.synchronize(device)
    before = torch.cuda.memory_allocated(device)
    torch.cuda.reset_peak_memory_stats(device)
    run()
    return torch.cuda.max_memory_allocated(device) - before


def percentiles(seconds: Sequence[float]) -> dict[str, float]:
    tenths = quantiles(seconds, n=10, method="inclusive")
    return {name: round(tenths[i], 6) for name, i in (("p20", 1), ("p50", 4), ("p80", 7))}


def run(
    config: Any,
    cases: Sequence[tuple[float, int]],
    runs: int,
    device: torch.device,
    dtype: torch.dtype,
    out: Path | None = None,
    echo: Callable[[str], object] = print,
) -> Record:
    """Measure (seconds, batch) cases; ``out`` grows by each as it is done."""
    results: Record = {"suite": "ttft", "provenance": provenance(str(device)), "results": []}
    model = random_model(config, device, dtype)
    results["method"] = {
        "rounds": runs,
        "parameters": sum(p.numel() for p in model.parameters()),
        "weights": "random",
        "dtype": str(dtype).removeprefix("torch."),
        "attention": config.text_config._attn_implementation,
        "forced_retention": [INPUT_RETENTION, FINAL_RETENTION],
        "spread_over_batch": SPREAD,
    }
    for seconds, batch in cases:
        record = measure(model, seconds, batch, runs)
        results["results"].append(record)
        if out is not None:
            out.parent.mkdir(parents=True, exist_ok=True)
            out.write_text(json.dumps(results, indent=1) + "\n")
        echo(f"{seconds:g} s, batch {batch}: vanilla / pooled {record['ratio']} {record['ratio_ci95']}")
    return results


def main(arguments: list[str] | None = None) -> None:
    from ..bench.table import render

    parser = argparse.ArgumentParser(prog="python -m affinity_pool.study.cost", description=__doc__)
    parser.add_argument("--tiny", action="store_true", help="a model of a few thousand parameters: seconds on a CPU")
    parser.add_argument("--seconds", type=float, nargs="+", help="of audio")
    parser.add_argument("--batch", type=int, nargs="+", help="recordings in a batch")
    parser.add_argument("--runs", type=int, default=11, help="pairs of timed runs for each case")
    parser.add_argument("--device", type=torch.device, default=torch.device("cpu"))
    parser.add_argument("--out", type=Path, help="results file to write (JSON)")
    options = parser.parse_args(arguments)
    seconds = options.seconds or ([1.0, 3.0] if options.tiny else [5.0, 10.0, 20.0, 30.0, 45.0, 60.0])
    cases = [(s, b) for b in options.batch or ([1, 2] if options.tiny else [1, 4, 16]) for s in seconds]
    config, dtype = (tiny(), torch.float32) if options.tiny else (qwen2_audio_7b(), torch.bfloat16)
    results = run(config, cases, options.runs, options.device, dtype, options.out, partial(print, file=sys.stderr))
    print(render(results))


if __name__ == "__main__":
    main()
