"""Whether a file of sound is all there, and one recording: decoders read what they find and say nothing.

Each container says how long it is: WAV, RF64, W64, AIFF, CAF and AU in the size of their data, Ogg in its last page,
MP3 in the frame that encoders put first, if they do. FLAC's decoder compares by itself. A stream that was written to a
pipe has no size to declare and says so by the largest one there is, which is taken at its word. What cannot be seen: an
MP3 without that first frame that was cut between two frames.
"""

from __future__ import annotations

import re
import struct
from collections.abc import Callable, Iterator

UNKNOWN = 0x7FFFF000  # sizes from here on are what programs write that do not know: sox, ffmpeg, espeak-ng
_W64_DATA = b"data" + bytes.fromhex("f3acd3118cd100c04f8edb8a")


def check_whole(content: bytes) -> None:
    """Raise a :class:`ValueError` that says how, if these bytes of a file are cut short, or more than one recording."""
    for magic, check in _CHECKS:
        if content.startswith(magic):
            try:
                check(content)
            except struct.error:
                raise ValueError("it is cut short: its header is not whole") from None


def without_tag(content: bytes) -> bytes:
    """A file's bytes without the ID3v2 tags in front of it, whatever format it is."""
    while content.startswith(b"ID3") and len(content) > 10 and all(byte < 0x80 for byte in content[6:10]):
        size = int.from_bytes(bytes(content[6:10]), "big")
        size = (size & 0x7F) | (size & 0x7F00) >> 1 | (size & 0x7F0000) >> 2 | (size & 0x7F000000) >> 3
        content = content[10 + size + (10 if content[5] & 0x10 else 0) :]
    return content


def _cut(declared: int, there: int) -> ValueError:
    return ValueError(f"it is cut short: it declares {declared} bytes of sound and has {max(there, 0)}")


def _joined() -> ValueError:
    return ValueError("it holds two recordings, one after the other, of which decoders read one: split it")


def _check_size(content: bytes, start: int, size: int, magic: bytes) -> None:
    """The sound begins at ``start`` and is ``size`` bytes long; no file of the same kind may follow."""
    there = len(content) - start
    if size == 0 and there > 1:
        raise ValueError(f"its header declares no data, though {there} bytes follow: it was never finished")
    if size < UNKNOWN and there < size:
        raise _cut(size, there)
    if size < UNKNOWN and magic in (content[start + size :][:4], content[start + size + 1 :][:4]):
        raise _joined()


def _chunks(content: bytes, start: int, order: str, size: str = "I") -> Iterator[tuple[bytes, int, int]]:
    """Name, start and size of the chunks of an IFF-like file."""
    width = 4 + struct.calcsize(size)
    while start + width <= len(content):
        (length,) = struct.unpack_from(order + size, content, start + 4)
        yield content[start : start + 4], start + width, length
        start += width + length + (length & 1 if size == "I" else 0)


def _check_wave(content: bytes) -> None:
    order, large = ">" if content[:4] == b"RIFX" else "<", None
    for name, start, size in _chunks(content, 12, order):
        if name == b"ds64" and len(content) >= start + 16:
            (large,) = struct.unpack_from("<Q", content, start + 8)
        if name == b"data":
            size = large if large is not None and size == 0xFFFFFFFF else size
            _check_size(content, start, size, content[:4])
            end = start + size + (size & 1)
            if size < UNKNOWN and any(name == content[:4] for name, _, _ in _chunks(content, end, order)):
                raise _joined()
            return


def _check_w64(content: bytes) -> None:
    start = 40
    while start + 24 <= len(content):
        (size,) = struct.unpack_from("<Q", content, start + 16)
        if content[start : start + 16] == _W64_DATA:
            _check_size(content, start + 24, size - 24, content[:4])
        if size < 24 or content[start : start + 16] == _W64_DATA:
            return
        start += (size + 7) // 8 * 8


def _check_aiff(content: bytes) -> None:
    for name, start, size in _chunks(content, 12, ">"):
        if name == b"SSND":
            _check_size(content, start, size, b"FORM")
            end = start + size + (size & 1)
            if any(name == b"FORM" for name, _, _ in _chunks(content, end, ">")):
                raise _joined()
            return


