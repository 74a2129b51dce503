"""The documentation site: `make docs` builds it into build/site, and every warning is an error.

Sphinx's source folder is the repository itself, so that one relative link works on the site and where the repository is
browsed. Docstrings are reStructuredText with Google's sections; pages are Markdown; docs/tutorials are scripts, run
while the site is built.
"""

from __future__ import annotations

import re
import sys
from pathlib import Path

from sphinx.application import Sphinx

HERE = Path(__file__).parent
ROOT = HERE.parent
sys.path[:0] = [str(ROOT), str(HERE)]

import affinity_pool  # noqa: E402

project = "affinity_pool"
version = release = affinity_pool.__version__
project_copyright = "the authors of affinity_pool; Apache-2.0"
language = "en"
smartquotes_action = "D"  # dashes alone: what is quoted is often to be typed
highlight_language = "none"
root_doc = "docs/index"

extensions = [
    "generated",
    "myst_parser",
    "sphinx.ext.autodoc",
    "sphinx.ext.githubpages",
    "sphinx.ext.napoleon",
    "sphinx_copybutton",
    "sphinx_design",
    "sphinx_gallery.gen_gallery",
]
include_patterns = [
    "docs/**",
    "benchmarks/README.md",
    "examples/*/README.md",
    "examples/tiny-lslm/recordings/LICENSES.md",
    "tests/mutations/README.md",
    "CHANGELOG.md",
    "CONTRIBUTING.md",
]
exclude_patterns = [".*", "build", "dist", "out", "docs/tutorials", "docs/root"]

# Every link of a page and every name in a docstring must lead somewhere; what other projects document is listed.
nitpicky = True
nitpick_ignore_regex = [
    (r"py:.*", r"(collections|contextlib|numpy|os|pathlib|torch|transformers|types|typing)\..*"),
    (r"py:.*", r"BinaryIO|Iterable|Path|PathLike|Sequence|Tensor"),
    (r"py:(class|exc)", r".*(Error|optional|None|bool|dict|float|int|list|str|tuple)"),
    (r"py:class", r"affinity_pool\.models\.(calls|transformers_calls|running)\..*"),  # of those who add a family
]

myst_enable_extensions = ["attrs_inline", "colon_fence"]
myst_heading_anchors = 4

autodoc_member_order = "bysource"
autodoc_typehints = "signature"
autodoc_typehints_format = "short"
python_use_unqualified_type_names = True
python_maximum_signature_line_length = 88
napoleon_numpy_docstring = False

sphinx_gallery_conf = {
    "examples_dirs": "docs/tutorials",
    "gallery_dirs": "docs/gallery",
    "filename_pattern": r"\.py$",
    "abort_on_example_error": True,
    "capture_repr": ("_repr_html_", "__str__"),
    "download_all_examples": False,
    "remove_config_comments": True,
    "run_stale_examples": True,  # they are as fresh as the code they call, which sphinx-gallery does not look at
    "show_memory": False,
    "show_signature": False,
    "write_computation_times": False,
    "within_subsection_order": "FileNameSortKey",
}

html_title = "affinity_pool"
html_theme = "furo"
html_extra_path = ["root"]
html_static_path = ["static"]
html_css_files = ["site.css"]
html_show_sphinx = False
html_theme_options = {"top_of_page_buttons": []}
html_show_sourcelink = html_copy_source = False
copybutton_prompt_text = r">>> |\.\.\. |\$ "
copybutton_prompt_is_regexp = True


def link_to_pages(app: Sphinx, docname: str, source: list[str]) -> None:
    """In docs/study a summary has a page beside it, made by make_pages.py once the site is there."""
    if docname.startswith("docs/"):
        depth = "" if docname.startswith("docs/study/") else "study/"
        pattern = rf"\[([^\]]+)\]\({depth}([\w-]+)/summary\.json\)"
        source[0] = re.sub(pattern, rf'<a href="{depth}\2/index.html">\1</a>', source[0])


def keep_colons(app: Sphinx, what: str, name: str, thing: object, options: object, lines: list[str]) -> None:
    """Napoleon takes what stands before the colon of an attribute's first line for its type."""
    if what in ("attribute", "property", "data") and lines:
        lines[:0] = ["..", ""]


def setup(app: Sphinx) -> None:
    app.connect("autodoc-process-docstring", keep_colons, priority=400)
    app.connect("source-read", link_to_pages)
