"""A result names the commit of this project, never that of a repository which happens to be around it."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import affinity_pool
from affinity_pool import provenance

pytestmark = pytest.mark.skipif(shutil.which("git") is None, reason="no git here")

PACKAGE = Path(affinity_pool.__file__).parent
LINKED = [path.name for path in PACKAGE.iterdir() if path.is_symlink()]
"""Packages whose folders lie beside affinity_pool, which links to them."""
SOURCES = shutil.ignore_patterns("*.so", "__pycache__")


def git(folder: Path, *arguments: str) -> str:
    identity = ["-c", "user.name=Somebody", "-c", "user.email=somebody@example.org", "-c", "commit.gpgsign=false"]
    command = ["git", "-C", str(folder), *identity, *arguments]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()


def repository(folder: Path) -> str:
    """Makes a repository of all that is in the folder; its commit."""
    folder.mkdir(exist_ok=True)
    (folder / "theirs.txt").write_text("not ours\n")
    git(folder, "init", "-q")
    git(folder, "add", "-A")
    git(folder, "commit", "-qm", "theirs")
    return git(folder, "rev-parse", "HEAD")


def source_tree(folder: Path) -> Path:
    """A copy of this project, as a download is one."""
    shutil.copytree(PACKAGE, folder / "affinity_pool", ignore=SOURCES, symlinks=True)
    for linked in LINKED:
        shutil.copytree(PACKAGE / linked, folder / linked, ignore=SOURCES)
    (folder / "csrc").mkdir()
    (folder / "csrc" / "kernel.h").write_text("// ours\n")
    (folder / "setup.py").write_text("# ours\n")
    shutil.copy(PACKAGE.parent / "pyproject.toml", folder)
    return folder


@pytest.fixture
def of(monkeypatch: pytest.MonkeyPatch):
    """What provenance says of a package in a folder: (commit, uncommitted)."""

    def ask(folder: Path) -> tuple[str | None, list[str] | None]:
        monkeypatch.setattr(provenance, "REPOSITORY", folder)
        return provenance.git("rev-parse", "HEAD"), provenance.changed_sources()

    return ask


def test_a_package_installed_inside_somebody_s_repository_has_no_commit(tmp_path, of):
    site = tmp_path / "venv" / "site-packages"
    shutil.copytree(PACKAGE, site / "affinity_pool", ignore=SOURCES)
    repository(tmp_path)
    assert of(site) == (None, None)


def test_a_package_installed_at_the_top_of_somebody_s_repository_has_no_commit(tmp_path, of):
    shutil.copytree(PACKAGE, tmp_path / "affinity_pool", ignore=SOURCES)
    (tmp_path / "pyproject.toml").write_text('[project]\nname = "theirs"\ndependencies = ["affinity_pool"]\n')
    repository(tmp_path)
    assert of(tmp_path) == (None, None)


def test_a_download_unpacked_inside_somebody_s_repository_has_no_commit(tmp_path, of):
    tree = source_tree(tmp_path / "downloads")
    repository(tmp_path)
    assert of(tree) == (None, None)


def test_a_download_outside_any_repository_has_no_commit(tmp_path, of):
    assert of(source_tree(tmp_path / "download")) == (None, None)


def test_a_checkout_names_its_commit_and_what_was_changed(tmp_path, of):
    commit = repository(source_tree(tmp_path / "checkout"))
    assert of(tmp_path / "checkout") == (commit, [])
    (tmp_path / "checkout" / "setup.py").write_text("# changed\n")
    assert of(tmp_path / "checkout") == (commit, ["setup.py"])


@pytest.mark.parametrize("file", ["triton_kernels/scan.py", "benchmarks/timing.py"])
def test_what_the_package_links_to_is_among_the_sources(tmp_path, of, file):
    tree = source_tree(tmp_path / "checkout")
    commit = repository(tree)
    assert of(tree) == (commit, [])
    before = provenance.sources()
    (tree / file).write_text("# changed\n")
    assert of(tree) == (commit, [file])
    assert provenance.sources() != before


def test_a_copy_that_follows_links_has_the_same_sources(tmp_path, monkeypatch):
    tree = source_tree(tmp_path / "checkout")
    shutil.copytree(tree, tmp_path / "copy")
    assert not (tmp_path / "copy" / "affinity_pool" / LINKED[0]).is_symlink()
    found = []
    for folder in (tree, tmp_path / "copy"):
        monkeypatch.setattr(provenance, "REPOSITORY", folder)
        found.append(provenance.sources())
    assert found[0] == found[1]


def test_a_worktree_and_a_submodule_are_checkouts(tmp_path, of):
    commit = repository(source_tree(tmp_path / "checkout"))
    git(tmp_path / "checkout", "worktree", "add", "-q", "--detach", str(tmp_path / "worktree"))
    assert of(tmp_path / "worktree") == (commit, [])
    theirs = tmp_path / "theirs"
    repository(theirs)
    git(theirs, "-c", "protocol.file.allow=always", "submodule", "--quiet", "add", str(tmp_path / "checkout"), "ours")
    assert of(theirs / "ours") == (commit, [])


def test_a_repository_in_the_environment_is_not_asked(tmp_path, of, monkeypatch):
    """A git hook sets these, and everything it starts inherits them."""
    commit = repository(source_tree(tmp_path / "checkout"))
    theirs = repository(tmp_path / "theirs")
    assert commit != theirs
    monkeypatch.setenv("GIT_DIR", str(tmp_path / "theirs" / ".git"))
    monkeypatch.setenv("GIT_WORK_TREE", str(tmp_path / "theirs"))
    monkeypatch.setenv("GIT_INDEX_FILE", str(tmp_path / "theirs" / ".git" / "index"))
    assert of(tmp_path / "checkout") == (commit, [])


def test_without_git_there_is_no_commit(tmp_path, of, monkeypatch):
    repository(source_tree(tmp_path / "checkout"))
    monkeypatch.setenv("PATH", str(tmp_path))
    assert of(tmp_path / "checkout") == (None, None)


def test_sources_of_an_installed_package_are_its_own_alone(tmp_path, monkeypatch):
    shutil.copytree(PACKAGE, tmp_path / "affinity_pool", ignore=SOURCES)
    monkeypatch.setattr(provenance, "REPOSITORY", tmp_path)
    before = provenance.sources()
    (tmp_path / "csrc").mkdir()
    (tmp_path / "csrc" / "theirs.h").write_text("// of another package\n")
    (tmp_path / "setup.py").write_text("# of another package\n")
    assert provenance.sources() == before
    (tmp_path / "affinity_pool" / "pooling.py").write_text("# changed\n")
    assert provenance.sources() != before


def test_the_version_is_that_of_the_code_that_runs(tmp_path):
    """Another version may be installed elsewhere."""
    stale = tmp_path / "affinity_pool-9.9.9.dist-info"
    stale.mkdir()
    (stale / "METADATA").write_text("Metadata-Version: 2.1\nName: affinity_pool\nVersion: 9.9.9\n")
    program = "from affinity_pool.provenance import versions; print(versions()['affinity_pool'])"
    path = f"{PACKAGE.parent}:{tmp_path}"
    run = subprocess.run(
        [sys.executable, "-c", program], env={"PYTHONPATH": path, "PATH": ""}, capture_output=True, text=True
    )
    assert run.stdout.strip() == affinity_pool.__version__, run.stderr
