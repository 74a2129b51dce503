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
    command: str,
    model: str | None,
    data: str | None,
    *,
    out: Path,
    batch: int,
    task: str | None = None,
    limit: int | None = None,
    prompt: str | None = None,
    device: str | None = None,
    dtype: str = "auto",
    check: Callable[[Sequence[Utterance], int], object] | None = None,
) -> Session:
    """Choose the recordings and load the model, on this process's own device.

    ``check`` is shown the recordings and the model's number of layers before the weights are read: whatever is wrong
    with the rest of a command is told there.
    """
    from ..data import open_data
    from ..errors import InputError
    from ..runs import folders
    from ..runs.batches import processes
    from ..subject.lslm import load

    folders.take(out, command)
    everything = open_data(data)
    chosen = [utterance for utterance in everything if task is None or utterance.task == task][:limit]
    if not chosen:
        tasks = ", ".join(sorted({utterance.task for utterance in everything}))
        raise InputError(f"{data or 'the bundled manifest'} has no recording for the task {task!r}, only for {tasks}")
    lslm = load(
        model, device or str(processes().device), dtype, None if check is None else lambda depth: check(chosen, depth)
    )
    return Session(lslm, chosen, data or "bundled recordings", out, batch, prompt)
