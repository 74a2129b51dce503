"""Audio files and manifests: what is read, and in which words what cannot be read is refused."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import soundfile

from affinity_pool.study import InputError
from affinity_pool.study.data.audio import load_audio
from affinity_pool.study.data.manifest import Word, read_manifest


@pytest.mark.parametrize(("name", "seconds"), [("tone.wav", 1.2), ("chord.flac", 1.6)])
def test_any_rate_and_channels_become_one_channel_at_the_models_rate(clips: Path, name: str, seconds: float) -> None:
    audio = load_audio(clips / name, 16000)
    assert audio.samples.dtype == np.float32
    assert audio.samples.shape == (round(seconds * 16000),)
    assert audio.first(1).seconds == 1


@pytest.mark.parametrize(
    ("samples", "message"),
    [
        (np.zeros(0), "0.00 s of sound; at least 0.1 s"),
        (np.zeros(16000), "every sample is zero"),
        (np.full(16000, np.nan), "NaN or infinite"),
    ],
)
def test_useless_audio_is_refused(tmp_path: Path, samples: np.ndarray, message: str) -> None:
    soundfile.write(tmp_path / "clip.wav", samples, 16000, subtype="FLOAT")
    with pytest.raises(InputError, match=message):
        load_audio(tmp_path / "clip.wav", 16000)


def test_a_file_that_is_no_audio_is_refused_with_a_way_out(tmp_path: Path) -> None:
    (tmp_path / "voice.m4a").write_bytes(b"not audio at all")
    with pytest.raises(InputError, match=r"cannot read .*voice.m4a.*ffmpeg -i voice.m4a voice.wav"):
        load_audio(tmp_path / "voice.m4a", 16000)
    with pytest.raises(InputError, match="no such recording"):
        load_audio(tmp_path / "absent.wav", 16000)


def test_a_manifest_is_read_whole(clips: Path) -> None:
    first, second, _ = read_manifest(clips / "manifest.jsonl")
    assert first.audio == clips / "tone.wav"
    assert first.words == (Word("one", 0.1, 0.5), Word("two", 0.5, 1.1))
    assert (second.text, second.task, second.words, second.language) == ("three", "first", (), None)


def test_every_bad_line_of_a_manifest_is_named(clips: Path) -> None:
    bad = [
        '{"audio": "tone.wav"',
        json.dumps({"text": "no audio"}),
        json.dumps({"audio": "absent.wav"}),
        json.dumps({"audio": "tone.wav", "text": 5}),
        json.dumps({"audio": "tone.wav", "words": [["one", 0.5, 0.1]]}),
        json.dumps({"audio": "tone.wav", "words": [["two", 0.5, 0.7], ["one", 0.1, 0.3]]}),
        json.dumps(["tone.wav"]),
    ]
    path = clips / "bad.jsonl"
    path.write_text("\n".join([json.dumps({"audio": "tone.wav"}), "", *bad]))
    with pytest.raises(InputError) as error:
        read_manifest(path)
    text = str(error.value)
    assert "7 of 9 lines" in text
    for number, message in enumerate(
        [
            "Expecting",
            "audio, the path of the recording, is missing",
            "no such recording",
            "text must be a string, got 5",
            "0 <= start < end",
            "in the order of their starts",
            "expected a JSON object, got list",
        ],
        3,
    ):
        assert any(line.startswith(f"  line {number}: ") and message in line for line in text.splitlines()), message


def test_a_manifest_without_recordings_is_refused(tmp_path: Path) -> None:
    (tmp_path / "empty.jsonl").write_text("\n")
    with pytest.raises(InputError, match="is empty"):
        read_manifest(tmp_path / "empty.jsonl")
    with pytest.raises(InputError, match="cannot read the manifest"):
        read_manifest(tmp_path / "absent.jsonl")
