"""Data sets of `datasets`: from the Hub, or a local folder that ``load_dataset`` or ``load_from_disk`` reads::

    ID[@REVISION][:CONFIG[:SPLIT]]          without a split: the only one, else "test"

    openslr/librispeech_asr:clean:test      LibriSpeech test-clean, columns audio, text, id
    openslr/librispeech_asr:other:test      LibriSpeech test-other
    google/fleurs@refs/convert/parquet:en_us:test
                                            FLEURS, columns audio, transcription, id, lang_id; cmn_hans_cn for Mandarin
    fixie-ai/covost2:en_zh-CN:test          CoVoST 2 with its audio, columns audio, sentence, translation, id
    corpora/mine:default:test               a folder of Parquet files (for one of recordings write a manifest)
    corpora/saved::test                     what save_to_disk wrote

as in ``affinity-pool eval --data openslr/librispeech_asr:clean:test``. Only the files of the split are downloaded.
`datasets` 4 runs no loading script, which FLEURS has: the Hub keeps a copy in Parquet of such data sets, in the branch
``refs/convert/parquet``. No Hub was at hand where this was written.

Columns are found by the names in ``COLUMNS``. Where there is a ``translation`` the task is "translate": that column is
the reference, and its language is the second of a configuration such as "en_zh-CN". A model that wants more of a prompt
gets it by ``--prompt``, such as "Translate the speech into Chinese." Else the task is "transcribe". A
``translation`` with a text for each language gives that of the configuration. LibriSpeech, which has no column for its
language, is English. Ids are those of the data set, with "#row" where several rows share one, as
in FLEURS, or the numbers of the rows.

`datasets` is asked for the bytes of a recording alone, which soundfile decodes: torchcodec is not needed.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..errors import InputError
from .manifest import TASK, Utterance, unique

COLUMNS: dict[str, tuple[str, ...]] = {
    "audio": ("audio",),
    "text": ("text", "transcription", "sentence", "transcript", "normalized_text", "text_normalized"),
    "translation": ("translation",),
    "id": ("id", "utterance_id", "segment_id"),
    "language": ("lang_id", "locale", "language"),
}
TRANSLATE = "translate"

_CODE = re.compile(r"[A-Za-z]{2,3}(?:[-_]\w+)*")
_PAIR = re.compile(r"[a-z]{2,3}(?:-\w+)?_([a-z]{2,3}(?:-\w+)?)")


@dataclass(frozen=True, eq=False)
class Row:
    """A recording in a data set, read when it is called."""

    recordings: Any
    """The data set's audio column, not decoded."""
    index: int
    folder: Path
    """What paths are relative to."""

    @property
    def identity(self) -> tuple[str, int]:
        """Changes where the data set's contents do."""
        return str(getattr(self.recordings, "_fingerprint", None)), self.index

    def __call__(self) -> Path | bytes:
        try:
            found = self.recordings[self.index]["audio"]
        except Exception as error:  # whatever the readers of `datasets` raise
            raise InputError(f"row {self.index} cannot be read: {error}") from error
        if isinstance(found, dict):
            found = found.get("bytes") if found.get("bytes") is not None else found.get("path")
        if not found:
            raise InputError(f"row {self.index} has no recording")
        return found if isinstance(found, bytes) else self.folder / found


def open_dataset(spec: str) -> list[Utterance]:
    """The utterances of a data set; see :func:`affinity_pool.study.data.open_data`."""
    try:
        import datasets
    except ImportError as error:
        raise InputError(f"{spec} is not a manifest, and data sets need `pip install datasets`") from error
    name, config, split, *more = [*spec.split(":"), "", ""]
    if not name or len(more) > 2 or any(more):
        raise InputError(f"a data set is given as ID[@REVISION][:CONFIG[:SPLIT]], got {spec!r}")
    folder = Path(name)
    try:
        if folder.is_dir():
            datasets.disable_progress_bars()  # a download deserves one, reading a folder does not
        rows = _load(name, config, split)
        if not len(rows):
            raise InputError(f"{spec} has no rows")
        return _utterances(spec, config, rows, folder if folder.is_dir() else Path())
    except InputError:
        raise
    except Exception as error:  # `datasets`, pyarrow and the Hub's client raise errors of every kind
        cause = error.__cause__ or error
        reason = str(cause) or type(cause).__name__
        if isinstance(cause, ImportError):
            reason = f"{reason.rstrip('.')}, or write a manifest, which needs no other package: a line a recording"
        elif "scripts are no longer supported" in reason:
            reason += "; the Hub's copy in Parquet can be read, ID@refs/convert/parquet:CONFIG:SPLIT"
        raise InputError(f"cannot open {spec}, which is no manifest, as a data set: {reason}") from error


