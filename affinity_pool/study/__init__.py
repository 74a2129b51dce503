"""The paper's study, and the demo. Needs the extra ``affinity_pool[study]``.

What is heard: ``data``. Who hears it: ``lslm``, asked through ``prompts``. What is done to it: ``reductions``, beside
the pooling of :mod:`affinity_pool.models`. How it is run: ``runs`` (batches, resuming, processes), ``conditions`` (the
same recordings under each). What it comes to: ``metrics``, ``scores``, ``flops``, ``ttft``, ``groups``. Who shows it:
``report``.

On these stand the experiments, a module and a command each: ``demo``, ``evaluate``, ``oracle``, ``probe``,
``dynamics``, ``calibrate`` and ``cost``.
"""

from pathlib import Path

BUNDLED = Path(__file__).parents[2] / "examples" / "tiny-lslm"
"""The bundled model and recordings, in a source checkout."""


class InputError(ValueError):
    """Something the user gave cannot be used. The message says what, and what would do; commands print it as it is."""
