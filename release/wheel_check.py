"""Installs the wheel of dist/ as a stranger would, on one Python and torch after the other, and runs smoke.py there.

    make wheel-check                                             every Python found here, with one torch
    make wheel-check CELLS="3.10/2.10.0 3.13/2.14.1"             these; CELLS may go on for lines
    make wheel-check CELLS="3.11/2.13.0+cpu bookworm/2.13.0"     a build of torch by its name; a bare Debian

A cell is PYTHON/TORCH. 3.10/2.10.0 is that Python in a new venv and the file of the package index named torch 2.10.0,
which on Linux has CUDA and unpacks to 5 to 8 GB; 2.13.0+cpu is that build, where pip is told of an index that has it.
bookworm/... is a Debian of that name by debootstrap, with its python3 and python3-venv and no more, as an ordinary
user; it takes root. No compiler is to be found in any cell. One is made at a time and deleted.

Outcomes go to benchmarks/results/wheel/check.json, cell by cell; those not asked for stay as they are.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import platform
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import contents
import debian
from debian import LONGEST, NotHad

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "benchmarks" / "results" / "wheel" / "check.json"
SMOKE = Path(__file__).with_name("smoke.py")
TORCH = "2.13.0"
PYTHONS = [f"3.{minor}" for minor in range(10, 20)]

Record = dict[str, Any]


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("cells", nargs="*", metavar="PYTHON/TORCH", help="as above; every Python here if left out")
    parser.add_argument("--out", type=Path, default=RESULTS, help="results file to write, or to add to")
    options = parser.parse_args(arguments)
    cells = options.cells or [f"{python}/{TORCH}" for python in PYTHONS if interpreter(python)]
    for cell in cells:
        if cell.count("/") != 1 or not all(cell.split("/")):
            parser.error(f"a cell is PYTHON/TORCH, such as 3.12/2.13.0 or bookworm/2.13.0, got {cell!r}")
    wheel = the_wheel()
    about = {"file": wheel.name, **contents.parts(wheel), **origin(wheel)}
    print(f"{wheel.name}: {contents.in_words(about)}", flush=True)
    failed = 0
    for cell in cells:
        python, torch = cell.split("/")
        record = check(python, torch, wheel)
        failed += record["outcome"] == "fails"
        print(f"{cell}: {record['outcome']}, {record['seconds']:.0f} s. {record.get('why', '')}", flush=True)
        keep(options.out, about, record)
    if failed:
        raise SystemExit(f"{failed} of {len(cells)} cells fail")


def the_wheel() -> Path:
    wheels = sorted((ROOT / "dist").glob("affinity_pool-*.whl"))
    if len(wheels) != 1:
        raise SystemExit(f"dist/ has {len(wheels)} wheels, and one is checked: make wheel")
    return wheels[0]


def origin(wheel: Path) -> Record:
    """What `make wheel` noted of this very file, and of another nothing but what it is."""
    digest = hashlib.sha256(wheel.read_bytes()).hexdigest()
    noted = wheel.with_name(contents.MADE)
    made: Record = json.loads(noted.read_text()) if noted.exists() else {}
    return made if made.get("sha256") == digest else {"sha256": digest, "commit": None, "uncommitted": None}


def check(python: str, torch: str, wheel: Path) -> Record:
    """Make a cell, run the smoke test in it, delete it."""
    started = time.monotonic()
    record: Record = {
        "python": python,
        "torch": torch,
        "date": datetime.now(timezone.utc).isoformat(timespec="seconds"),
    }
    is_debian = not python[0].isdigit()
    with tempfile.TemporaryDirectory(prefix="affinity-pool-cell-", dir=os.environ.get("TMPDIR")) as folder:
        try:
            if is_debian:
                debian.make(Path(folder), python)
                run = debian.runner(Path(folder))
            else:
                run = bare(Path(folder), python)
            record |= smoke(run, torch, wheel)
        except NotHad as error:
            record |= {"outcome": "not had", "why": str(error)}
        except subprocess.TimeoutExpired:
            record |= {"outcome": "not had", "why": f"it took more than {LONGEST} s"}
        finally:
            if is_debian:
                debian.remove(Path(folder))
    record |= {"seconds": round(time.monotonic() - started), "system": f"{platform.system()} {platform.machine()}"}
    return record


def smoke(run: debian.Run, torch: str, wheel: Path) -> Record:
    """Install as anybody would, wheels alone for want of a compiler; then what smoke.py finds."""
    version = f"torch=={torch}" if "+" in torch else f"torch==={torch}"  # === is this very file: no build beside it
    installed = run(["-m", "pip", "install", "--quiet", "--only-binary", ":all:", version, str(wheel)])
    if installed.returncode != 0:
        said = installed.stderr.splitlines()
        error = next((line for line in said if line.startswith("ERROR: ")), said[-1] if said else "pip said nothing")
        if "affinity_pool" in error:  # it is not of torch that pip complains
            return {"outcome": "fails", "why": error, "log": said[-40:]}
        raise NotHad(error.removeprefix("ERROR: "))
    done = run([str(SMOKE)])
    if done.returncode != 0:
        said = (done.stderr.strip() or f"ended with {done.returncode}").splitlines()
        return {"outcome": "fails", "why": said[-1], "log": said[-40:]}
    found: Record = json.loads(done.stdout.splitlines()[-1])
    return {"outcome": "passes", "found": found}


def bare(folder: Path, python: str) -> debian.Run:
    """A venv, and how to run its Python: with nothing on the path but that venv's own programs."""
    base = interpreter(python)
    if base is None:
        raise NotHad(f"there is no Python {python} here")
    venv = folder / "venv"
    made = subprocess.run([base, "-m", "venv", venv], capture_output=True, text=True)
    if made.returncode != 0:
        raise NotHad(f"no venv of {base}: {(made.stdout + made.stderr).strip().splitlines()[-1]}")
    environment = {"PATH": str(venv / "bin"), "HOME": str(folder), "TMPDIR": str(folder), **debian.for_pip()}

    def run(command: list[str]) -> subprocess.CompletedProcess[str]:
        python = str(venv / "bin" / "python")
        return subprocess.run(
            [python, *command], cwd=folder, env=environment, capture_output=True, text=True, timeout=LONGEST
        )

    return run


