"""Sound that is cut, joined, mislabelled or not sound is named, and sound that only looks odd is heard."""

from __future__ import annotations

import io
import os
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
from hypothesis import given, settings
from hypothesis import strategies as st

from affinity_pool.study.data import audio, files, load_audio
from affinity_pool.study.data.containers import whole_recording
from affinity_pool.study.errors import InputError

RATE = 16000
FORMATS = [
    ("WAV", "PCM_16"), ("WAV", "PCM_24"), ("WAV", "FLOAT"), ("WAV", "ULAW"), ("WAV", "IMA_ADPCM"), ("WAVEX", "PCM_16"),
    ("RF64", "PCM_16"), ("W64", "PCM_16"), ("AIFF", "PCM_16"), ("AIFF", "FLOAT"), ("CAF", "PCM_16"), ("AU", "PCM_16"),
    ("OGG", "VORBIS"), ("OGG", "OPUS"), ("MP3", "MPEG_LAYER_III"), ("FLAC", "PCM_16"),
]  # fmt: skip
each_format = pytest.mark.parametrize("kind", FORMATS, ids=["-".join(kind) for kind in FORMATS])


def voice(seconds: float = 1.0, rate: int = RATE) -> np.ndarray:
    t = np.arange(round(seconds * rate)) / rate
    noise = 0.01 * np.random.default_rng(0).standard_normal(len(t))
    return (0.4 * np.sin(2 * np.pi * (200 + 300 * t) * t) + noise).astype(np.float32)


def encoded(x: np.ndarray, kind: tuple[str, str] = ("WAV", "PCM_16"), rate: int = RATE) -> bytes:
    file = io.BytesIO()
    soundfile.write(file, x, rate, format=kind[0], subtype=kind[1])
    return file.getvalue()


def refused(content: bytes) -> str:
    with pytest.raises(InputError) as error:
        load_audio(content, RATE)
    assert len(str(error.value)) < 400
    return str(error.value)


@each_format
def test_a_whole_file_is_heard_whole(kind):
    assert load_audio(encoded(voice(), kind), RATE).seconds == pytest.approx(1, abs=0.08)


@each_format
@pytest.mark.parametrize("share", [0.3, 0.4, 0.77, 0.99])
def test_a_file_that_was_cut_is_refused(kind, share):
    content = encoded(voice(2), kind)
    assert "cannot read" in refused(content[: int(len(content) * share)])


@each_format
def test_two_files_in_one_are_refused(kind):
    content = encoded(voice(), kind)
    for other in (content, encoded(voice(0.5), kind)):
        assert "another recording follows" in refused(content + other)


