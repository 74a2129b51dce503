"""A Debian that has just been installed: its python3 and python3-venv, an ordinary user, nothing else. Takes root.

A folder ``$CHROOTS/NAME`` that is there already is taken instead, by a copy. So a Debian older than the oldest Python
that the wheel serves can be tried too, with a Python made for it: what counts there is how old its C library is.
"""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

Run = Callable[[list[str]], subprocess.CompletedProcess[str]]
"""Runs Python with these arguments in a cell."""
USER, HOME = "1000", "/home/somebody"
CERTIFICATES = Path("/etc/ssl/certs/ca-certificates.crt")
SCRIPTS = Path("/usr/share/debootstrap/scripts")
LONGEST = 3600


class NotHad(Exception):  # noqa: N818
    """A cell could not be made here; says why. It is no fault of the wheel's."""


def make(folder: Path, release: str) -> None:
    """Install that release into ``folder/root``, with a venv in the user's home."""
    if os.geteuid() != 0:
        raise NotHad("debootstrap and chroot take root")
    root = folder / "root"
    folder.chmod(0o755)
    ready = Path(os.environ.get("CHROOTS", "/nowhere"), release)
    if ready.is_dir():
        subprocess.run(["cp", "-a", ready, root], check=True)
    else:
        debootstrap(root, release)
    shutil.copy("/etc/resolv.conf", root / "etc" / "resolv.conf")
    if CERTIFICATES.exists():  # by which a network with certificates of its own is reached
        (root / CERTIFICATES.parent.relative_to("/")).mkdir(parents=True, exist_ok=True)
        shutil.copy(CERTIFICATES, root / CERTIFICATES.relative_to("/"))
    home = root / HOME[1:]
    home.mkdir(parents=True)
    os.chown(home, int(USER), int(USER))
    started = inside(root, ["python3", "-m", "venv", f"{HOME}/venv"], [])
    if started.returncode != 0:
        raise NotHad(f"no venv: {(started.stdout + started.stderr).strip().splitlines()[-1]}")


def debootstrap(root: Path, release: str) -> None:
    if shutil.which("debootstrap") is None:
        raise NotHad("there is no debootstrap here: apt-get install debootstrap")
    made = ["debootstrap", "--variant=minbase", "--include=python3,python3-venv", release, str(root)]
    if not (SCRIPTS / release).exists():  # a release that is newer than this debootstrap
        made += ["", str(SCRIPTS / "sid")]
    done = subprocess.run(made, capture_output=True, text=True, timeout=LONGEST)
    if done.returncode != 0:
        raise NotHad(f"debootstrap: {(done.stdout + done.stderr).strip().splitlines()[-1]}")


def runner(folder: Path) -> Run:
    """How to run the Python of that venv. Files and folders that are named lie where they lie here."""
    root = folder / "root"

    def run(command: list[str]) -> subprocess.CompletedProcess[str]:
        files = [Path(part) for part in command if part.startswith("/")]
        folders = map(Path, os.environ.get("PIP_FIND_LINKS", "").split())
        return inside(root, [f"{HOME}/venv/bin/python", *command], [p for p in (*files, *folders) if p.exists()])

    return run


def inside(root: Path, command: list[str], shown: list[Path]) -> subprocess.CompletedProcess[str]:
    """Run as an ordinary user in there. What is mounted goes with the process, for it has mounts of its own."""
    mounts = [f"mount -t proc proc {root}/proc"]
    for path in shown:
        there = root / str(path)[1:]
        there.parent.mkdir(parents=True, exist_ok=True)
        if path.is_dir():
            there.mkdir(exist_ok=True)
        else:
            there.touch()
        mounts.append(f"mount --bind {path} {there}")
    environment = {"PATH": "/usr/local/bin:/usr/bin:/bin", "HOME": HOME, "LC_ALL": "C.UTF-8", **for_pip()}
    environment.pop("PIP_CACHE_DIR", None)  # which is not this user's to write to
    words = [f"{name}={value}" for name, value in environment.items()]
    script = " && ".join(mounts) + ' && cd "$1" && shift && exec "$@"'
    chroot = ["chroot", f"--userspec={USER}:{USER}", str(root), "/usr/bin/env", "-i", "-C", HOME, *words, *command]
    isolated = ["unshare", "--mount", "sh", "-c", script, "sh", str(root), *chroot]
    return subprocess.run(isolated, capture_output=True, text=True, timeout=LONGEST)


def remove(folder: Path) -> None:
    shutil.rmtree(folder / "root", ignore_errors=True)


def for_pip() -> dict[str, str]:
    """What this environment tells pip, and how it reaches the network."""
    names = ("PIP_", "http_proxy", "https_proxy", "no_proxy", "HTTP_PROXY", "HTTPS_PROXY", "NO_PROXY", "SSL_CERT_FILE")
    return {name: value for name, value in os.environ.items() if name.startswith(names)}
