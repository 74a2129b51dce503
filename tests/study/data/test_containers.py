"""Recordings that are not all there: what their containers declare is held against what they have."""

from __future__ import annotations

import contextlib
import io
import struct

import numpy as np
import pytest
import soundfile

from affinity_pool.study.data import load_audio, open_data
from affinity_pool.study.errors import InputError

NOISE = 0.2 * np.random.default_rng(0).standard_normal(20000)
KINDS = [
    ("WAV", "PCM_16"),
    ("WAV", "PCM_U8"),
    ("WAV", "FLOAT"),
    ("WAV", "ULAW"),
    ("WAVEX", "PCM_24"),
    ("RF64", "PCM_16"),
    ("W64", "PCM_16"),
    ("AIFF", "PCM_16"),
    ("AIFF", "FLOAT"),
    ("CAF", "PCM_16"),
    ("AU", "PCM_16"),
    ("FLAC", "PCM_16"),
    ("OGG", "VORBIS"),
    ("OGG", "OPUS"),
    ("MP3", "MPEG_LAYER_III"),
]
ID3 = b"ID3\x04\0\0\0\0\x01\0" + b"\0" * 128


def encoded(samples: np.ndarray, kind: str, coding: str | None = None, rate: int = 16000) -> bytes:
    file = io.BytesIO()
    soundfile.write(file, samples, rate, format=kind, subtype=coding)
    return file.getvalue()


def wav(riff: int, declared: int, sound: bytes, *, rate: int = 16000, before: bytes = b"") -> bytes:
    form = struct.pack("<IHHIIHH", 16, 1, 1, rate, 2 * rate, 2, 16)
    return (
        b"RIFF" + struct.pack("<I", riff) + b"WAVEfmt " + form + before + b"data" + struct.pack("<I", declared) + sound
    )


SOUND = (NOISE[:16000] * 20000).astype("<i2").tobytes()


def seconds(file: bytes) -> float:
    return load_audio(file, 16000, "clip").seconds


@pytest.mark.parametrize(("kind", "coding"), KINDS)
@pytest.mark.parametrize("channels", [1, 2])
def test_a_whole_recording_is_read_and_any_shorter_one_refused(kind: str, coding: str, channels: int) -> None:
    file = encoded(np.repeat(NOISE[:, None], channels, 1), kind, coding)
    whole = seconds(file)
    assert whole == pytest.approx(1.25, abs=0.01)
    for end in np.random.default_rng(1).integers(1, len(file), 25):
        with contextlib.suppress(InputError):
            assert seconds(file[:end]) == whole  # cut in what follows the sound


@pytest.mark.parametrize(("kind", "coding"), KINDS)
def test_two_recordings_in_one_file_are_refused(kind: str, coding: str) -> None:
    one, other = (encoded(part, kind, coding) for part in (NOISE[:9001], NOISE[9001:]))
    with pytest.raises(InputError, match=r"clip: .*(follow|cut short)"):
        seconds(one + other)


@pytest.mark.parametrize("first", ["WAV", "RF64", "W64", "AIFF", "CAF", "AU", "FLAC", "OGG", "MP3"])
@pytest.mark.parametrize("second", ["WAV", "RF64", "W64", "AIFF", "CAF", "AU", "FLAC", "OGG", "MP3"])
def test_two_recordings_of_different_kinds_in_one_file_are_refused(first: str, second: str) -> None:
    for samples in (NOISE, NOISE[:9001]):
        with pytest.raises(InputError, match=r"clip: .*follow"):
            seconds(encoded(samples, first, "PCM_U8" if first == "WAV" else None) + encoded(NOISE, second))


def test_a_recording_behind_the_tags_of_another_is_noticed() -> None:
    mp3, flac = encoded(NOISE, "MP3"), encoded(NOISE, "FLAC")
    for file in (mp3 + b"TAG" + b"x" * 125 + mp3, mp3 + b"TAG" + b"x" * 125 + flac, encoded(NOISE, "WAV") + ID3 + mp3):
        with pytest.raises(InputError, match="clip: another recording follows"):
            seconds(file)


@pytest.mark.parametrize("second", ["WAV", "FLAC", "OGG", "MP3"])
def test_a_recording_behind_one_of_unknown_length_is_noticed(second: str) -> None:
    au = encoded(NOISE, "AU")
    for stream in (wav(0xFFFFFFFF, 0xFFFFFFFF, SOUND), au[:8] + b"\xff" * 4 + au[12:]):
        assert seconds(stream) > 0.9
        with pytest.raises(InputError, match="clip: another recording follows"):
            seconds(stream + encoded(NOISE, second))


