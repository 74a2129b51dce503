"""A run over many recordings: batches, what is kept on disk, starting again, and several processes.

A run owns a folder. Batches are cut from the whole list of recordings, in its order, whatever is done already and
however many processes share the work: a batch is always the same recordings, so its figures are the same to the bit.
Each finished batch is one line of ``parts/``, and a run started again does the missing ones, if what it is given is
still the same; at the end they become ``results.jsonl``, one record a line.

Under ``torchrun`` (or ``accelerate launch``) each process does its share of them.

A recording that cannot be used becomes a record with a ``problem`` and is counted wherever figures are shown.
"""

from __future__ import annotations

import json
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
from accelerate import PartialState
from torch import Tensor

from ...provenance import provenance
from ..data import Audio, Utterance
from ..errors import InputError
from ..subject.lslm import Lslm
from . import folders, identity

Record = dict[str, Any]
"""A JSON object; ``utterance`` says whose it is."""

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


Work = Callable[[Batch], Sequence[Sequence[Record]]]
"""Records for each recording of a batch."""


@dataclass(frozen=True)
class Plan:
    """What a run is: two runs with equal plans give equal results, so one may finish what the other began."""

    command: str
    model: str
    options: Record
    batch: int
    prompt: str | None = None
    files: Mapping[str, str] = field(default_factory=dict)
    """Digests of what else it reads: word times, a judge."""

    def given(self, lslm: Lslm, utterances: Sequence[Utterance]) -> dict[str, str]:
        """Digests of everything that the names in :meth:`facts` stand for; see :mod:`.identity`."""
        return {
            "texts": identity.of_texts(utterances),
            "audio": identity.of_audio(utterances),
            "model": lslm.identity,
            **self.files,
        }

    def facts(self, lslm: Lslm, utterances: Sequence[Utterance]) -> Record:
        """As JSON, with what else decides the result."""
        return {
            "command": self.command,
            "model": self.model,
            "device": lslm.device.type,
            "dtype": str(lslm.model.dtype).removeprefix("torch."),
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
    work: Work,
    prepare: Prepare | None = None,
    progress: Callable[[Sequence[int]], Any] = iter,
) -> list[Record]:
    """Do what is missing of a run, and return all its records in order, in every process.

    Args:
        folder: the run's own. If it holds another plan's results, or files of somebody else, nothing is touched.
        work: called for each batch of recordings that could be read.
        progress: wraps the batches of this process.

    Raises:
        InputError: ``folder`` belongs to another run, cannot be written to, or not one recording can be used.
    """
    state = processes()
    facts = json.loads(json.dumps(plan.facts(lslm, utterances)))
    numbers = range(-(-len(utterances) // plan.batch))
    chosen = {n: utterances[n * plan.batch : (n + 1) * plan.batch] for n in numbers}
    given = plan.given(lslm, utterances)
    with state.main_process_first():
        done = _open(folder, facts, given, chosen, str(lslm.device))
    state.wait_for_everyone()  # before anything is done: all must share out the same missing batches
    mine = [n for n in numbers if n not in done][state.process_index :: state.num_processes]
    if mine:
        own = folder / "parts" / f"{state.process_index}.jsonl"
        with folders.writing(own):
            part = own.open("a", encoding="utf-8", newline="\n")
        with part:
            part.write("\n" * bool(part.tell()))  # ends a line that a crash cut short
            for number in progress(mine):
                line = as_line(number, _do_batch(lslm, chosen[number], plan.prompt, work, prepare))
                with folders.writing(own, folders.GOES_ON):
                    part.write(line)
                    part.flush()
    state.wait_for_everyone()
    done = _parts(folder, chosen)
    if lost := [number for number in numbers if number not in done]:
        raise InputError(f"{len(lost)} batches are not in {folder / 'parts'} as they were written: start again")
    records = [record for number in numbers for record in done[number]]
    if state.is_main_process:
        folders.write(folder / "results.jsonl", "".join(folders.dumps(record) + "\n" for record in records))
    if all("problem" in record for record in records):
        raise InputError(f"not one recording could be used; the first: {records[0]['problem']}")
    return records


def problems(records: Sequence[Record]) -> list[Record]:
    """The recordings that could not be used, with why."""
    return [record for record in records if "problem" in record]


def began(folder: Path) -> Record:
    """The machine, versions and commit that a run was begun with, see :mod:`affinity_pool.provenance`."""
    found: Record = folders.read(folder / folders.PROVENANCE)
    return found


Batches = Mapping[int, Sequence[Utterance]]


def _open(folder: Path, facts: Record, given: dict[str, str], batches: Batches, device: str) -> dict[int, list[Record]]:
    """Take a folder for this run, or find what is done of it."""
    folders.take(folder, facts["command"])
    begun = folders.is_begun(folder, facts, given)
    if not begun:
        folders.clear(folder / "parts")
    if not begun or "versions" not in (began(folder) or ()):
        about = provenance(device)
        if begun:
            about["note"] = "the record of the run's beginning was lost; this is of a day when it went on"
        folders.write_json(folder / folders.PROVENANCE, about)
    if not begun:
        folders.begin(folder, facts, given)
    return _parts(folder, batches)


def _parts(folder: Path, batches: Batches) -> dict[int, list[Record]]:
    """Finished batches; a line that is not what was written of one is a batch that has to be done again."""
    done = {}
    for part in sorted((folder / "parts").glob("*.jsonl")):
        for entry in folders.read_lines(part):
            match entry:
                case {"batch": int(number), "records": [*records], "crc": int(crc)} if crc == _crc(records):
                    if _are_of(records, batches.get(number, ())):
                        done[number] = records
    return done


def as_line(number: int, records: Sequence[Record]) -> str:
    """A finished batch as it stands in ``parts/``."""
    return folders.dumps({"batch": number, "records": records, "crc": _crc(records)}) + "\n"


def _crc(records: Sequence[Any]) -> int:
    return zlib.crc32(folders.dumps(records).encode())


def _are_of(records: Sequence[Any], utterances: Sequence[Utterance]) -> bool:
    """Whether these are records of just these recordings."""
    found = [record.get("utterance") if isinstance(record, dict) else None for record in records]
    return bool(utterances) and list(dict.fromkeys(found)) == [utterance.id for utterance in utterances]


def _do_batch(
    lslm: Lslm, utterances: Sequence[Utterance], prompt: str | None, work: Work, prepare: Prepare | None
) -> list[Record]:
    """Records of one batch, in its order; recordings that cannot be used do not take part."""
    records: dict[str, list[Record]] = {}

    @contextmanager
    def noting(utterance: Utterance) -> Iterator[None]:
        try:
            yield
        except InputError as error:
            records[utterance.id] = [{"utterance": utterance.id, "problem": str(error)}]

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