def interpreter(python: str) -> str | None:
    """On the path, or made by pyenv or uv; the newest of that minor version."""
    home = Path.home()
    named = f"bin/python{python}"
    made = [*home.glob(f".pyenv/versions/{python}.*/{named}"), *home.glob(f".local/share/uv/python/*/{named}")]
    on_path = shutil.which(f"python{python}")
    for candidate in [*([on_path] if on_path else []), *map(str, sorted(made, reverse=True))]:
        answer = subprocess.run([candidate, "-c", "print('here')"], capture_output=True, text=True)
        if answer.returncode == 0:  # pyenv has names on the path that run nothing
            return candidate
    return None


def keep(file: Path, wheel: Record, record: Record) -> None:
    """Put a cell into the results. A cell says of which wheel it is: others in the file may be of an older one."""
    results: Record = json.loads(file.read_text()) if file.exists() else {"suite": "wheel", "wheels": {}, "results": []}
    record["wheel"] = wheel["sha256"][:16]
    results["wheels"][record["wheel"]] = wheel
    others = [r for r in results["results"] if (r["python"], r["torch"]) != (record["python"], record["torch"])]
    results["results"] = sorted([*others, record], key=order)
    used = {r["wheel"] for r in results["results"]}
    results["wheels"] = {name: about for name, about in results["wheels"].items() if name in used}
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps(results, indent=1) + "\n")


def order(record: Record) -> tuple[bool, list[int], str, list[int], str]:
    """Pythons by number, then Debians; torch by number."""

    def numbers(version: str) -> list[int]:
        return [int(part) for part in version.partition("+")[0].split(".") if part.isdigit()]

    name = record["python"]
    return not name[0].isdigit(), numbers(name), name, numbers(record["torch"]), record["torch"]


if __name__ == "__main__":
    main(sys.argv[1:])
