"""``python benchmarks/gpu_check``, started by its path: affinity_pool need not be installed, nor import."""

from __future__ import annotations

import sys
from pathlib import Path

sys.path[0] = str(Path(__file__).resolve().parents[1])  # in place of this folder, for gpu_check to be a package

from gpu_check.check import main  # noqa: E402

raise SystemExit(main())