def _check_caf(content: bytes) -> None:
    for name, start, size in _chunks(content, 8, ">", "Q"):
        if name == b"data":
            _check_size(content, start, size, b"caff")
            return


def _check_au(content: bytes) -> None:
    if len(content) >= 24:
        order = ">" if content[:4] == b".snd" else "<"
        start, size = struct.unpack_from(order + "II", content, 4)
        _check_size(content, start, size, content[:4])


def _check_flac(content: bytes) -> None:
    if len(re.findall(rb"fLaC[\x00\x80]\x00\x00\x22", content)) > 1:
        raise _joined()


def _check_ogg(content: bytes) -> None:
    """Streams begin together, and each ends with a page that says so."""
    at, open_streams, begun = 0, set[int](), False
    while content[at : at + 4] == b"OggS" and at + 27 <= len(content):
        flags, serial, segments = content[at + 5], content[at + 14 : at + 18], content[at + 26]
        lengths = content[at + 27 : at + 27 + segments]
        stream = int.from_bytes(serial, "little")
        if flags & 2 and begun:
            raise _joined()
        begun = begun or not flags & 2
        open_streams.add(stream)
        at += 27 + segments + sum(lengths)
        if at > len(content) or len(lengths) < segments:
            raise ValueError("it is cut short: its last page is not whole")
        if flags & 4:
            open_streams.discard(stream)
    if open_streams:
        raise ValueError("it is cut short: the page that ends it is missing")


_KBITS = {  # by (MPEG 1, layer 3): layers 1 and 2 are no MP3
    True: (0, 32, 40, 48, 56, 64, 80, 96, 112, 128, 160, 192, 224, 256, 320),
    False: (0, 8, 16, 24, 32, 40, 48, 56, 64, 80, 96, 112, 128, 144, 160),
}
_RATES = {3: (44100, 48000, 32000), 2: (22050, 24000, 16000), 0: (11025, 12000, 8000)}


def _mp3_frame(header: bytes) -> tuple[int, int] | None:
    """Bytes of an MPEG layer 3 frame, and where in it the first frame's tag is; None if this is no header of one."""
    if len(header) < 4 or header[0] != 0xFF or header[1] & 0xE6 != 0xE2:
        return None
    version, bits, rate, mono = header[1] >> 3 & 3, header[2] >> 4, header[2] >> 2 & 3, header[3] >> 6 == 3
    if version == 1 or bits in (0, 15) or rate == 3:
        return None
    first = version == 3
    size = (144 if first else 72) * _KBITS[first][bits] * 1000 // _RATES[version][rate] + (header[2] >> 1 & 1)
    return size, 4 + ((17 if mono else 32) if first else (9 if mono else 17))


def _check_mp3(content: bytes) -> None:
    """Count frames; the first may say how many there are."""
    at, frames, declared = 0, 0, None
    while found := _mp3_frame(content[at : at + 4]):
        size, tag = found
        if at + size > len(content):
            raise ValueError("it is cut short: its last frame is not whole")
        if content[at + tag : at + tag + 4] in (b"Xing", b"Info"):
            if frames:
                raise _joined()
            flags, count = struct.unpack_from(">II", content, at + tag + 4)
            declared = count if flags & 1 else None
            frames -= 1  # this one holds no sound
        frames += 1
        at += size
        if content[at : at + 3] == b"ID3":
            raise _joined()
    if declared is not None and frames < declared:
        raise ValueError(f"it is cut short: it declares {declared} frames and has {frames}")
    if declared is not None and frames > declared + 1:
        raise _joined()


_CHECKS: tuple[tuple[bytes, Callable[[bytes], None]], ...] = (
    (b"RIFF", _check_wave),
    (b"RIFX", _check_wave),
    (b"RF64", _check_wave),
    (b"BW64", _check_wave),
    (b"riff", _check_w64),
    (b"FORM", _check_aiff),
    (b"caff", _check_caf),
    (b".snd", _check_au),
    (b"dns.", _check_au),
    (b"fLaC", _check_flac),
    (b"OggS", _check_ogg),
    (b"\xff", _check_mp3),
)
