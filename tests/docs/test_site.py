"""The documentation site can be built: no warning, tutorials run, each page of the study is there, no dead link."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from public import MODULES

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"


def test_the_site_is_built_and_all_links_lead_somewhere(tmp_path: Path) -> None:
    for needed in ("sphinx", "furo", "myst_parser", "sphinx_gallery"):
        pytest.importorskip(needed)
    built = subprocess.run([sys.executable, DOCS / "build.py", tmp_path / "site"], capture_output=True, text=True)
    assert built.returncode == 0, built.stderr + built.stdout
    site = tmp_path / "site" / "docs"

    for tutorial in DOCS.glob("tutorials/*.py"):
        page = (site / "gallery" / f"{tutorial.stem}.html").read_text(encoding="utf-8")
        assert "sphx-glr-script-out" in page  # what it printed

    pages = {path.parent.name: path.read_text(encoding="utf-8") for path in site.glob("study/*/index.html")}
    listed = (DOCS / "study" / "README.md").read_text(encoding="utf-8")
    assert len(pages) == 25
    for name, page in pages.items():
        assert f"[{name}](" in listed
        assert page.startswith("<!doctype html>")
        assert page.endswith("</html>\n")
    assert (site / "study" / "oracle" / "wer-26.png").read_bytes()

    reference = "".join(path.read_text(encoding="utf-8") for path in (site / "api").glob("*.html"))
    for module in MODULES:
        for name in module.__all__:
            ids = (f"{module.__name__}.{name}", f"affinity_pool.{name}", f"module-affinity_pool.{name}")
            assert any(f'id="{anchor}"' in reference for anchor in ids), f"{module.__name__}.{name} has no entry"
            public = getattr(module, name)
            for part in (*getattr(public, "__dataclass_fields__", ()), *getattr(public, "_fields", ())):
                assert any(f'id="{anchor}.{part}"' in reference for anchor in ids), f"{name}.{part} is not described"


def test_a_dead_link_is_found(tmp_path: Path) -> None:
    sys.path.insert(0, str(DOCS))
    try:
        from build import broken_links
    finally:
        sys.path.remove(str(DOCS))
    (tmp_path / "there.html").write_text('<a href="#place"></a><h1 id="place"></h1>')
    (tmp_path / "page.html").write_text(
        '<a href="there.html#place"></a><a href="there.html#nowhere"></a><img src="gone.png"><a href="https://a.b"></a>'
    )
    assert list(broken_links(tmp_path)) == [
        "page.html: there.html#nowhere: no such place",
        "page.html: gone.png: no such file",
    ]
