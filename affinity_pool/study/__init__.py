"""What the demo and the experiments are made of. Needs the extra ``affinity_pool[study]``.

``audio`` and ``manifest`` read recordings, ``lslm`` loads a model and asks it, ``wer``, ``flops`` and ``ttft`` measure,
``groups`` follows tokens through the sites, ``baselines`` are what Affinity Pooling has to beat, ``figure``, ``page``
and ``report`` show; ``demo`` puts them together.
"""

from pathlib import Path

BUNDLED = Path(__file__).parents[2] / "examples" / "tiny-lslm"
"""The bundled model and recordings, in a source checkout."""


class InputError(ValueError):
    """Something the user gave cannot be used. The message says what, and what would do; commands print it as it is."""
