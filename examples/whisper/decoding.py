"""What pooling buys Whisper's decoding, and what weighing costs: `python decoding.py MODEL MANIFEST OUT.json [BATCHES]`

Decoding steps of the same recordings in turns, unpooled and at a fifth of the tokens, merged tokens weighed and not.
The encoder runs once, for it is the same in all; `affinity-pool cost` times first tokens, with the encoder in them.
"""

import json
import sys
from contextlib import nullcontext
from functools import partial
from pathlib import Path

import torch
from affinity_pool.benchmarks.timing import FEWEST
from affinity_pool.provenance import provenance
from affinity_pool.study.data import open_data
from affinity_pool.study.efficiency.ttft import Ttft, rounds
from affinity_pool.study.experiments.cost.measure import decode_seconds
from affinity_pool.study.experiments.cost.prompts import Prompt, Request, repeated
from affinity_pool.study.sites import parse_sites
from affinity_pool.study.subject.lslm import load

SITE, STEPS = "memory:keep=0.2", 32


def main(name: str, manifest: str, out: str, batches: str = "1,8,32") -> None:
    lslm = load(name, "cpu")
    recordings = [Request(utterance.load(lslm.rate), "transcribe") for utterance in open_data(manifest)]
    recordings = [one for one in recordings if one.audio.seconds <= lslm.longest]
    weighed = {attention: parse_sites(SITE, None, attention).pooling for attention in ("plain", "proportional")}
    ways, results = {"unpooled": None, **weighed}, []
    for batch in map(int, batches.split(",")):
        prompt = Prompt(repeated(lslm, recordings, batch), lslm.longest, weighed["plain"])

        def clock(pooling, prompt=prompt):
            with nullcontext() if pooling is None else lslm.patched(pooling):
                return decode_seconds(lslm, prompt, STEPS)

        with lslm.encoded_once():
            seconds = rounds({way: partial(clock, pooling) for way, pooling in ways.items()}, FEWEST, warm_up=1)
        result = {"batch": batch, "seconds": {way: [round(one, 4) for one in of] for way, of in seconds.items()}}
        for way in weighed:
            pairs = Ttft(seconds["unpooled"], seconds[way])
            result[way] = {"ratio": round(pairs.ratio, 3), "interval_95": [round(end, 3) for end in pairs.interval]}
        results.append(result)
        print(result, flush=True)
    facts = {"model": Path(name).name, "data": Path(manifest).parent.name, "sites": SITE, "new_tokens": STEPS}
    summary = {**facts, "threads": torch.get_num_threads(), "provenance": provenance("cpu"), "decoding": results}
    Path(out).write_text(json.dumps(summary, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main(*sys.argv[1:])
