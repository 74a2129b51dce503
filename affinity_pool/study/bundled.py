"""The bundled model and recordings, which a source checkout has and an installed package has not."""

from pathlib import Path

from .errors import InputError

BUNDLED = Path(__file__).parents[2] / "examples" / "tiny-lslm"


def bundled(file: str, what: str, instead: str) -> Path:
    """A file of ``BUNDLED``.

    Raises:
        InputError: this is an installed package, which has not ``what``; ``instead`` is the option to give.
    """
    path = BUNDLED / file
    if not path.is_file():
        raise InputError(
            f"the bundled {what} part of the source checkout, not of the installed package: "
            f"run this in a clone of the repository, or give {instead}"
        )
    return path


def bundled_model(instead: str) -> Path:
    """The folder of the bundled checkpoint; see :func:`bundled`."""
    return bundled("checkpoint/config.json", "model is", instead).parent
