"""Data sets of `datasets`: from the Hub, or a local folder that ``load_dataset`` or ``load_from_disk`` reads.

    ID[@REVISION][:CONFIG[:SPLIT]]          without a split: the only one, else "test"

    openslr/librispeech_asr:clean:test      LibriSpeech test-clean, columns audio, text, id
    openslr/librispeech_asr:other:test      LibriSpeech test-other
    google/fleurs@refs/convert/parquet:en_us:test
                                            FLEURS, columns audio, transcription, id, lang_id; cmn_hans_cn for Mandarin
    fixie-ai/covost2:en_zh-CN:test          CoVoST 2 with its audio, columns audio, sentence, translation, id
    corpora/mine:default:test               a folder of Parquet files (for one of recordings write a manifest)
    corpora/saved::test                     what save_to_disk wrote

as in ``affinity-pool eval --data openslr/librispeech_asr:clean:test``. Only the files of the split are downloaded.
FLEURS itself has a loading script, which `datasets` 4 does not run; the Hub keeps a copy in Parquet of such data sets,
in the branch ``refs/convert/parquet``. No Hub was at hand where this was written.

Columns are found by the names in ``COLUMNS``. Where there is a ``translation`` the task is "translate": that column is
the reference, and its language is the second of a configuration such as "en_zh-CN"; of a column that holds several
languages that one is taken. A model that wants more of a prompt
gets it by ``--prompt``, such as "Translate the speech into Chinese." Else the task is "transcribe". LibriSpeech, which
has no column for its language, is English. Ids are those of the data set, with "#row" where several rows share one, as
in FLEURS, or the numbers of the rows.

`datasets` is asked for the bytes of a recording alone, which soundfile decodes: torchcodec is not needed.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .. import InputError
from .manifest import TASK, Utterance, unique

COLUMNS = {
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

    folder: Path = Path()
    """That paths are relative to."""

    @property
    def identity(self) -> tuple[str, int]:
        """Changes where the data set's contents do."""
        return str(getattr(self.recordings, "_fingerprint", None)), self.index

    def __call__(self) -> Path | bytes:
        try:
            found = self.recordings[self.index]["audio"]
        except Exception as error:  # of `datasets`, pyarrow or a file system
            raise InputError(f"row {self.index} cannot be read: {_reason(error)}") from error
        if isinstance(found, str):
            return self.folder / found
        if found is None or (found["bytes"] is None and not found["path"]):
            raise InputError(f"row {self.index} has no recording")
        return Path(found["path"]) if found["bytes"] is None else found["bytes"]


def open_dataset(spec: str) -> list[Utterance]:
    """The utterances of a data set; see :func:`affinity_pool.study.data.open_data`."""
    try:
        import datasets
    except ImportError as error:
        raise InputError(f"{spec} is not a manifest, and data sets need `pip install datasets`") from error
    name, config, split, *more = [*spec.split(":"), "", ""]
    if not name or len(more) > 2 or any(more):
        raise InputError(f"a data set is given as ID[@REVISION][:CONFIG[:SPLIT]], got {spec!r}")
    if Path(name).is_dir():
        datasets.disable_progress_bars()  # a download deserves one, reading a folder does not
    try:
        rows = _load(name, config, split)
        columns = {
            kind: next((name for name in names if name in rows.features), None) for kind, names in COLUMNS.items()
        }
        if columns["audio"] is None:
            raise InputError(f"{spec} has no column 'audio', only {', '.join(rows.features)}")
        recordings = _recordings(spec, rows.select_columns(["audio"]))
        return _utterances(spec, config, rows, columns, recordings)
    except InputError:
        raise
    except Exception as error:  # data sets come with builders of their own, which raise anything
        raise InputError(f"cannot open {spec}, which is no manifest, as a data set: {_reason(error)}") from error


def _reason(error: BaseException) -> str:
    """What went wrong at the bottom, and what would do where that is known."""
    causes = [error]
    while (cause := causes[-1].__cause__) is not None and cause not in causes:
        causes.append(cause)
    if any(isinstance(cause, ImportError) and "torchcodec" in str(cause) for cause in causes):
        return (
            "`datasets` reads folders of recordings and webdatasets through torchcodec alone: write a manifest (JSON "
            'lines of {"audio": PATH, "text": ...}), or Parquet files'
        )
    said = next((line for line in str(causes[-1]).splitlines() if line), type(causes[-1]).__name__)
    if "scripts are no longer supported" in said:
        said += (
            ": a data set with a loading script has to be had as Parquet files, as in the Hub's own copies, "
            "ID@refs/convert/parquet:CONFIG:SPLIT"
        )
    return said


