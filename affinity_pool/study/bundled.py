"""The bundled model and recordings, which a source checkout has and an installed package has not."""

from pathlib import Path

BUNDLED = Path(__file__).parents[2] / "examples" / "tiny-lslm"
