"""Builds the site: `python docs/build.py [FOLDER]`, as `make docs` does. Whatever is wrong with it is an error.

Sphinx builds it with warnings as errors and runs the tutorials; the study's pages are made from their summaries; then
every link of every page is followed, but for those that lead out of it.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

DOCS = Path(__file__).parent
ROOT = DOCS.parent


class Page(HTMLParser):
    """The links and anchors of a page."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.links: list[str] = []
        self.anchors = {"", "top"}
        self.feed(html)

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        for name, value in attributes:
            if name in ("href", "src") and value is not None:
                self.links.append(value)
            elif (name == "id" or (name == "name" and tag == "a")) and value is not None:
                self.anchors.add(value)


def broken_links(site: Path) -> Iterator[str]:
    """Each link of the site that leads to no file of it, or to no place in one."""
    pages = {path: Page(path.read_text(encoding="utf-8")) for path in site.rglob("*.html")}
    for path, page in pages.items():
        for link in page.links:
            scheme, host, target, _, anchor = urlsplit(link)
            if scheme or host:
                continue
            found = (path.parent / unquote(target)).resolve() if target else path
            if found.is_dir():
                found /= "index.html"
            if not found.exists():
                yield f"{path.relative_to(site)}: {link}: no such file"
            elif found in pages and unquote(anchor) not in pages[found].anchors:
                yield f"{path.relative_to(site)}: {link}: no such place"


def main(site: Path) -> None:
    site = site.resolve()
    if (site / "objects.inv").exists():  # what an earlier build has left would be taken for pages of this one
        shutil.rmtree(site)
    sphinx = ["-m", "sphinx", "-q", "-E", "--fail-on-warning", "-c", DOCS, ROOT, site]
    study = [DOCS / "make_pages.py", site / "docs" / "study"]
    environment = os.environ | {"MPLBACKEND": "agg", "HF_HUB_DISABLE_PROGRESS_BARS": "1", "HF_HUB_OFFLINE": "1"}
    for work in (sphinx, study):
        done = subprocess.run([sys.executable, *work], env=environment, stdout=subprocess.DEVNULL)
        if done.returncode:
            raise SystemExit(done.returncode)
    if broken := list(broken_links(site)):
        raise SystemExit("\n".join(broken))
    print(site / "index.html")


if __name__ == "__main__":
    main(Path(sys.argv[1]) if len(sys.argv) > 1 else ROOT / "build" / "site")
