"""Data sets of `datasets`: from the Hub, or a local folder that ``load_dataset`` or ``load_from_disk`` reads.

    ID[:CONFIG[:SPLIT]]                     without a split: the only one, else "test"

    openslr/librispeech_asr:clean:test      LibriSpeech test-clean, columns audio, text, id
    openslr/librispeech_asr:other:test      LibriSpeech test-other
    google/fleurs:en_us:test                FLEURS, columns audio, transcription, id, lang_id; cmn_hans_cn for Mandarin
    fixie-ai/covost2:en_zh-CN:test          CoVoST 2 with its audio, columns audio, sentence, translation, id
    corpora/mine:default:test               a folder of Parquet files (for one of recordings write a manifest)
    corpora/saved::test                     what save_to_disk wrote

as in ``affinity-pool eval --data openslr/librispeech_asr:clean:test``. Only the files of the split are downloaded.

Columns are found by the names in ``COLUMNS``. Where there is a ``translation`` the task is "translate": that column is
the reference, and its language is the second of a configuration such as "en_zh-CN". A model that wants more of a prompt
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

    def __call__(self) -> Path | bytes:
        try:
            found = self.recordings[self.index]["audio"]
        except (OSError, ValueError) as error:
            raise InputError(f"row {self.index} cannot be read: {error}") from error
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
    if len(more) > 2 or any(more):
        raise InputError(f"a data set is given as ID[:CONFIG[:SPLIT]], got {spec!r}")
    if Path(name).is_dir():
        datasets.disable_progress_bars()  # a download deserves one, reading a folder does not
    try:
        rows = _load(name, config, split)
        columns = {
            kind: next((name for name in names if name in rows.features), None) for kind, names in COLUMNS.items()
        }
        if columns["audio"] is None:
            raise InputError(f"{spec} has no column 'audio', only {', '.join(rows.features)}")
        recordings = rows.select_columns(["audio"]).cast_column("audio", datasets.Audio(decode=False))
        return _utterances(spec, config, rows, columns, recordings)
    except (OSError, ValueError, TypeError, LookupError, datasets.exceptions.DatasetsError) as error:
        if isinstance(error, InputError):
            raise
        raise InputError(
            f"cannot open {spec}, which is no manifest, as a data set: {error.__cause__ or error}"
        ) from error


def _load(name: str, config: str, split: str) -> Any:
    """The rows of one split."""
    import datasets

    folder = Path(name)
    if (folder / "state.json").is_file():
        return datasets.load_from_disk(name)
    if (folder / "dataset_dict.json").is_file():
        saved = datasets.load_from_disk(name)
        return saved[_chosen(split, list(saved), name)]
    builder = datasets.load_dataset_builder(name, config or None)
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
    def values(kind: str) -> list[str | None]:
        column = columns[kind]
        if column is None:
            return [None] * len(rows)
        names = getattr(rows.features[column], "names", None)  # of a ClassLabel
        return [
            None if value is None else names[value] if names and isinstance(value, int) else str(value)
            for value in rows[column]
        ]

    numbers = [str(index) for index in range(len(rows))]
    ids = unique(
        [id or number for id, number in zip(values("id"), numbers, strict=True)], [f"#{number}" for number in numbers]
    )
    if columns["translation"]:
        pair = _PAIR.fullmatch(config)
        task, texts, languages = TRANSLATE, values("translation"), [pair[1] if pair else None] * len(rows)
    else:
        english = "en" if "librispeech" in spec.lower() else None
        task, texts = TASK, values("text")
        languages = [code if code and _CODE.fullmatch(code) else english for code in values("language")]
    return [
        Utterance(id, Row(recordings, index), text, task, language, source=spec)
        for index, (id, text, language) in enumerate(zip(ids, texts, languages, strict=True))
    ]
