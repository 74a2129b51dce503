"""Lets a library that is linked on a new Linux load on an old one, whose C library is that of manylinux_2_28.

The CUDA runtime that goes into the library calls 46 functions that glibc 2.34 moved from libpthread, libdl and librt
into libc, under a new version: linked here they ask for glibc 2.34, though each is what it was in 2.2.5. A linker takes
the version from the library it is shown. So it is shown three that say what glibc 2.28 said, made from what the libc
here still offers to old programs; they hold no code, serve the link alone, and are thrown away.
"""

from __future__ import annotations

import os
import re
import subprocess
from collections import defaultdict
from pathlib import Path

NEWEST = (2, 28)
OLD_HOMES = {
    "libdl.so.2": r"dl[a-z]+$",
    "librt.so.1": r"shm_|mq_|aio_|lio_|timer_",
    "libpthread.so.0": r"pthread_|sem_",
}
"""Where functions lived, by the first pattern that matches."""
NO_SHORTCUT = '__attribute__((visibility("hidden"))) char __libc_single_threaded = 0;\n'
"""Of glibc 2.32: by it shared_ptr spares atomic operations while there is one thread. Here there are always more."""

Version = tuple[int, ...]


def link_flags(folder: Path) -> str:
    """``$LDFLAGS`` for a library that needs no glibc after ``NEWEST``, with the files it names, made in ``folder``."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "single_threaded.c").write_text(NO_SHORTCUT)
    run("-c", "-fPIC", folder / "single_threaded.c", "-o", folder / "single_threaded.o")
    for soname, functions in moved(defined(libc())).items():
        stand_in(folder, soname, functions)
    return f"{folder / 'single_threaded.o'} -L{folder}"


def libc() -> Path:
    """The C library that is linked with here."""
    answer = run("-print-file-name=libc.so.6").strip()
    return Path(answer)


def defined(library: Path) -> str:
    """What objdump tells of the symbols of a library."""
    return subprocess.run(["objdump", "-T", library], capture_output=True, text=True, check=True).stdout


def moved(symbols: str) -> dict[str, dict[str, Version]]:
    """By the library that had them: functions whose version is new, and the last that they had by ``NEWEST``."""
    offered: dict[str, set[Version]] = defaultdict(set)
    for version, name in re.findall(r" \(?GLIBC_([\d.]+)\)? +(\w+)$", symbols, re.MULTILINE):
        offered[name].add(tuple(map(int, version.split("."))))
    found: dict[str, dict[str, Version]] = defaultdict(dict)
    for name, versions in sorted(offered.items()):
        old = [version for version in versions if version <= NEWEST]
        home = next((soname for soname, names in OLD_HOMES.items() if re.match(names, name)), None)
        if home and old and max(versions) > NEWEST:
            found[home][name] = max(old)
    return dict(found)


def stand_in(folder: Path, soname: str, functions: dict[str, Version]) -> None:
    """A library of that name with these functions in these versions, and no code in them."""
    nodes: dict[Version, list[str]] = defaultdict(list)
    for name, version in functions.items():
        nodes[version].append(name)
    stem = soname.partition(".")[0]
    source, script = folder / f"{stem}.c", folder / f"{stem}.map"
    source.write_text("".join(f"void {name}(void) {{}}\n" for name in functions))
    script.write_text(
        "".join(f"GLIBC_{'.'.join(map(str, v))} {{ global: {'; '.join(nodes[v])}; }};\n" for v in sorted(nodes))
    )
    named = [f"-Wl,-soname,{soname}", f"-Wl,--version-script,{script}"]
    run("-shared", "-nostdlib", "-fPIC", "-fno-builtin", *named, source, "-o", folder / f"{stem}.so")


def run(*arguments: str | Path) -> str:
    compiler = os.environ.get("CC", "gcc").split()
    return subprocess.run([*compiler, *arguments], capture_output=True, text=True, check=True).stdout