def test_sound_behind_the_declared_end_of_a_wav_is_noticed() -> None:
    half = wav(36 + len(SOUND) // 2, len(SOUND) // 2, SOUND)
    with pytest.raises(InputError, match="clip: 16000 bytes follow its end, which are no chunk of it"):
        seconds(half)
    assert seconds(half[: -len(SOUND) // 2] + b"\0" * 8192) == 0.5
    assert seconds(half[: -len(SOUND) // 2] + b"LIST" + struct.pack("<I", 8192) + b"\xff" * 8192) == 0.5


def test_a_flac_may_keep_the_header_of_the_wav_it_was_made_from() -> None:
    file = encoded(NOISE, "FLAC")
    kept = b"riff" + wav(36, 32000, b"")
    block = b"\x02" + len(kept).to_bytes(3, "big") + kept
    assert seconds(file[:42] + block + file[42:]) == 1.25


@pytest.mark.filterwarnings("error")
def test_infinite_samples_are_refused_without_a_warning() -> None:
    with pytest.raises(InputError, match="NaN or infinite"):
        seconds(encoded(np.full(9000, np.inf), "WAV", "FLOAT"))


@pytest.mark.parametrize(("kind", "coding"), KINDS)
def test_a_tag_in_front_is_not_heard(kind: str, coding: str) -> None:
    file = encoded(NOISE, kind, coding)
    assert np.array_equal(load_audio(ID3 + ID3 + file, 16000).samples, load_audio(file, 16000).samples)
    with pytest.raises(InputError, match="ends within its ID3 tag"):
        seconds(ID3[:60])


@pytest.mark.parametrize(
    ("kind", "tail"),
    [
        ("WAV", b"LIST\x04\0\0\0abcd"),
        ("WAV", b"id3 \x03\0\0\0abc\0"),
        ("WAV", b"\xff" * 33),
        ("AIFF", b"ANNO\0\0\0\x03abc\0"),
        ("MP3", b"TAG" + b"x" * 125),
        ("MP3", b"APETAGEX" + b"\0" * 24),
        ("FLAC", b"TAG" + b"x" * 125),
        ("OGG", b"TAG" + b"x" * 125),
    ],
)
def test_what_may_follow_the_sound_is_no_damage(kind: str, tail: bytes) -> None:
    assert seconds(encoded(NOISE, kind) + tail) == pytest.approx(1.25, abs=0.01)


@pytest.mark.parametrize(
    ("riff", "declared"),
    [
        (0xFFFFFFFF, 0xFFFFFFFF),  # ffmpeg
        (0x7FFFF024, 0x7FFFF000),  # sox, espeak-ng
        (0x7FFFFFFF, 0x7FFFFFDB),
        (0, 0xFFFFFFFF),
        (0, 32000),
        (0xFFFFFFFF, 32000),
        (36 + 32000, 32000),
    ],
)
def test_a_wav_written_into_a_pipe_lasts_until_its_end(riff: int, declared: int) -> None:
    assert seconds(wav(riff, declared, SOUND)) == 1
    assert seconds(wav(riff, declared, SOUND, before=b"LIST\x03\0\0\0abc\0")) == 1
    with pytest.raises(InputError, match="another recording follows"):
        seconds(wav(riff, declared, SOUND) * 2)


@pytest.mark.parametrize("riff", [0, 8, 36, 32036])
def test_a_wav_that_declares_no_sound_but_has_some_is_refused_for_that(riff: int) -> None:
    with pytest.raises(InputError, match="no sound is declared, though 32000 bytes follow"):
        seconds(wav(riff, 0, SOUND))


def test_a_flac_of_unknown_length_is_refused_in_words() -> None:
    file = bytearray(encoded(NOISE, "FLAC"))
    file[21] &= 0xF0
    file[22:26] = bytes(4)
    with pytest.raises(InputError, match="clip: it was written into a pipe and does not say how long it is"):
        seconds(bytes(file))


@pytest.mark.parametrize("coding", ["VORBIS", "OPUS"])
def test_an_ogg_with_a_changed_a_lost_or_an_added_page_is_refused(coding: str) -> None:
    file = encoded(np.tile(NOISE, 8), "OGG", coding)
    pages = [b"OggS" + page for page in file.split(b"OggS")[1:]]
    assert len(pages) > 3
    damaged = bytearray(file)
    damaged[-len(pages[-1]) // 2] ^= 1
    with pytest.raises(InputError, match="damaged"):
        seconds(bytes(damaged))
    with pytest.raises(InputError, match="its page 2 is missing"):
        seconds(b"".join(pages[:2] + pages[3:]))
    with pytest.raises(InputError, match="its page 3 is missing"):
        seconds(b"".join([*pages[:3], pages[2], *pages[3:]]))
    with pytest.raises(InputError, match="its last page is missing"):
        seconds(b"".join(pages[:-1]))


def test_an_mp3_without_a_count_has_its_last_frame_whole() -> None:
    file = encoded(np.tile(NOISE, 4), "MP3")
    counted = file.index(b"Info") if b"Info" in file else file.index(b"Xing")
    plain = file[:counted] + b"\0\0\0\0" + file[counted + 4 :]
    whole = seconds(plain)
    with pytest.raises(InputError, match="cut short within its last frame"):
        seconds(plain[:-20])
    with pytest.raises(InputError, match="damaged, or another"):
        seconds(plain + b"junk" * 40)
    assert seconds(plain + b"TAG" + b"\0" * 125) == whole


def test_the_bundled_recordings_are_whole() -> None:
    for utterance in open_data():
        assert utterance.load(16000).seconds > 1


@pytest.mark.parametrize("kind", ["AVR", "PAF", "VOC", "IRCAM", "SVX", "NIST", "MAT5"])
def test_containers_whose_ends_are_not_known_are_refused(kind: str) -> None:
    with pytest.raises(InputError, match="cannot read clip: "):
        seconds(encoded(NOISE, kind))
