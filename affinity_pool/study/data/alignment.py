"""Where words begin and end: from the manifest, from Montreal Forced Aligner TextGrids, or by pocketsphinx.

pocketsphinx aligns English, offline, with the acoustic model in its wheel. It puts a word's edge within some 30 ms of
where it is (measured by tests/study/data/test_alignment.py where edges are known); a paper's figure should
rather come from the Montreal Forced Aligner, whose TextGrids are read here.
"""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import InputError
from ..metrics.tasks import for_task
from ..metrics.text import normalise, primary
from .audio import Audio
from .files import exists
from .manifest import Utterance, Word
from .textgrid import read_textgrid

MANIFEST, POCKETSPHINX = "manifest", "pocketsphinx"
SILENCES = frozenset({"", "#", "sil", "sp", "spn"})
"""What the Montreal Forced Aligner and others write between words, in any case."""
BRACKETS = ("<>", "[]", "{}", "()")
"""Around what is no word: ``<eps>``, ``<SIL>``, ``[noise]``, ``[laughter]``, ``{LG}``, ``<p:>``."""
UNKNOWN = frozenset({"<unk>", "[unk]", "<oov>"})
"""A word that was spoken, but is not in the aligner's dictionary: it has its times and its tokens like any other."""
RATE = 16000  # of pocketsphinx's English model
FRAME = 0.01  # seconds
QUIET = 0.3  # seconds of silence added at both ends, so that no word has to begin or end with the recording

_INSTEAD = 'give "words" in the manifest, or a folder of Montreal Forced Aligner TextGrids'


def check_source(source: str | Path | None) -> None:
    """Raise an :class:`InputError` unless word times can come from there; see :func:`word_times`."""
    if source == POCKETSPHINX:
        _decoder()
    elif source not in (None, MANIFEST) and not (exists(Path(source)) and Path(source).is_dir()):
        raise InputError(
            f"word times come from 'manifest', 'pocketsphinx' or a folder of TextGrids, got {str(source)!r}"
        )


def word_times(utterance: Utterance, audio: Audio, source: str | Path | None = None) -> tuple[Word, ...]:
    """The words spoken, in the order of their starts, with seconds from the start of the recording.

    Args:
        utterance: whose words are wanted.
        audio: its recording, at any rate.
        source: "manifest", "pocketsphinx", or a folder of TextGrids called like the utterance's id or its recording.
            None: the manifest's times, or pocketsphinx for a text in English.

    Raises:
        InputError: there are no times, they do not fit the recording, or pocketsphinx cannot find them.
    """
    if source is None:
        source = MANIFEST if utterance.words or not _is_english(utterance) else POCKETSPHINX
    if source == MANIFEST:
        if not utterance.words:
            language = utterance.language or "not given"
            raise InputError(f"nobody says where its words are, and its language is {language}, not en: {_INSTEAD}")
        words = utterance.words
    elif source == POCKETSPHINX:
        words = _aligned(_spoken(utterance), audio)
    else:
        words = _from_textgrid(_textgrid(utterance, Path(source)))
    if words[-1].start >= audio.seconds:
        raise InputError(
            f"{words[-1].text!r} begins at {words[-1].start:.2f} s, but the recording ends at {audio.seconds:.2f} s"
        )
    return words


def _is_english(utterance: Utterance) -> bool:
    return primary(utterance.language) == "en"


def _spoken(utterance: Utterance) -> str:
    """The words that the recording says, as far as anyone knows."""
    if utterance.words:
        return " ".join(word.text for word in utterance.words)
    if utterance.language is not None and not _is_english(utterance):
        raise InputError(f"pocketsphinx aligns English alone, and the text is in {utterance.language!r}: {_INSTEAD}")
    if for_task(utterance.task, utterance.metric)[0].name not in ("wer", "cer"):
        raise InputError(f"its text answers {utterance.task!r}, which need not be what is spoken: {_INSTEAD}")
    if not utterance.text or not normalise(utterance.text, "en"):
        raise InputError(f"it has no text whose words could be aligned: {_INSTEAD}")
    return utterance.text


@cache
def _decoder() -> Any:
    try:
        from pocketsphinx import Decoder
    except ImportError as error:
        raise InputError(f"word times need `pip install 'affinity_pool[align]'`; or {_INSTEAD}") from error
    # bestpath puts an end of sentence of one frame last, and the last word then lasts until the end of the recording
    return Decoder(lm=None, samprate=RATE, bestpath=False, loglevel="FATAL")


def _aligned(text: str, audio: Audio) -> tuple[Word, ...]:
    """Forced alignment of ``text``. One pass: the second pass that pocketsphinx has finds phones inside the words."""
    decoder = _decoder()
    wanted: list[str] = []
    for word in normalise(text, "en").split():
        wanted += [word] if decoder.lookup_word(word) else word.split("-")
    unknown = sorted({word for word in wanted if not decoder.lookup_word(word)})
    if unknown:
        raise InputError(
            f"not in pocketsphinx's dictionary: {', '.join(map(repr, unknown))} (numbers must be spelt out): {_INSTEAD}"
        )
    quiet = np.zeros(round(QUIET * RATE), np.int16)
    samples = (audio.at(RATE).samples.clip(-1, 1) * 32767).round().astype(np.int16)
    decoder.reinit_feat()  # else the recordings before this one change its times
    decoder.set_align_text(" ".join(wanted))
    decoder.start_utt()
    decoder.process_raw(np.concatenate([quiet, samples, quiet]).tobytes(), full_utt=True)
    decoder.end_utt()
    found = [
        Word(
            segment.word.partition("(")[0],  # "a(2)" is another pronunciation of "a"
            min(max(segment.start_frame * FRAME - QUIET, 0.0), audio.seconds - FRAME),
            min((segment.end_frame + 1) * FRAME - QUIET, audio.seconds),
        )
        for segment in decoder.seg() or ()
        if segment.word[0] not in "<[("
    ]
    if [word.text for word in found] != wanted or any(word.end <= word.start for word in found):
        raise InputError(f"pocketsphinx does not hear its text in the recording: {_INSTEAD}")
    return tuple(found)


def _textgrid(utterance: Utterance, folder: Path) -> Path:
    names = [utterance.id, *([utterance.audio.stem] if isinstance(utterance.audio, Path) else [])]
    paths = [folder / f"{name}.TextGrid" for name in dict.fromkeys(names)]
    for path in paths:
        if exists(path):
            return path
    check_source(folder)
    raise InputError(f"no TextGrid {' or '.join(map(str, paths))}")


def _from_textgrid(path: Path) -> tuple[Word, ...]:
    tiers = read_textgrid(path)
    # "words", or "NAME - words" where the aligner knew the speaker
    names = [name for name in tiers if name.split(" - ")[-1] == "words"]
    if not names:
        raise InputError(f"{path} has no tier called 'words', only the tiers {', '.join(tiers)}")
    words = []
    for name in names:
        intervals = tiers[name]
        if intervals is None:
            raise InputError(f"{path}: the tier {name!r} is one of points, but words are intervals")
        words += [Word(found.text, found.start, found.end) for found in intervals if is_word(found.text)]
    if not words:
        raise InputError(f"{path} has no words in {' or '.join(map(repr, names))}")
    return tuple(sorted(words, key=_start))


def is_word(label: str) -> bool:
    """Whether an interval is a spoken word: not a silence, nor a marker in brackets such as ``[noise]``."""
    label = label.strip().lower()
    bracketed = len(label) > 1 and label[0] + label[-1] in BRACKETS
    return label in UNKNOWN or not (bracketed or label in SILENCES)


def _start(word: Word) -> float:
    return word.start
