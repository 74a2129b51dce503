"""The op's claims hold for the Triton kernels, wherever a CPU is: run again in a process that interprets them.

The interpreter takes milliseconds where a GPU takes none, so claims that need thousands of rows are left to a GPU, and
of those that come in several sizes or dtypes the slow ones.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

HERE = Path(__file__).parent
CLAIMS = (
    "op/test_rule.py",
    "op/test_pool_to.py",
    "op/test_means.py",
    "op/test_shapes.py",
    "triton_kernels/test_counts.py",
    "triton_kernels/test_kernels.py",
)
SLOW = (
    "reaches_exactly_so_far and (11 or 32)",
    "wide_rows and not dtype2",
    "harms_no_one and not dtype2",
    "threshold_above_one_is",
    "rounding_beyond_one and not dtype2",
    "every_16_bit",
    "of_16_bit_pairs",
    "ties_between and not dtype1",
    "counts_beyond",
    "no_worse and (300 or 1500)",
    "sums_do_not_overflow",
    "strides_do_not_matter",
    "arguments_are_left",
    "as_many_chunks",
    "every_row_finds and not 9-2-dtype1",
    "every_feature and not 1-160-dtype2",
    "of_packed_sequences and not dtype2",
    "padded_sequences and not dtype2",
    "have_the_weakest and not dtype2",
    "between_two_links and not dtype2",
    "test_pool_to and not (share_of_each_run or counts_obey or zero_rows or beyond_float32)",
)


def test_the_claims_hold_in_the_interpreter():
    pytest.importorskip("triton", reason="triton is not installed")
    environment = {
        **{key: value for key, value in os.environ.items() if not key.startswith("PYTEST_")},
        "PYTHONPATH": os.pathsep.join([str(HERE), str(HERE.parent), *filter(None, sys.path)]),
        "TRITON_INTERPRET": "1",
        "HYPOTHESIS_PROFILE": os.environ.get("HYPOTHESIS_PROFILE", "brief"),
    }
    options = ["-x", "-p", "no:cacheprovider", "-p", "interpreted", "-W", "ignore"]
    chosen = ["-k", "not (" + " or ".join(f"({slow})" for slow in SLOW) + ")", *CLAIMS]
    run = subprocess.run(
        [sys.executable, "-m", "pytest", *options, *chosen],
        env=environment, cwd=HERE.parent, capture_output=True, text=True,
    )  # fmt: skip
    assert run.returncode == 0, run.stdout[-4000:] + run.stderr[-1000:]
