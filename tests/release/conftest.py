"""release/ is a folder of programs, not a package: its modules are imported by their names."""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2] / "release"))
