"""``affinity-pool dynamics``"""

from __future__ import annotations

from pathlib import Path

from ....cli.application import errors_in_words
from ....cli.options import Alignments, Batch, Data, Device, Dtype, Limit, Model, OneTask, Out, Prompt


def dynamics(
    model: Model = None,
    data: Data = None,
    alignments: Alignments = None,
    task: OneTask = "transcribe",
    prompt: Prompt = None,
    limit: Limit = None,
    batch: Batch = 16,
    out: Out = Path("out/dynamics"),
    device: Device = None,
    dtype: Dtype = "auto",
) -> None:
    """Similarity dynamics: how alike audio tokens are at each layer.

    Neighbour similarity, the mean over all pairs, and the largest inside a word. No text is needed; without word times
    the third is left out.
    """
    with errors_in_words():
        from ...data.alignment import check_source
        from ...data.digests import of_word_times
        from ..session import RunOptions, open_session
        from . import run as dynamics
        from .page import page

        check_source(alignments)
        common = RunOptions(model, data, task, limit, prompt, batch, out, device, dtype)
        session = open_session("dynamics", common)
        lslm = session.lslm
        options = {"alignments": alignments, "task": task}
        done = session.run(
            "dynamics",
            options,
            dynamics.Measuring(lslm),
            dynamics.word_spans(alignments, lslm),
            files=of_word_times(alignments),
        )
        if session.leads:
            summary = dynamics.summarise(lslm, done)
            session.write(summary, page(summary))
