"""Manifests from elsewhere: what a line says is taken, or the line is named."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from affinity_pool.study.data import read_manifest
from affinity_pool.study.errors import InputError

HALF = "\\ud83d"


def refused(tmp_path: Path, content: bytes) -> str:
    path = tmp_path / "m.jsonl"
    path.write_bytes(content)
    with pytest.raises(InputError) as error:
        read_manifest(path)
    assert "m.jsonl" in str(error.value)
    assert len(str(error.value)) < 1000
    return str(error.value)


LINES = {
    "an end beyond any float": ('"words": [["x", 0, 1' + "0" * 400 + "]]", "0 <= start < end"),
    "an end beyond any number": ('"words": [["x", 0, 1' + "0" * 5000 + "]]", ""),
    "an end that is infinite": ('"words": [["x", 0, Infinity]]', "Infinity is no number"),
    "an end that is none": ('"words": [["x", 0, NaN]]', "NaN is no number"),
    "an end of 1e300": ('"words": [["x", 0, 1e300]]', "0 <= start < end"),
    "truth for seconds": ('"words": [["x", false, true]]', "0 <= start < end"),
    "words that are none": ('"words": {"x": 1}', "words must be a list"),
    "a deep list": ('"words": ' + "[" * 100_000, ""),
    "half a character in a text": (f'"text": "november {HALF}"', "text has a character that is no text"),
    "half a character in a task": (f'"task": "{HALF}"', "task has a character that is no text"),
    "half a character in a language": (f'"language": "{HALF}"', "language has a character that is no text"),
    "half a character in a word": (f'"words": [["{HALF}", 0, 1]]', "words has a character that is no text"),
    "half a character in a source": (f'"source": "{HALF}"', "source has a character that is no text"),
    "a text that is a number": ('"text": 5', "text must be a string, got 5"),
    "a text that is a list": ('"text": ["five"]', "text must be a string, got ['five']"),
    "a long thing that is no text": ('"text": [' + "1," * 5000 + "1]", "text must be a string"),
    "a metric": ('"metric": "bleurt"', "metric must be one of"),
}


@pytest.mark.parametrize("name", LINES)
def test_a_line_that_cannot_be_used_is_named(tmp_path: Path, name: str) -> None:
    line, message = LINES[name]
    said = refused(tmp_path, b'{"audio": "a.wav"}\n' + f'{{"audio": "b.wav", {line}}}\n'.encode())
    assert "1 of 2 lines cannot be used" in said
    assert "line 2: " in said
    assert message in said


def test_a_path_may_hold_bytes_that_are_no_text_but_no_nul(tmp_path: Path) -> None:
    (tmp_path / "m.jsonl").write_text('{"audio": "caf\\udce9.flac"}\n')
    (utterance,) = read_manifest(tmp_path / "m.jsonl")
    assert os.fsencode(utterance.audio).endswith(b"caf\xe9.flac")
    assert "which has a NUL in it" in refused(tmp_path, b'{"audio": "a\\u0000.flac"}')
    assert "audio has a character that is no text" in refused(tmp_path, b'{"audio": "\\ud83d.flac"}')


FILES = {
    "UTF-16": json.dumps({"audio": "a.wav"}).encode("utf-16"),
    "Latin-1": b'{"audio": "caf\xe9.wav"}',
    "binary": bytes(range(256)),
    "a list": b'[{"audio": "a.wav"}]',
    "a list over lines": b'[\n{"audio": "a.wav"}\n]',
    "a table": b"audio,text\na.wav,five\n",
    "empty": b"",
    "blank lines": b"\n \n\t\n",
    "NULs": bytes(50),
    "no recording": b'{"text": "five"}',
    "a recording called nothing": b'{"audio": "///"}',
}


@pytest.mark.parametrize("name", FILES)
def test_a_file_that_is_no_manifest_is_named(tmp_path: Path, name: str) -> None:
    refused(tmp_path, FILES[name])


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no named pipes here")
def test_pipes_folders_and_names_that_are_none_are_no_manifests(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.jsonl")
    (tmp_path / "folder.jsonl").mkdir()
    for name in ("pipe.jsonl", "folder.jsonl", "absent.jsonl", "a\0.jsonl"):
        with pytest.raises(InputError, match="manifest"):
            read_manifest(tmp_path / name)


def test_separators_marks_and_the_order_of_lines_are_kept(tmp_path: Path) -> None:
    texts = ["five\u2028nine", "a\u0085b", "\ufeffmark", "tab\tbed", "e\u0301", "\u202eright to left", "\0"]
    lines = [json.dumps({"audio": f"{i}.wav", "text": text}, ensure_ascii=i % 2 == 0) for i, text in enumerate(texts)]
    (tmp_path / "m.jsonl").write_bytes(b"\xef\xbb\xbf" + "\r\n".join(lines).encode())
    assert [utterance.text for utterance in read_manifest(tmp_path / "m.jsonl")] == texts


values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8) | st.just("\ud83d"),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3),
    max_leaves=6,
)
KEYS = ("audio", "text", "task", "language", "words", "source", "metric")
words = st.lists(st.tuples(st.text(max_size=4), st.floats(0, 9), st.floats(0, 9)).map(list), max_size=3)
entries = st.fixed_dictionaries({}, optional=dict.fromkeys(KEYS, values) | {"words": words | values})
lines = (entries | values).map(json.dumps).map(str.encode) | st.binary(max_size=40)


@settings(max_examples=max(300, settings.default.max_examples), deadline=None)
@given(st.lists(lines, max_size=4))
def test_any_lines_are_taken_or_named(tmp_path_factory: pytest.TempPathFactory, content: list[bytes]) -> None:
    path = tmp_path_factory.getbasetemp() / "any.jsonl"
    path.write_bytes(b"\n".join(content))
    try:
        found: list[Any] = read_manifest(path)
    except InputError as error:
        assert "any.jsonl" in str(error)  # noqa: PT017
        return
    assert len({utterance.id for utterance in found}) == len(found) > 0
    for utterance in found:
        assert utterance.text is None or utterance.text.encode() is not None
        assert all(0 <= word.start < word.end for word in utterance.words)
