"""What a model is given: cases of equal length, made from recordings, or made up so that they pool as planned.

A ``Case`` is what one line of the results is about: the recordings of one bucket of lengths, or one prompt of a given
length. Recordings longer than the model hears at once become several clips in one prompt.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import pairwise
from math import inf
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from ....models import PrefillStats, Site
from ....models.settings import Attention, Pooling, preset
from ...errors import InputError
from ...subject.subject import Subject
from .forced import Forced, check_forced, model_inputs, speech

if TYPE_CHECKING:
    from ...data.audio import Audio
    from ...subject.lslm import Lslm

LONG = (20.0, 40.0, 60.0)  # seconds, the paper's buckets
SHORTEST = 0.1  # seconds; what is left of a recording after its last whole clip and is shorter is dropped


def idle(pooling: Pooling) -> Pooling:
    """The same sites with rules that merge nothing: all of the work, none of the gain."""
    sites = (
        Site(site.layer, 2.0, site.window) if site.keep is None else Site(site.layer, keep=1.0)
        for site in pooling.sites
    )
    return replace(pooling, sites=tuple(sites))


@dataclass(frozen=True)
class Prompt:
    """One call of the model."""

    inputs: Mapping[str, Tensor]
    seconds: float
    pooling: Pooling
    check: Callable[[PrefillStats], None] = lambda stats: None
    """Raises if the prefill did not pool as planned."""


@dataclass(frozen=True)
class Case:
    """Prompts measured together; they are made when their turn comes."""

    name: str
    batch: int
    prompts: Callable[[], list[Prompt]]


def forced_cases(
    subject: Subject, lengths: Sequence[float], batches: Sequence[int], attention: Attention = "plain"
) -> Iterator[Case]:
    """Prompts that pool as in the paper, whatever the model's weights; see :mod:`.forced`."""
    for batch in batches:
        for seconds in lengths:
            name = f"{seconds:g} s" if batch == 1 else f"{seconds:g} s, batch {batch}"
            yield Case(name, batch, partial(_forced, subject, seconds, batch, attention))


def _forced(subject: Subject, seconds: float, batch: int, attention: Attention) -> list[Prompt]:
    text = subject.config.text_config
    spoken = speech(subject.config, seconds, batch)
    sites = tuple(
        replace(site, reduction=Forced.at(site, spoken, stage, text.hidden_size, subject.model.dtype, subject.device))
        for stage, site in enumerate(preset("aggressive", text.num_hidden_layers))
    )
    pooling = Pooling(sites, "keep", attention)
    return [Prompt(model_inputs(subject, spoken), seconds, pooling, partial(check_forced, spoken))]


MEMORY_RETENTION = 0.2  # of what a decoder attends to, where weights are random and the rule is a share


def memory_cases(
    features: Callable[[int], Mapping[str, Tensor]], seconds: float, pooling: Pooling, batches: Sequence[int]
) -> Iterator[Case]:
    """Batches of an encoder-decoder model, of which each row has as many tokens; ``features`` makes one of a size."""

    def one(batch: int) -> list[Prompt]:
        return [Prompt(features(batch), seconds, pooling)]

    for batch in batches:
        yield Case("one recording" if batch == 1 else f"batch {batch}", batch, partial(one, batch))


def noise(subject: Subject, batch: int) -> dict[str, Tensor]:
    """A batch of features for Whisper that are nothing."""
    config = subject.config
    shape = batch, config.num_mel_bins, 2 * config.max_source_positions
    return {"input_features": torch.randn(shape, dtype=subject.model.dtype, device=subject.device)}


def repeated(lslm: Lslm, recordings: Sequence[Request], batch: int) -> dict[str, Tensor]:
    """A batch of recordings, from the first again after the last."""
    chosen = [recordings[row % len(recordings)] for row in range(batch)]
    return lslm.batch([one.audio for one in chosen], [one.prompt for one in chosen])


@dataclass(frozen=True)
class Request:
    """A recording at the model's rate, and what is asked about it."""

    audio: Audio
    prompt: str


def bucket_cases(
    lslm: Lslm, recordings: Sequence[Request], pooling: Pooling, edges: Sequence[float] | None, most: int
) -> Iterator[Case]:
    """The recordings by length: 0 to the first edge, between edges, and longer; the first ``most`` of each bucket.

    ``edges`` None: the paper's, or fifths of what the model hears at once if it hears less than the first of them.
    A bucket without recordings has no case.
    """
    if edges is None:
        edges = LONG if lslm.longest > LONG[0] else [lslm.longest * fifth / 5 for fifth in range(1, 6)]
    for low, high in pairwise([0.0, *edges, inf]):
        # lengths are rounded: a recording cut to a whole number of seconds may miss it by a sample
        inside = [one for one in recordings if low <= round(one.audio.seconds, 3) < high][:most]
        if inside:
            name = f"{low:g}-{high:g} s" if high < inf else f"{low:g} s and longer"
            yield Case(name, 1, partial(_requested, lslm, inside, pooling))


def length_cases(
    lslm: Lslm, recordings: Sequence[Request], pooling: Pooling, lengths: Sequence[float]
) -> Iterator[Case]:
    """Prompts of exactly these lengths: the recordings one after the other, from the first again after the last."""
    for seconds in lengths:
        yield Case(f"{seconds:g} s", 1, partial(_joined, lslm, recordings, pooling, seconds))


def _joined(lslm: Lslm, recordings: Sequence[Request], pooling: Pooling, seconds: float) -> list[Prompt]:
    from ...data.audio import joined  # recordings need packages that made prompts do not

    audio = joined([recording.audio for recording in recordings], seconds)
    return _requested(lslm, [Request(audio, recordings[0].prompt)], pooling)


def _requested(lslm: Lslm, recordings: Sequence[Request], pooling: Pooling) -> list[Prompt]:
    return [Prompt(inputs_of(lslm, one.audio, one.prompt), one.audio.seconds, pooling) for one in recordings]


def inputs_of(lslm: Lslm, audio: Audio, prompt: str) -> dict[str, Tensor]:
    """The model's keyword arguments for one recording of any length, cut into clips of what it hears at once."""
    if audio.seconds <= lslm.longest:
        return lslm.inputs(audio, prompt)
    step = round(lslm.longest * lslm.rate)
    clips = [audio.samples[start : start + step] for start in range(0, len(audio.samples), step)]
    clips = [clip for clip in clips if len(clip) >= SHORTEST * lslm.rate]
    content = [*({"type": "audio", "audio_url": "-"} for _ in clips), {"type": "text", "text": prompt}]
    try:
        text = lslm.processor.apply_chat_template(
            [{"role": "user", "content": content}], add_generation_prompt=True, tokenize=False
        )
        inputs = lslm.processor(text=text, audio=clips, sampling_rate=lslm.rate, return_tensors="pt", padding=True)
    except (TypeError, ValueError) as error:
        raise InputError(
            f"{lslm.name} hears {lslm.longest:g} s at once, and several clips in one prompt do not work with it "
            f"({error}): leave out what is longer"
        ) from error
    return lslm.to_device(inputs)


def batch_of(prompt: Prompt) -> int:
    """Rows of a prompt."""
    return len(next(iter(prompt.inputs.values())))
