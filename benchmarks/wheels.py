"""The table of what ``make wheel-check`` tried: on which Python and torch the wheel does what it says."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from .markdown import markdown

Record = dict[str, Any]
TITLES = ["Python", "torch", "its build", "glibc", "outcome", "s"]
BACKENDS = ("cuda", "triton", "cpu")


def render(results: Record, source: str | None = None) -> str:
    """The table, what the cells said of the backends, what the wheel is made of, and where that was."""
    table = markdown(TITLES, [row(record) for record in results["results"]])
    wheels = "\n".join(wheel_in_words(wheel) for wheel in results["wheels"].values())
    return f"{table}\n\n{backends(results['results'])}\n\n{wheels} {origin(results['results'], source)}\n"


def row(record: Record) -> list[str]:
    """``s`` is what it took to install and to try, downloads included."""
    name = record["python"]
    if record["outcome"] != "passes":
        return [name, record["torch"], "", "", f"{record['outcome']}: {record['why']}", str(record["seconds"])]
    found = record["found"]
    python = found["python"] if name[0].isdigit() else f"{found['python']}, Debian {name}"
    build = f"CUDA {found['cuda']}" if found["cuda"] else "CPU"
    return [python, found["torch"], build, found["glibc"], "passes", str(record["seconds"])]


def backends(records: Sequence[Record]) -> str:
    """Each sentence once: most cells say the same."""
    passed = [record["found"]["backends"] for record in records if record["outcome"] == "passes"]
    said = {name: " or ".join(f'"{line}"' for line in dict.fromkeys(r[name] for r in passed)) for name in BACKENDS}
    return "`backends()` says, " + ", ".join(f"of {name}: {lines}" for name, lines in said.items()) + "."


def wheel_in_words(wheel: Record) -> str:
    gpu = ", ".join(f"{size / 1000:.0f} kB {name}" for name, size in wheel["gpu"].items()) or "none"
    commit = f"commit {wheel['commit'][:10]}" if wheel["commit"] else "an unknown commit"
    made = ", ".join([f"glibc {wheel['glibc']}", *wheel["compilers"].values()]) if "compilers" in wheel else "elsewhere"
    packed, library, python, rest = (
        f"{wheel[part] / 1e6:.2f}" for part in ("library_in_the_wheel", "library", "python", "cpu_and_rest")
    )
    return (
        f"`{wheel['file']}`: **{wheel['bytes'] / 1e6:.2f} MB**. Unpacked, {python} MB of Python and a library of "
        f"{library} MB ({packed} in the wheel): device code {gpu}; {rest} MB for the CPU, CUDA's runtime included. "
        f"Made of {commit}{' and changes' if wheel['uncommitted'] else ''} with {made}."
    )


def origin(records: Sequence[Record], source: str | None) -> str:
    dates = sorted({record["date"][:10] for record in records})
    days = dates[0] if len(dates) == 1 else f"{dates[0]} to {dates[-1]}"
    systems = ", ".join(sorted({record["system"] for record in records}))
    return f"{systems}, {days}" + (f": [{source.rpartition('/')[2]}]({source})" if source else "") + "."
