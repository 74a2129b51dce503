"""Audio files and manifests: what is read, and in which words what cannot be read is refused."""

from __future__ import annotations

import contextlib
import io
import json
import os
from pathlib import Path

import numpy as np
import pytest
import soundfile

from affinity_pool.study.data import Utterance, Word, load_audio, open_data, read_manifest
from affinity_pool.study.data.manifest import unique
from affinity_pool.study.errors import InputError


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


def written(samples: np.ndarray, rate: int = 16000, kind: str = "WAV", coding: str | None = "FLOAT") -> bytes:
    file = io.BytesIO()
    soundfile.write(file, samples, rate, format=kind, subtype=coding)
    return file.getvalue()


VOICE = 0.1 * np.random.default_rng(0).standard_normal(16000)
VOICE /= np.abs(VOICE).max()


@pytest.mark.parametrize("scale", [127, 2**15, 2**23, 2**31])
def test_integers_written_as_floats_are_refused_and_loud_floats_are_not(scale: int) -> None:
    with pytest.raises(InputError, match=r"clip has samples up to .* times full scale.*integers"):
        load_audio(written(VOICE * scale), 16000, "clip")
    assert np.abs(load_audio(written(VOICE * 3.9), 16000).samples).max() == pytest.approx(3.9)


@pytest.mark.parametrize("kind", ["WAV", "FLAC", "MP3"])
def test_channels_that_cancel_out_are_told_from_silence(kind: str) -> None:
    with pytest.raises(InputError, match="clip is silent once its channels are averaged: they cancel out"):
        load_audio(written(np.stack([VOICE, -VOICE], 1) / 2, kind=kind, coding=None), 16000, "clip")
    for other in (0 * VOICE, VOICE[::-1], -0.5 * VOICE):
        assert load_audio(written(np.stack([VOICE, other], 1) / 2, kind=kind, coding=None), 16000).seconds > 0.9
    many = np.zeros((16000, 8))
    many[:, 3] = VOICE
    assert load_audio(written(many), 16000).samples.any()


@pytest.mark.parametrize(
    ("samples", "coding", "level"),
    [
        (np.zeros((16000, 2)), "PCM_U8", "zero"),
        (np.full(16000, 0.25), "PCM_16", "about 0.25 from zero"),
        (np.full(16000, -1.0), "PCM_U8", "about 1 from zero"),
        (VOICE * 1e-9, "FLOAT", "about 1e-09 from zero"),
    ],
)
def test_silence_is_called_by_its_level(samples: np.ndarray, coding: str, level: str) -> None:
    with pytest.raises(InputError, match=f"clip is silent: every sample is {level}"):
        load_audio(written(samples, coding=coding), 16000, "clip")
    assert load_audio(written(VOICE * 1e-3), 16000).samples.any()


@pytest.mark.parametrize("rate", [1, 100, 500_000, 2_000_000_000])
def test_absurd_rates_are_refused(rate: int) -> None:
    file = bytearray(written(VOICE, coding="PCM_16"))
    file[24:28] = rate.to_bytes(4, "little")
    with pytest.raises(InputError, match=f"cannot read clip: ({rate} samples a second; 4000 to 384000|.*rror)"):
        load_audio(bytes(file), 16000, "clip")


def test_what_decodes_to_more_than_an_hour_is_refused_before_it_fills_the_memory() -> None:
    hours = written(np.zeros(4000 * 3700, np.int16), 4000, "FLAC", "PCM_16")
    assert len(hours) < 1 << 20
    with pytest.raises(InputError, match="clip: it is longer than 3600 s at 4000 samples a second"):
        load_audio(hours, 16000, "clip")


def test_pipes_and_devices_are_refused_and_not_waited_for(tmp_path: Path) -> None:
    for name in ("clip.wav", "m.jsonl", "m"):
        os.mkfifo(tmp_path / name)
    with pytest.raises(InputError, match=r"clip\.wav: is a pipe or a device"):
        load_audio(tmp_path / "clip.wav", 16000)
    for path in (tmp_path / "m.jsonl", tmp_path / "m", Path("/dev/zero")):
        with pytest.raises(InputError, match=f"cannot read the manifest {path}: is a pipe or a device"):
            open_data(path)