def _recordings(spec: str, column: Any) -> Any:
    """The audio column, not decoded: dictionaries of bytes and path, or paths."""
    import datasets

    kind = column.features["audio"]
    if getattr(kind, "dtype", None) in ("string", "large_string"):
        return column
    if not isinstance(kind, datasets.Audio) and not {"bytes", "path"} <= set(kind if isinstance(kind, dict) else ()):
        raise InputError(
            f"{spec} has no recordings in its column 'audio', which must hold files (datasets.Audio, or bytes and "
            f"path) or paths, but is {str(kind)[:200]}"
        )
    return column.cast_column("audio", datasets.Audio(decode=False))


def _load(name: str, config: str, split: str) -> Any:
    """The rows of one split."""
    import datasets

    folder = Path(name)
    if (folder / "state.json").is_file():
        rows = datasets.load_from_disk(name)
        own = None if rows.split is None else str(rows.split)
        if split and split != own:
            known = f"the split {own} alone" if own else "no splits"
            raise InputError(f"{name} has {known}, and {split!r} is asked for: leave it out")
        return rows
    if (folder / "dataset_dict.json").is_file():
        saved = datasets.load_from_disk(name)
        return saved[_chosen(split, list(saved), name)]
    name, _, revision = (name, "", "") if folder.exists() else name.partition("@")
    builder = datasets.load_dataset_builder(name, config or None, revision=revision or None)
    files = builder.config.data_files
    split = _chosen(split, [str(key) for key in files], name)
    # asked for one split, load_dataset prepares them all: LibriSpeech's training data for its test set
    return datasets.load_dataset(builder.name, data_files={split: list(files[split])}, split=split)


def _chosen(split: str, splits: list[str], name: str) -> str:
    if not split:
        split = splits[0] if len(splits) == 1 else "test"
    if split not in splits:
        raise InputError(f"{name} has the splits {', '.join(splits)}: give one, as {name}:CONFIG:{splits[0]}")
    return split


def _utterances(spec: str, config: str, rows: Any, columns: dict[str, str | None], recordings: Any) -> list[Utterance]:
    pair = _PAIR.fullmatch(config)

    def values(kind: str) -> list[str | None]:
        column = columns[kind]
        if column is None:
            return [None] * len(rows)
        names = getattr(rows.features[column], "names", None)  # of a ClassLabel
        return [
            names[value] if names and isinstance(value, int) else _text(spec, column, value, pair and pair[1], kind)
            for value in rows[column]
        ]

    folder = Path(spec.partition(":")[0])
    numbers = [str(index) for index in range(len(rows))]
    ids = unique(
        [id or number for id, number in zip(values("id"), numbers, strict=True)], [f"#{number}" for number in numbers]
    )
    if columns["translation"]:
        task, texts, languages = TRANSLATE, values("translation"), [pair[1] if pair else None] * len(rows)
    else:
        english = "en" if "librispeech" in spec.lower() else None
        task, texts = TASK, values("text")
        languages = [code if code and _CODE.fullmatch(code) else english for code in values("language")]
    return [
        Utterance(id, Row(recordings, index, folder), text, task, language, source=spec)
        for index, (id, text, language) in enumerate(zip(ids, texts, languages, strict=True))
    ]


def _text(spec: str, column: str, value: Any, language: str | None, kind: str) -> str | None:
    """A column's entry as text.

    Raises:
        InputError: it is a reference and no text, nor translations one of which is in ``language``.
    """
    if value is None or isinstance(value, str):
        return value
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        return str(value)  # the answer to "how many"
    if kind not in ("text", "translation"):
        return None
    if not isinstance(value, dict) or kind == "text":
        raise InputError(f"{spec} has {type(value).__name__}s in its column {column!r}, which must hold texts")
    # {"en": ..., "de": ...}, or {"language": ["en", "de"], "translation": [..., ...]}
    names, texts = value.get("language"), value.get("translation")
    of = dict(zip(names, texts, strict=False)) if isinstance(names, list) and isinstance(texts, list) else value
    if language not in of:
        raise InputError(
            f"{spec} has {', '.join(map(str, of))} in its column {column!r}: say which is the reference by a "
            f"configuration of two languages, as ID:{'_'.join(map(str, [*of, *of][:2]))}, the second being that one"
        )
    return _text(spec, column, of[language], None, "text")