def _load(name: str, config: str, split: str) -> Any:
    """The rows of one split."""
    import datasets

    folder = Path(name)
    if (folder / "state.json").is_file():
        rows = datasets.load_from_disk(name)
        only = str(rows.split) if rows.split is not None else ""
        if split not in ("", only):
            raise InputError(f"{name} has {f'the split {only} alone' if only else 'no splits'}, got {split!r}")
        return _without_config(rows, name, config)
    if (folder / "dataset_dict.json").is_file():
        saved = datasets.load_from_disk(name)
        return _without_config(saved[_chosen(split, list(saved), name)], name, config)
    # of "." and the like `datasets` makes no name
    name, _, revision = (str(folder.resolve()), "", "") if folder.is_dir() else name.partition("@")
    builder = datasets.load_dataset_builder(name, config or None, revision=revision or None)
    files = builder.config.data_files
    split = _chosen(split, [str(key) for key in files], name)
    # asked for one split, load_dataset prepares them all: LibriSpeech's training data for its test set
    return datasets.load_dataset(builder.name, data_files={split: list(files[split])}, split=split)


def _without_config(rows: Any, name: str, config: str) -> Any:
    """A saved data set is of one configuration; only a pair of languages says something of it."""
    if config not in ("", "default", rows.info.config_name) and not _PAIR.fullmatch(config):
        raise InputError(f"{name} was saved without configurations, got {config!r}")
    return rows


def _chosen(split: str, splits: list[str], name: str) -> str:
    if not split:
        split = splits[0] if len(splits) == 1 else "test"
    if split not in splits:
        raise InputError(f"{name} has the splits {', '.join(splits)}: give one, as {name}:CONFIG:{splits[0]}")
    return split


def _utterances(spec: str, config: str, rows: Any, folder: Path) -> list[Utterance]:
    columns = {kind: next((name for name in names if name in rows.features), None) for kind, names in COLUMNS.items()}
    pair = _PAIR.fullmatch(config)
    target = pair[1] if pair else None

    def values(kind: str) -> list[str | None]:
        column = columns[kind]
        return [None] * len(rows) if column is None else _texts(spec, rows, column, target)

    recordings = _recordings(spec, rows)
    numbers = [str(index) for index in range(len(rows))]
    ids = unique(
        [id or number for id, number in zip(values("id"), numbers, strict=True)], [f"#{number}" for number in numbers]
    )
    if columns["translation"]:
        task, texts, languages = TRANSLATE, values("translation"), [target] * len(rows)
    else:
        english = "en" if "librispeech" in spec.lower() else None
        task, texts = TASK, values("text")
        languages = [code if code and _CODE.fullmatch(code) else english for code in values("language")]
    return [
        Utterance(id, Row(recordings, index, folder), text, task, language, source=spec)
        for index, (id, text, language) in enumerate(zip(ids, texts, languages, strict=True))
    ]


def _recordings(spec: str, rows: Any) -> Any:
    """The audio column: files, their bytes, or their paths."""
    import datasets

    if "audio" not in rows.features:
        raise InputError(f"{spec} has no column 'audio', only {', '.join(rows.features)}")
    kind, column = rows.features["audio"], rows.select_columns(["audio"])
    if isinstance(kind, datasets.Audio):
        return column.cast_column("audio", datasets.Audio(decode=False))
    if isinstance(kind, dict):
        known = kind.keys() <= {"bytes", "path"}
    else:
        known = getattr(kind, "dtype", None) in ("null", "string", "large_string", "binary", "large_binary")
    if not known:
        raise InputError(f"{spec}: the column 'audio' must hold files, their bytes or their paths, but holds {kind}")
    return column


def _texts(spec: str, rows: Any, column: str, language: str | None) -> list[str | None]:
    """A column of strings, whole numbers, labels, or (in ``language``) translations."""
    kind = rows.features[column]
    names = getattr(kind, "names", None)  # of a ClassLabel
    if names:
        return [None if value is None else names[value] if 0 <= value < len(names) else None for value in rows[column]]
    languages = getattr(kind, "languages", None) or (list(kind) if isinstance(kind, dict) else [])  # of a Translation
    if column in COLUMNS["translation"] and languages:
        if language not in languages:
            raise InputError(
                f"{spec}: {column!r} has texts in {', '.join(languages)}: give a pair that ends in one of them as the "
                f"configuration, as ID:xx_{languages[0]}"
            )
        found = [None if value is None else value[language] for value in rows[column]]
        if all(value is None or isinstance(value, str) for value in found):
            return found
    elif re.fullmatch(r"null|(large_)?string|string_view|u?int\d+", str(getattr(kind, "dtype", None))):
        return [None if value is None else str(value) for value in rows[column]]
    raise InputError(f"{spec}: the column {column!r} must hold texts, but holds {kind}")