def test_a_file_that_is_no_audio_is_refused_with_a_way_out(tmp_path: Path) -> None:
    (tmp_path / "voice.m4a").write_bytes(b"not audio at all")
    with pytest.raises(InputError, match=r"cannot read .*voice.m4a.*ffmpeg -i voice.m4a voice.wav"):
        load_audio(tmp_path / "voice.m4a", 16000)
    with pytest.raises(InputError, match="no such recording"):
        load_audio(tmp_path / "absent.wav", 16000)
    with pytest.raises(InputError, match=r"cannot read .*Is a directory"):
        load_audio(tmp_path, 16000)
    with pytest.raises(InputError, match="cannot read row 7: "):
        load_audio(b"not audio at all", 16000, "row 7")


def test_bytes_and_open_files_sound_like_the_file(clips: Path) -> None:
    path = clips / "chord.flac"
    from_path = load_audio(path, 16000)
    with path.open("rb") as file:
        assert np.array_equal(load_audio(file, 16000).samples, from_path.samples)
    assert np.array_equal(load_audio(path.read_bytes(), 16000).samples, from_path.samples)


@pytest.mark.parametrize("name", ["clip.wav", "clip.flac", "clip.ogg", "clip.mp3", "clip.raw"])
def test_a_damaged_recording_raises_nothing_but_an_input_error(tmp_path: Path, name: str) -> None:
    """Cut short, or with bytes of its first hundred changed; some of these can still be read."""
    kind = name.partition(".")[2].replace("raw", "wav").upper()
    whole = io.BytesIO()
    random = np.random.default_rng(0)
    soundfile.write(whole, 0.1 * random.standard_normal(8000), 16000, format=kind)
    for _ in range(40):
        damaged = bytearray(whole.getvalue()[: random.integers(len(whole.getvalue()))])
        for at in random.integers(0, min(100, len(damaged)) or 1, 3 if damaged else 0):
            damaged[at] = random.integers(256)
        (tmp_path / name).write_bytes(damaged)
        with contextlib.suppress(InputError):
            assert Utterance("clip", tmp_path / name).load(16000).seconds > 0


def test_a_manifest_is_read_whole(clips: Path) -> None:
    first, second, _ = open_data(clips / "manifest.jsonl")
    assert first.audio == clips / "tone.wav"
    assert first.words == (Word("one", 0.1, 0.5), Word("two", 0.5, 1.1))
    assert (second.text, second.task, second.words, second.language, second.metric) == (
        "three",
        "first",
        (),
        None,
        None,
    )


def test_every_bad_line_of_a_manifest_is_named(clips: Path) -> None:
    bad = [
        '{"audio": "tone.wav"',
        json.dumps({"text": "no audio"}),
        json.dumps({"audio": "tone.wav", "metric": "taste"}),
        json.dumps({"audio": "tone.wav", "text": 5}),
        json.dumps({"audio": "tone.wav", "words": [["one", 0.5, 0.1]]}),
        json.dumps({"audio": "tone.wav", "words": [["two", 0.5, 0.7], ["one", 0.1, 0.3]]}),
        json.dumps(["tone.wav"]),
        json.dumps({"audio": "tone.wav", "words": 7}),
        json.dumps({"audio": ""}),
    ]
    path = clips / "bad.jsonl"
    path.write_text("\n".join([json.dumps({"audio": "tone.wav"}), "", *bad]))
    with pytest.raises(InputError) as error:
        read_manifest(path)
    text = str(error.value)
    assert "9 of 11 lines" in text
    for number, message in enumerate(
        [
            "Expecting",
            "audio, the path of the recording, is missing",
            "metric must be one of wer, cer, accuracy, bleu, got 'taste'",
            "text must be a string, got 5",
            "0 <= start < end",
            "in the order of their starts",
            "expected a JSON object, got list",
            "words must be a list, got 7",
            "audio, the path of the recording, is missing",
        ],
        3,
    ):
        assert any(line.startswith(f"  line {number}: ") and message in line for line in text.splitlines()), message


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ('{"audio": "a.wav", "words": [["x", 0, 1%s]]}' % ("0" * 400), "0 <= start < end <= 3600"),
        ('{"audio": "a.wav", "words": [["x", 0, 1%s]]}' % ("0" * 9000), "integer string conversion"),
        ('{"audio": "a.wav", "words": [["x", 0, 1e999]]}', "0 <= start < end"),
        ('{"audio": "a.wav", "words": [["x", 0, NaN]]}', "NaN is no number"),
        ('{"audio": "a.wav", "words": [["x", -Infinity, 1]]}', "-Infinity is no number"),
        ('{"audio": "a.wav", "words": [["x", false, true]]}', "0 <= start < end"),
        ('{"audio": "a.wav", "words": [["\\ud83d", 0, 1]]}', "words has a character that is no text"),
        ('{"audio": "a.wav", "text": "smile \\ud83d"}', r"text has a character that is no text: '\\ud83d'"),
        ('{"audio": "a.wav", "task": "\\ude00\\ud83d"}', "task has a character that is no text"),
        ('{"audio": "a.wav", "language": "\\ud83d"}', "language has a character that is no text"),
        ('{"audio": "a\\u0000.wav"}', "has a NUL in it"),
        ('{"audio": "a.wav", "text": "one", "text": "two"}', "'text' stands there more than once"),
        ('{"audio": 7}', "audio must be a string, got 7"),
        ("[" * 100_000, "nested too deeply|Expecting"),
        ("audio,text", "Expecting value"),
        ('[{"audio": "a.wav"}]', "expected a JSON object, got list"),
    ],
)
def test_a_line_that_no_run_could_use_is_named(tmp_path: Path, line: str, message: str) -> None:
    (tmp_path / "m.jsonl").write_text(json.dumps({"audio": "a.wav"}) + f"\n{line}\n")
    with pytest.raises(InputError, match=rf"m\.jsonl: 1 of 2 lines cannot be used\n  line 2: .*({message})") as error:
        read_manifest(tmp_path / "m.jsonl")
    assert len(str(error.value)) < 500
    (tmp_path / "alone.jsonl").write_text(line)
    with pytest.raises(InputError, match="every line must be a JSON object"):
        read_manifest(tmp_path / "alone.jsonl")


