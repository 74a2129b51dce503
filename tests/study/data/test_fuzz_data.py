"""Whatever stands in manifests, TextGrids and recordings: it is read rightly or refused by name, nothing else."""

from __future__ import annotations

import io
import json
import tempfile
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import soundfile
from hypothesis import given, settings
from hypothesis import strategies as st

from affinity_pool.study.data import Audio, Utterance, read_manifest
from affinity_pool.study.data.alignment import word_times
from affinity_pool.study.errors import InputError

many = settings(max_examples=max(200, settings.default.max_examples))

KINDS = [
    *((kind, "PCM_16") for kind in ("WAV", "RF64", "W64", "AIFF", "CAF", "AU", "FLAC")),
    *(("WAV", "FLOAT"), ("OGG", "VORBIS"), ("OGG", "OPUS"), ("MP3", "MPEG_LAYER_III")),
]
WHOLE = 0.1 * np.random.default_rng(0).standard_normal(12000)
WORDS = (0.0, -0.0, 1e-320, 0.5, 3, 1e400, float("nan"), 10**400, True, None, "1", [])


@cache
def recording(kind: tuple[str, str]) -> bytes:
    file = io.BytesIO()
    soundfile.write(file, WHOLE, 16000, format=kind[0], subtype=kind[1])
    return file.getvalue()


@st.composite
def mutated(draw: st.DrawFn, *originals: bytes) -> bytes:
    """Cut, joined, spliced, or with bytes changed, mostly where headers are."""
    file = bytearray(draw(st.sampled_from(originals)))
    for _ in range(draw(st.integers(1, 3))):
        at = draw(st.integers(0, max(min(len(file) - 1, draw(st.sampled_from((16, 64, 200, 1 << 20)))), 0)))
        match draw(st.sampled_from(("flip", "set", "cut", "behead", "join", "splice", "insert"))):
            case "flip" if file:
                file[at] ^= 1 << draw(st.integers(0, 7))
            case "set":
                file[at : at + 4] = draw(
                    st.sampled_from((b"\0\0\0\0", b"\xff\xff\xff\xff", b"\x7f\xff\xff\xff", b"\1\0\0\0"))
                )
            case "cut":
                del file[draw(st.integers(0, len(file))) :]
            case "behead":
                del file[:at]
            case "join":
                file += draw(st.sampled_from(originals))
            case "splice":
                file[at:] = draw(st.sampled_from(originals))[at:]
            case "insert":
                file[at:at] = draw(st.binary(max_size=40))
    return bytes(file)


RECORDINGS = st.sampled_from(KINDS).flatmap(lambda kind: mutated(recording(kind), recording(("WAV", "PCM_16"))))


@many
@given(RECORDINGS)
def test_any_recording_is_heard_or_refused_by_name(file: bytes) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "clip.bin")
        path.write_bytes(file)
        try:
            audio = Utterance("clip", path).load(16000)
        except InputError as error:
            assert "clip.bin" in str(error)  # noqa: PT017
            return
    assert 0.1 <= audio.seconds <= 3600
    assert np.isfinite(audio.samples).all()
    assert audio.samples.any()


TEXTS = st.text(st.characters(), max_size=12) | st.sampled_from(("a.wav", "..", "/", "\0", "\ud83d", "wer"))
VALUES = st.none() | st.booleans() | st.integers() | st.floats() | TEXTS | st.lists(st.integers(), max_size=2)
ENTRIES = st.lists(st.tuples(TEXTS, st.sampled_from(WORDS), st.sampled_from(WORDS)) | VALUES, max_size=3)
LINES = st.fixed_dictionaries(
    {"audio": TEXTS},
    optional={
        **dict.fromkeys(("text", "task", "language", "source", "metric"), TEXTS | VALUES),
        "words": ENTRIES | VALUES,
    },
)


def checked(file: bytes) -> None:
    """That it is refused by name, or that every word of it is of use to a run."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "m.jsonl")
        path.write_bytes(file)
        try:
            utterances = read_manifest(path)
        except InputError as error:
            assert "m.jsonl" in str(error)  # noqa: PT017
            return
    assert len({utterance.id for utterance in utterances}) == len(utterances) > 0
    for utterance in utterances:
        for text in (utterance.id, utterance.task, utterance.text, utterance.language, str(utterance.audio)):
            assert text is None or text.encode() is not None
        for word in utterance.words:
            assert 0 <= word.start < word.end <= 3600


@many
@given(st.lists(LINES | VALUES, max_size=3))
def test_any_json_is_a_manifest_or_refused_by_name(lines: list[Any]) -> None:
    checked("\n".join(map(json.dumps, lines)).encode())


MANIFEST = json.dumps({"audio": "a.wav", "text": "é\u2028\ud83d\ude00", "words": [["a", 0, 1.5]], "task": "x"}).encode()


@many
@given(mutated(MANIFEST, MANIFEST + b"\n" + MANIFEST, b"\xef\xbb\xbf" + MANIFEST) | st.binary(max_size=60))
def test_any_bytes_are_a_manifest_or_refused_by_name(file: bytes) -> None:
    checked(file)


GRID = """File type = "ooTextFile"
Object class = "TextGrid"
xmin = 0
xmax = 2
tiers? <exists>
size = 2
item []:
    item [1]:
        class = "IntervalTier"
        name = "words"
        xmin = 0
        xmax = 2
        intervals: size = 3
        intervals [1]:
            xmin = 0
            xmax = 0.25
            text = "sil"
        intervals [2]:
            xmin = 0.25
            xmax = 0.5
            text = "Zürich"
        intervals [3]:
            xmin = 1.5
            xmax = 2
            text = "say ""so"" now"
    item [2]:
        class = "TextTier"
        name = "tones"
        xmin = 0
        xmax = 2
        points: size = 1
        points [1]:
            number = 1
            mark = "H"
"""
SHORT = """File type = "ooTextFile"
Object class = "TextGrid"

0
2
<exists>
1
"IntervalTier"
"a - words"
0
2
2
0
0.5
"don't"
0.5
2
"<eps>"
"""
GRIDS = [text.encode(code) for text in (GRID, SHORT) for code in ("utf-8", "utf-16")]
SILENT = Audio(np.zeros(32000, np.float32), 16000)


@many
@given(mutated(*GRIDS) | st.binary(max_size=60))
def test_any_textgrid_has_words_in_order_or_is_refused_by_name(file: bytes) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "clip.TextGrid")
        path.write_bytes(file)
        try:
            words = word_times(Utterance("clip", Path("clip.wav")), SILENT, folder)
        except InputError as error:
            assert "clip.TextGrid" in str(error) or "begins at" in str(error)  # noqa: PT017
            return
    assert words
    assert [word.start for word in words] == sorted(word.start for word in words)
    assert all(0 <= word.start < word.end for word in words)
