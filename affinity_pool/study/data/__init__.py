"""What is listened to: recordings, manifests, data sets of the Hub, word times and the tokens that hear the words."""

from __future__ import annotations

from pathlib import Path

from ..bundled import bundled
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

    Example:
        >>> from affinity_pool.study.data import open_data
        >>> first = open_data()[0]
        >>> first.id, first.text
        ('allison-room', 'five nine two')
    """
    if spec is None:
        return read_manifest(bundled("recordings/manifest.jsonl", "recordings are", "--data"))
    path = Path(spec)
    if path.suffix in (".json", ".jsonl") or (exists(path) and not path.is_dir()):
        return read_manifest(path)
    from .hub import open_dataset  # `datasets` takes a second to import

    return open_dataset(str(spec))
