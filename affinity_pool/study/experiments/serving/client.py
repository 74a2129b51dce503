"""Requests through the OpenAI client, timed by the clock of whoever waits for the answer."""

from __future__ import annotations

import base64
import io
import os
import time
from dataclasses import dataclass

import numpy as np
import openai
import soundfile
from openai.types.chat import ChatCompletionContentPartParam

from ...data import Audio
from ...errors import InputError

PATIENCE = 3600.0
"""Seconds for an answer; a queue on a small machine is long."""


@dataclass(frozen=True)
class Request:
    """A recording, what is asked about it, and how much of it the language model hears."""

    recording: str
    """A WAV file in base64."""
    prompt: str
    keep: float
    """Share of its audio tokens."""
    tokens: int
    """Of the answer, at most."""
    exactly: bool = False
    """The answer has as many tokens, whatever they say: the work is the same for all."""


@dataclass(frozen=True)
class Reply:
    """An answer; times are seconds since the request was sent."""

    text: str
    prompt_tokens: int
    output_tokens: int
    first_token: float
    seconds: float


class Client:
    """Of one server."""

    def __init__(self, url: str, model: str) -> None:
        self.model = model
        """As the server calls it."""
        key = os.environ.get("OPENAI_API_KEY", "none")
        self._openai = openai.AsyncOpenAI(base_url=f"{url}/v1", api_key=key, max_retries=0, timeout=PATIENCE)

    @classmethod
    async def of(cls, url: str) -> Client:
        """Of the first model that is served there.

        Raises:
            InputError: there is none, or no server.
        """
        client = cls(url, "")
        try:
            client.model = (await client._openai.models.list()).data[0].id
        except (openai.OpenAIError, IndexError) as error:
            raise InputError(f"no model is served at {url}: {error}") from error
        return client

    async def ask(self, request: Request) -> Reply:
        """The greedy answer, as it streams in.

        Raises:
            InputError: the server refuses, or breaks off.
        """
        content: list[ChatCompletionContentPartParam] = [
            {"type": "input_audio", "input_audio": {"data": request.recording, "format": "wav"}},
            {"type": "text", "text": request.prompt},
        ]
        pooling = {"mm_processor_kwargs": {"affinity_pool": {"keep": request.keep}}}
        # special tokens are shown where an answer must go on: else it would not show when the first came
        going_on = {"ignore_eos": True, "skip_special_tokens": False} if request.exactly else {}
        pieces: list[str] = []
        first, usage = None, None
        start = time.perf_counter()
        try:
            stream = await self._openai.chat.completions.create(
                model=self.model,
                messages=[{"role": "user", "content": content}],
                max_tokens=request.tokens,
                temperature=0,
                stream=True,
                stream_options={"include_usage": True},
                extra_body={**pooling, **going_on},
            )
            async for chunk in stream:
                usage = chunk.usage or usage
                if chunk.choices and (piece := chunk.choices[0].delta.content):
                    first = first or time.perf_counter()
                    pieces.append(piece)
        except openai.OpenAIError as error:
            raise InputError(f"the server did not answer a request with keep={request.keep:g}: {error}") from error
        end = time.perf_counter()
        if usage is None:
            raise InputError("the server does not say how many tokens it has used (stream_options.include_usage)")
        text = "".join(pieces).strip()
        return Reply(text, usage.prompt_tokens, usage.completion_tokens, (first or end) - start, end - start)


def encoded(audio: Audio) -> str:
    """A WAV file of 16 bits in base64."""
    file = io.BytesIO()
    soundfile.write(file, audio.samples, audio.rate, format="WAV", subtype="PCM_16")
    return base64.b64encode(file.getvalue()).decode()


def varied(audio: Audio, seed: int) -> Audio:
    """The recording with noise in the lowest bit of 16, which nobody hears: no cache has seen it."""
    noise = np.random.default_rng(seed).integers(-1, 2, len(audio.samples)) / 2**15
    return Audio((audio.samples + noise).astype(np.float32), audio.rate)
