"""The process of one engine: reads what is asked from a file, writes what is answered to another."""

from __future__ import annotations

import pickle
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from engine import Answer, Request


def count_clips(encoded: list[int]) -> None:
    """Note how many clips each call of a model was given that pools them."""
    from affinity_pool.serving.vllm.seam import PROMISE, PooledModel

    embed = PooledModel.embed_multimodal

    def counting(self: Any, **kwargs: Any) -> Any:
        if PROMISE in kwargs:
            encoded.append(len(kwargs[PROMISE]))
        return embed(self, **kwargs)

    PooledModel.embed_multimodal = counting


def answers(llm: Any, requests: Sequence[Request]) -> list[Answer]:
    """Of requests sent together; one that is refused is sent alone, since vLLM then takes none of them."""
    from vllm import SamplingParams

    sampling = [
        SamplingParams(temperature=0, max_tokens=one.tokens, logprobs=1, ignore_eos=True, detokenize=False)
        for one in requests
    ]
    try:
        outputs = llm.generate([one.as_vllm_takes_it() for one in requests], sampling, use_tqdm=False)
    except ValueError as error:
        if len(requests) == 1:
            return [Answer(refusal=str(error))]
        return [answer for one in requests for answer in answers(llm, [one])]
    return [
        Answer(
            list(output.outputs[0].token_ids),
            [
                step[token].logprob
                for step, token in zip(output.outputs[0].logprobs, output.outputs[0].token_ids, strict=True)
            ],
            len(output.prompt_token_ids or one.prompt),
            output.num_cached_tokens or 0,
        )
        for one, output in zip(requests, outputs, strict=True)
    ]


def main(asked: str, answered: str) -> None:
    checkpoint, attempts, turns = pickle.loads(Path(asked).read_bytes())
    from vllm import LLM
    from vllm.plugins import load_general_plugins

    load_general_plugins()
    encoded: list[int] = []
    refusals: list[str] = []
    if "affinity_pool" in sys.modules:
        count_clips(encoded)
    said: list[list[Answer]] = []
    for options in attempts:
        try:
            llm = LLM(str(checkpoint), distributed_executor_backend="uni", **options)
        except ValueError as error:
            refusals.append(str(error))
        else:
            said = [answers(llm, turn) for turn in turns]
            break
    Path(answered).write_bytes(pickle.dumps((said, encoded, refusals)))


if __name__ == "__main__":
    main(*sys.argv[1:])
