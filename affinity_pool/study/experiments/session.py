"""What every experiment does around its own work: load, choose recordings, run, summarise, write."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.progress import track

from ...cli.application import console

if TYPE_CHECKING:
    from ..data import Utterance
    from ..report.page import Page
    from ..runs.batches import Prepare, Work
    from ..runs.results import Facts, Finished, Row, Summary, Unusable
    from ..subject.lslm import Lslm


@dataclass(frozen=True)
class RunOptions:
    """What commands that run over recordings are told alike."""

    model: str | None
    data: str | None
    task: str | None
    limit: int | None
    prompt: str | None
    batch: int
    out: Path
    device: str | None
    dtype: str


@dataclass(frozen=True)
class Session:
    """A model, the recordings it is to hear, and where results go."""

    lslm: Lslm
    utterances: Sequence[Utterance]
    data: str
    out: Path
    batch: int
    prompt: str | None
    reported: set[str] = field(default_factory=set)
    """Recordings that cannot be used and that the user was told of."""

    def run(
        self,
        command: str,
        options: Facts,
        work: Work[Row],
        prepare: Prepare | None = None,
        folder: Path | None = None,
        files: Mapping[str, str] | None = None,
    ) -> Finished[Row]:
        """Do a command's work on all recordings; the user is told of those that cannot be used."""
        from ..runs.batches import Plan, run

        plan = Plan(command, self.lslm.name, {"data": self.data, **options}, self.batch, self.prompt, files or {})

        def shown(batches: Sequence[int]) -> Any:
            return track(batches, command, console=console, transient=True)

        finished = run(self.lslm, self.utterances, plan, folder or self.out, work, prepare, shown)
        if self.leads:
            self._report(finished.unusable)
        return finished

    @property
    def leads(self) -> bool:
        """Whether this process is the one that writes."""
        from ..runs.batches import processes

        return bool(processes().is_main_process)

    def _report(self, unusable: Sequence[Unusable]) -> None:
        unusable = [record for record in unusable if record["utterance"] not in self.reported]
        self.reported.update(record["utterance"] for record in unusable)
        for record in unusable[:10]:
            text = f"Left out: {record['utterance']}: {record['problem']}"
            console.print(text, style="yellow", soft_wrap=True)
        if more := len(unusable[10:]):
            console.print(f"and {more} more; see results.jsonl", style="yellow")

    def write(self, summary: Summary, page: Page) -> None:
        """``summary.json`` and the page, and the page's findings on the terminal."""
        from ..report.page import write
        from ..runs import folders

        folders.write_json(self.out / folders.SUMMARY, summary)
        written = write(page, self.out)
        for finding in page.findings:
            console.print(finding.replace("**", "").replace("`", ""), soft_wrap=True)
        names = ", ".join(path.name for path in written)
        console.print(f"\nWritten to {self.out}: results.jsonl, summary.json, {names}", soft_wrap=True)


def open_session(
    command: str, options: RunOptions, check: Callable[[Sequence[Utterance], Any], object] | None = None
) -> Session:
    """Choose the recordings and load the model, on this process's own device.

    ``check`` is shown the recordings and the model's number of layers (None: of an encoder-decoder model, for commands
    that take one) before the weights are read: whatever is wrong with the rest of a command is told there.
    """
    from ..data import open_data
    from ..errors import InputError
    from ..runs import folders
    from ..runs.batches import processes
    from ..subject.lslm import load

    folders.take(options.out, command)
    everything = open_data(options.data)
    chosen = [one for one in everything if options.task is None or one.task == options.task][: options.limit]
    if not chosen:
        name = options.data or "the bundled manifest"
        tasks = ", ".join(sorted({utterance.task for utterance in everything}))
        raise InputError(f"{name} has no recording for the task {options.task!r}, only for {tasks}")
    device = options.device or str(processes().device)
    of_layers = command if command in ("oracle", "probe", "calibrate") else None
    told = None if check is None else lambda depth: check(chosen, depth)
    lslm = load(options.model, device, options.dtype, told, of_layers)
    return Session(lslm, chosen, options.data or "bundled recordings", options.out, options.batch, options.prompt)