def test_a_whole_pair_of_surrogates_is_text(tmp_path: Path) -> None:
    (tmp_path / "m.jsonl").write_text('{"audio": "a.wav", "text": "\\ud83d\\ude00"}')
    assert read_manifest(tmp_path / "m.jsonl")[0].text == "\U0001f600"


@pytest.mark.parametrize("encoding", ["utf-16", "latin-1"])
def test_a_manifest_in_another_encoding_is_refused(tmp_path: Path, encoding: str) -> None:
    (tmp_path / "m.jsonl").write_text('{"audio": "Zürich.wav"}', encoding)
    with pytest.raises(InputError, match=r"cannot read the manifest .*m\.jsonl: it is not UTF-8"):
        read_manifest(tmp_path / "m.jsonl")


def test_a_manifest_without_recordings_is_refused(tmp_path: Path) -> None:
    (tmp_path / "empty.jsonl").write_text("\n")
    with pytest.raises(InputError, match="is empty"):
        read_manifest(tmp_path / "empty.jsonl")
    with pytest.raises(InputError, match="cannot read the manifest"):
        read_manifest(tmp_path / "absent.jsonl")


def test_recordings_that_cannot_be_used_are_no_error_until_they_are_loaded(corpus: Path) -> None:
    utterances = open_data(corpus)
    loaded, problems = [], []
    for utterance in utterances:
        try:
            loaded.append(utterance.load(16000).seconds)
        except InputError as error:
            problems.append((utterance.id, str(error)))
    assert loaded == [0.8, 1.9, 1.3, 1.0, 1.6]
    assert [id for id, _ in problems] == ["missing", "empty"]
    assert "no such recording" in problems[0][1]
    assert "0.00 s of sound" in problems[1][1]


def test_ids_are_paths_without_suffix_and_tell_every_line_from_the_others(tmp_path: Path) -> None:
    lines = [
        {"audio": "a/one.wav"},
        {"audio": "b/one.flac"},
        {"audio": "b/one.flac", "task": "first"},
        {"audio": "two.wav", "task": "last"},
        {"audio": "two.mp3", "task": "last"},
    ]
    (tmp_path / "m.jsonl").write_text("\n".join(map(json.dumps, lines)))
    ids = [utterance.id for utterance in open_data(str(tmp_path / "m.jsonl"))]
    assert ids == ["a/one", "b/one/transcribe", "b/one/first", "two/last#4", "two/last#5"]
    assert len(set(unique(["a", "a", "a#1"], ["#0", "#1", "#2"]))) == 3


def test_a_line_may_hold_any_character_but_the_end_of_a_line(tmp_path: Path) -> None:
    text = "one\u2028two\x0cthree"
    (tmp_path / "m.jsonl").write_text(json.dumps({"audio": "a.wav", "text": text}, ensure_ascii=False), "utf-8-sig")
    assert [utterance.text for utterance in open_data(tmp_path / "m.jsonl")] == [text]


def test_the_bundled_recordings_are_what_is_opened_when_nothing_is_named() -> None:
    utterances = open_data(None)
    assert len(utterances) == 11
    assert len({utterance.id for utterance in utterances}) == 11
    assert {utterance.id for utterance in utterances} >= {"allison-room", "librivox-0880"}
