"""A run over many recordings: batches that go through the model together.

Batches are cut from the whole list of recordings, in its order, whatever is done already and however many processes
share the work: a batch is always the same recordings, so its figures are the same to the bit. Each is a unit of a
:class:`.resume.Resumable`; under ``torchrun`` (or ``accelerate launch``) each process does its share of them.

A recording that cannot be used becomes a line with a ``problem`` and is counted wherever figures are shown.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from datetime import timedelta
from pathlib import Path
from typing import Any, cast

import torch
from accelerate import PartialState
from torch import Tensor

from ..data import Audio, Utterance, digests
from ..errors import InputError
from ..subject.lslm import Lslm
from .results import Facts, Finished, Row, Unusable
from .resume import Resumable

Prepare = Callable[[Utterance, Audio, int], Any]
"""Something an experiment needs to know of a recording, from it and its number of audio tokens."""

PATIENCE = timedelta(hours=6)  # a process may wait so long for the slowest


@dataclass(frozen=True)
class Batch:
    """Recordings on their way through the model together, padded on the left."""

    utterances: Sequence[Utterance]
    audio: Sequence[Audio]
    prompts: Sequence[str]
    inputs: dict[str, Tensor]
    audio_tokens: Sequence[int]
    """Of each recording, as the encoder makes them."""
    known: Sequence[Any] = ()
    """What the experiment's :data:`Prepare` found for each recording."""
    kept: dict[str, list[list[int]]] = field(default_factory=dict)
    """``kept[condition][site][row]``: audio tokens that conditions answered before left after their sites."""

    def seeds(self, seed: int) -> list[int]:
        """One for each recording, whatever its batch."""
        return [zlib.crc32(f"{seed} {utterance.id}".encode(errors="surrogatepass")) for utterance in self.utterances]


Work = Callable[[Batch], Sequence[Sequence[Row]]]
"""Rows of the results for each recording of a batch."""


@dataclass(frozen=True)
class Plan:
    """What a run is: two runs with equal plans give equal results, so one may finish what the other began."""

    command: str
    model: str
    options: Facts
    batch: int
    prompt: str | None = None
    files: Mapping[str, str] = field(default_factory=dict)
    """Digests of what else it reads: word times, a judge."""

    def given(self, lslm: Lslm, utterances: Sequence[Utterance]) -> dict[str, str]:
        """Digests of everything that the names in :meth:`settings` stand for; see :mod:`..data.digests`."""
        return {
            "texts": digests.of_texts(utterances),
            "audio": digests.of_audio(utterances),
            "model": lslm.digest,
            **self.files,
        }

    def settings(self, lslm: Lslm, utterances: Sequence[Utterance]) -> Facts:
        """As JSON, with what else decides the result."""
        return {
            "command": self.command,
            "model": self.model,
            "device": lslm.device.type,
            "dtype": lslm.dtype,
            "prompt": self.prompt,
            "batch": self.batch,
            "recordings": len(utterances),
            **self.options,
        }


def processes() -> PartialState:
    """This process among those that share the run: one, unless a launcher started more."""
    return PartialState(cpu=not torch.cuda.is_available(), timeout=PATIENCE)


def run(
    lslm: Lslm,
    utterances: Sequence[Utterance],
    plan: Plan,
    folder: Path,
    work: Work[Row],
    prepare: Prepare | None = None,
    progress: Callable[[Sequence[int]], Any] = iter,
) -> Finished[Row]:
    """Do what is missing of a run, and return all of it, in every process.

    Args:
        folder: the run's own. If it holds another plan's results, or files of somebody else, nothing is touched.
        work: called for each batch of recordings that could be read.
        progress: wraps the batches of this process.

    Raises:
        InputError: ``folder`` belongs to another run, cannot be written to, or not one recording can be used.
    """
    batches = [utterances[start : start + plan.batch] for start in range(0, len(utterances), plan.batch)]
    settings = plan.settings(lslm, utterances)
    resumable = Resumable(
        folder,
        settings,
        plan.given(lslm, utterances),
        [[utterance.id for utterance in batch] for batch in batches],
        "utterance",
        str(lslm.device),
        processes(),
    )
    records = resumable.finish(lambda number: _do_batch(lslm, batches[number], plan.prompt, work, prepare), progress)
    rows = [record for record in records if "problem" not in record]
    unusable = [Unusable(utterance=r["utterance"], problem=r["problem"]) for r in records if "problem" in r]
    if not rows:
        raise InputError(f"not one recording could be used; the first: {unusable[0]['problem']}")
    return Finished(settings, cast(list[Row], rows), unusable, resumable.began())


def _do_batch(
    lslm: Lslm, utterances: Sequence[Utterance], prompt: str | None, work: Work[Row], prepare: Prepare | None
) -> list[Row | Unusable]:
    """Records of one batch, in its order; recordings that cannot be used do not take part."""
    records: dict[str, list[Row | Unusable]] = {}

    @contextmanager
    def noting(utterance: Utterance) -> Iterator[None]:
        try:
            yield
        except InputError as error:
            records[utterance.id] = [Unusable(utterance=utterance.id, problem=str(error))]

    heard: list[tuple[Utterance, Audio]] = []
    for utterance in utterances:
        with noting(utterance):
            audio = utterance.load(lslm.rate)
            lslm.check(audio)
            lslm.check_prompt(prompt or utterance.task)
            heard.append((utterance, audio))
    batch = _batch(lslm, heard, prompt)
    if batch is not None and prepare is not None:
        known: list[tuple[int, Any]] = []
        for row, (utterance, audio) in enumerate(heard):
            with noting(utterance):
                known.append((row, prepare(utterance, audio, batch.audio_tokens[row])))
        if len(known) < len(heard):
            batch = _batch(lslm, [heard[row] for row, _ in known], prompt)
        batch = None if batch is None else replace(batch, known=[found for _, found in known])
    if batch is not None:
        found = work(batch)
        records |= {utterance.id: list(rows) for utterance, rows in zip(batch.utterances, found, strict=True)}
    return [record for utterance in utterances for record in records[utterance.id]]


def _batch(lslm: Lslm, heard: Sequence[tuple[Utterance, Audio]], prompt: str | None) -> Batch | None:
    """Recordings as the model takes them; None of none."""
    if not heard:
        return None
    chosen, clips = [utterance for utterance, _ in heard], [audio for _, audio in heard]
    prompts = [prompt or utterance.task for utterance in chosen]
    inputs = lslm.batch(clips, prompts)
    return Batch(chosen, clips, prompts, inputs, lslm.audio_positions(inputs).sum(1).tolist(), [None] * len(heard))
