"""What is listened to: recordings, manifests, data sets of the Hub, word times and the tokens that hear the words."""

from __future__ import annotations

from pathlib import Path

from ..bundled import BUNDLED
from ..errors import InputError
from .audio import Audio, load_audio
from .files import exists
from .manifest import Utterance, Word, read_manifest

__all__ = ["Audio", "Utterance", "Word", "load_audio", "open_data", "read_manifest"]


def open_data(spec: str | Path | None = None) -> list[Utterance]:
    """The utterances of a data set, in its order; recordings are read when they are loaded.

    Args:
        spec: a manifest (see :mod:`.manifest`); ``ID[@REVISION][:CONFIG[:SPLIT]]`` of `datasets`, ID being of the Hub
            or a folder (see :mod:`.hub`); None: the bundled recordings.

    Raises:
        InputError: it cannot be opened or read, or something is wrong with it that no single recording is to blame for.
    """
    if spec is None:
        bundled = BUNDLED / "recordings" / "manifest.jsonl"
        if not bundled.is_file():
            raise InputError(
                "the bundled recordings are part of the source checkout, not of the installed package: "
                "run this in a clone of the repository, or give --data"
            )
        return read_manifest(bundled)
    path = Path(spec)
    if path.suffix in (".json", ".jsonl") or (exists(path) and not path.is_dir()):
        return read_manifest(path)
    from .hub import open_dataset  # `datasets` takes a second to import

    return open_dataset(str(spec))
