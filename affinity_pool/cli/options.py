"""Options that several commands take, so that they read alike everywhere."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

Model = Annotated[str | None, typer.Option(help="Hub id or folder; the bundled tiny model if left out.")]
Data = Annotated[
    str | None,
    typer.Option(
        help="Manifest (JSON lines), or a datasets id as ID[:CONFIG[:SPLIT]]; the bundled recordings if left out."
    ),
]
Limit = Annotated[int | None, typer.Option(min=1, help="Take the first N recordings only.")]
Batch = Annotated[int, typer.Option(min=1, help="Recordings that go through the model together.")]
Device = Annotated[str | None, typer.Option(help="'cpu', 'cuda', ...; a GPU if there is one.")]
Dtype = Annotated[str, typer.Option(help="'auto': float32 on the CPU, the checkpoint's own on a GPU.")]
Prompt = Annotated[str | None, typer.Option(help="What to ask, instead of each recording's own task.")]
Out = Annotated[Path, typer.Option(help="Folder for everything written; a run started again resumes from it.")]
