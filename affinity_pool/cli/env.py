"""``affinity-pool env``"""

from __future__ import annotations

from rich.table import Table
from rich.text import Text

from .application import console


def env() -> None:
    """What can run here: the op's backends, the machine and the versions, as needed in a bug report."""
    from .. import backends
    from ..devices import accelerator
    from ..provenance import provenance

    table = Table(box=None, padding=(0, 2, 0, 0), header_style="dim")
    for header in ("backend", "available", "devices", "detail"):
        table.add_column(header)
    for backend in backends():
        available = Text("yes", "green") if backend.available else Text("no", "yellow")
        table.add_row(backend.name, available, backend.devices, backend.detail)
    console.print(table)
    console.print()
    about = provenance(accelerator())
    facts = Table.grid(padding=(0, 2))
    for name in ("device", "cores", "threads", "system", "commit"):
        facts.add_row(name, str(about[name]))
    for name, value in about["versions"].items():
        facts.add_row(name, "not installed" if value is None else value)
    console.print(facts)