@each_format
def test_a_tag_in_front_is_skipped(kind):
    content = encoded(voice(), kind)
    tag = b"ID3\x04\x00\x00" + bytes([0, 0, 1, 20]) + bytes(148)
    for tagged in (tag + content, tag + tag + content):
        np.testing.assert_array_equal(load_audio(tagged, RATE).samples, load_audio(content, RATE).samples)
    assert "cannot read" in refused(tag + content[: len(content) // 2])


def test_tags_and_chunks_behind_are_no_second_recording():
    x = load_audio(encoded(voice()), RATE).samples
    wave = encoded(voice())
    for tail in (b"LIST" + struct.pack("<I", 10) + b"INFO" + bytes(6), b"TAG" + bytes(125), b"\0" * 7, b"junk"):
        np.testing.assert_array_equal(load_audio(wave + tail, RATE).samples, x)
    mp3 = encoded(voice(), ("MP3", "MPEG_LAYER_III"))
    for tail in (b"TAG" + bytes(125), b"APETAGEX" + bytes(40), bytes(100)):
        assert load_audio(mp3 + tail, RATE).seconds == load_audio(mp3, RATE).seconds


@pytest.mark.parametrize("size", [0xFFFFFFFF, 0x7FFFFFFF, 0x7FFFF024, 0xFFFFF000])
def test_a_stream_that_knew_no_size_is_heard(size):
    """As sox, ffmpeg and espeak-ng write it to a pipe."""
    content = bytearray(encoded(voice()))
    content[4:8] = struct.pack("<I", size)
    content[40:44] = struct.pack("<I", size)
    assert load_audio(bytes(content), RATE).seconds == pytest.approx(1, abs=0.001)


def test_a_header_that_declares_no_data_is_named():
    content = bytearray(encoded(voice()))
    content[40:44] = bytes(4)
    assert "no sound is declared, though 32000 bytes follow" in refused(bytes(content))


def test_other_forms_of_wave():
    odd = encoded(voice()[:15999], ("WAV", "PCM_U8"))  # an odd number of bytes, padded
    assert load_audio(odd, RATE).seconds == pytest.approx(1, abs=0.001)
    assert load_audio(odd.removesuffix(b"\0"), RATE).seconds == pytest.approx(1, abs=0.001)
    assert "another recording follows" in refused(odd + odd)
    large = io.BytesIO()
    soundfile.write(large, voice(), RATE, format="WAV", subtype="PCM_16", endian="BIG")
    assert large.getvalue().startswith(b"RIFX")
    assert load_audio(large.getvalue(), RATE).seconds == pytest.approx(1)
    assert "cut short" in refused(large.getvalue()[:20000])


@pytest.mark.parametrize("scale", [2**15, 2**23, 2**31, 100])
def test_integers_written_as_floats_are_named(scale):
    assert "integers written as floats" in refused(encoded(voice() * scale, ("WAV", "FLOAT")))


@pytest.mark.parametrize("gain", [1e-4, 1, 3, 10])
def test_quiet_and_overdriven_floats_are_heard(gain):
    samples = load_audio(encoded(voice() * gain, ("WAV", "FLOAT")), RATE).samples
    np.testing.assert_allclose(samples, voice() * gain, rtol=1e-6)


def test_channels_that_cancel_out_are_named():
    x = voice()
    for sides in ([x, -x], [x, -x, np.zeros_like(x)], [x, -x + 1e-5]):
        assert "they cancel out" in refused(encoded(np.stack(sides, 1), ("WAV", "FLOAT")))
    for sides in ([x, np.zeros_like(x)], [x, -0.5 * x], [x, x]):
        assert load_audio(encoded(np.stack(sides, 1), ("WAV", "FLOAT")), RATE).samples.any()


@pytest.mark.parametrize(
    ("level", "said"), [(0.0, "every sample is zero"), (0.25, "every sample is about 0.25 from zero")]
)
def test_silence_is_named_as_what_it_is(level, said):
    assert said in refused(encoded(np.full(RATE, level), ("WAV", "FLOAT")))
    assert said in refused(encoded(np.full((RATE, 2), level), ("WAV", "FLOAT")))


def test_rates_that_no_sound_has_are_refused():
    for rate in (1, 900):
        assert f"{rate} samples a second" in refused(encoded(voice(), rate=rate))
    content = bytearray(encoded(voice()))
    content[24:28] = struct.pack("<I", 2**31 - 1)
    assert "samples a second" in refused(bytes(content))


def test_files_beyond_memory_are_refused_before_they_are_read(tmp_path):
    with (tmp_path / "long.wav").open("wb") as file:
        file.truncate(files.LARGEST + 1)  # takes no disk
    with pytest.raises(InputError, match=f"at most {files.LARGEST} are read"):
        load_audio(tmp_path / "long.wav", RATE)


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no named pipes here")
def test_pipes_and_devices_are_no_recordings(tmp_path):
    os.mkfifo(tmp_path / "pipe.wav")
    for path in (tmp_path / "pipe.wav", Path("/dev/zero")):
        with pytest.raises(InputError, match="is a pipe or a device"):
            load_audio(path, RATE)


def test_names_that_are_no_paths_are_refused():
    with pytest.raises(InputError, match="cannot read"):
        load_audio(Path("a\0.wav"), RATE)


@st.composite
def damaged(draw: Any) -> bytes:
    """A file of any format, cut, spliced and with bytes changed."""
    content = bytearray(draw(st.sampled_from(_whole())))
    for _ in range(draw(st.integers(0, 3))):
        at = draw(st.integers(0, min(len(content), 300) if draw(st.booleans()) else len(content)))
        length = draw(st.integers(0, 64))
        match draw(st.sampled_from(["cut", "change", "remove", "insert", "repeat", "size"])):
            case "cut":
                del content[at:]
            case "change":
                content[at : at + length] = draw(st.binary(min_size=length, max_size=length))
            case "remove":
                del content[at : at + length]
            case "insert":
                content[at:at] = draw(st.binary(max_size=64))
            case "repeat":
                content[at:at] = content[: 4 * length]
            case "size":
                content[at : at + 4] = draw(
                    st.sampled_from([bytes(4), b"\xff" * 4, b"\xff\xff\xff\x7f", b"\0\0\0\x80"])
                )
    return bytes(content)


def _whole(found: list[bytes] = []) -> list[bytes]:  # noqa: B006  # made once
    found += [] if found else [encoded(voice(0.3), kind) for kind in FORMATS]
    return found


@settings(max_examples=max(300, settings.default.max_examples), deadline=None)
@given(damaged() | st.binary(max_size=200))
def test_any_bytes_are_heard_or_named(content):
    try:
        heard = load_audio(content, RATE)
    except InputError:
        return
    assert np.isfinite(heard.samples).all()
    assert heard.samples.any()
    assert heard.seconds >= audio.SHORTEST


@settings(max_examples=max(300, settings.default.max_examples), deadline=None)
@given(damaged() | st.binary(max_size=200))
def test_containers_raise_nothing_but_what_they_say(content):
    try:
        whole_recording(content)
    except ValueError:
        return
