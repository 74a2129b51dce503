"""Parts of pages that are made of the program itself: the commands and their options, and the ops' schemas."""

from __future__ import annotations

import re
import subprocess
import sys

from docutils import nodes
from docutils.statemachine import StringList
from sphinx.application import Sphinx
from sphinx.util.docutils import SphinxDirective

from affinity_pool._ops import ops
from affinity_pool.ops import REFERENCE


class Commands(SphinxDirective):
    """A section for each command of ``affinity-pool``, as typer writes it down."""

    def run(self) -> list[nodes.Node]:
        typer = [
            sys.executable,
            "-m",
            "typer",
            "affinity_pool.cli.commands",
            "utils",
            "docs",
            "--name",
            "affinity-pool",
        ]
        written = subprocess.run(typer, capture_output=True, text=True, check=True).stdout
        commands = written[written.index("\n## ") :]  # what stands before lists them once more
        holder = nodes.section()
        holder.document = self.state.document
        lines = [as_code(line) for line in commands.split("\n")]
        self.state.nested_parse(StringList(lines, "commands"), 0, holder, match_titles=True)
        return holder.children


def as_code(line: str) -> str:
    """A line of the list with the options that its text names as code; unmarked, their dashes would become one."""
    option, colon, text = line.partition("`: ") if line.startswith("* `") else ("", "", line)
    return option + colon + re.sub(r"(?<![\w`-])(--[a-z][\w-]*)", r"`\1`", text)


class OpSchemas(SphinxDirective):
    """The schemas of the ops, as torch has them."""

    def run(self) -> list[nodes.Node]:
        schemas = "\n\n".join(str(getattr(ops, name).default._schema) for name in REFERENCE)
        return [nodes.literal_block(schemas, schemas, language="text", classes=["wrapped"])]


def setup(app: Sphinx) -> dict[str, bool]:
    app.add_directive("commands", Commands)
    app.add_directive("op-schemas", OpSchemas)
    return {"parallel_read_safe": True}
