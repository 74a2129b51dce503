"""Whether a recording is all there, by what its container declares: decoders return what they find without a word.

WAV (RIFF, RF64, W64), AIFF, CAF and AU declare how many bytes of sound there are, Ogg marks its last page and
numbers and sums up the others, MP3 counts its frames where the encoder knew them; FLAC is checked by its decoder. What
cannot be seen: an MP3 without a count, or a WAV of unknown length, that ends between two frames.

Streams are written before their length is known: a WAV whose length is about 2 GiB or 4 GiB (``sox``, ``espeak-ng`` and
``ffmpeg`` into a pipe), an AU's or CAF's of -1, lasts until the end of the file.
"""

from __future__ import annotations

import re
import struct
import zlib
from collections.abc import Iterator
from itertools import islice

UNKNOWN = 0x7FFFF000
"""The least length of a WAV that stands for an unknown one, if the file is shorter."""
FOREIGN = 4096
"""Bytes behind the sound of a WAV or AIFF that may be anything; more are chunks, zeros, or sound not declared."""
SOUNDS = (b"\x01vorbis", b"OpusHead", b"\x7fFLAC", b"Speex   ")
"""How the streams of an Ogg begin that hold sound."""
TAILS = (b"TAG", b"APETAGEX", b"LYRICSBEGIN", b"3DI")
"""How the tags begin that follow the frames of an MP3."""

_REVERSED = bytes(int(f"{byte:08b}"[::-1], 2) for byte in range(256))
_START = re.compile(
    rb"(?:RIFF|RIFX|RF64)....WAVE|riff\x2e\x91\xcf\x11|FORM....AIF[FC]|caff\0\x01\0\0desc|\.snd\0\0|OggS\0\x02|fLaC\0\0\0\x22",
    re.DOTALL,
)
"""How recordings begin; an MP3 has no such signature, see ``_none_begins``."""
_NAME = re.compile(rb"[ -~]{4}")
_SYNC = re.compile(rb"\xff[\xe2-\xff]")
_BITRATES = {
    (1, 1): (32, 64, 96, 128, 160, 192, 224, 256, 288, 320, 352, 384, 416, 448),
    (1, 2): (32, 48, 56, 64, 80, 96, 112, 128, 160, 192, 224, 256, 320, 384),
    (1, 3): (32, 40, 48, 56, 64, 80, 96, 112, 128, 160, 192, 224, 256, 320),
    (2, 1): (32, 48, 56, 64, 80, 96, 112, 128, 144, 160, 176, 192, 224, 256),
    (2, 2): (8, 16, 24, 32, 40, 48, 56, 64, 80, 96, 112, 128, 144, 160),
    (2, 3): (8, 16, 24, 32, 40, 48, 56, 64, 80, 96, 112, 128, 144, 160),
}
"""Of an MP3's version (2 for 2.5 too) and layer, kbit/s."""


def whole_recording(file: bytes) -> bytes:
    """The recording without ID3 tags in front of it.

    Raises:
        ValueError: it is cut short, something is missing in it, or another recording follows.
    """
    while size := _tag(file, 0):
        if size >= len(file):
            raise ValueError("it ends within its ID3 tag")
        file = file[size:]
    if file[:4] in (b"RIFF", b"RIFX", b"RF64"):
        _wav(file)
    elif file[:4] == b"riff":
        _w64(file)
    elif file[:4] == b"FORM":
        _chunks(file, 12, ">I", b"SSND", b"FORM")
    elif file[:4] == b"caff":
        _caf(file)
    elif file[:4] in (b".snd", b"dns."):
        _au(file)
    elif file[:4] == b"OggS":
        _ogg(file)
    elif file[:4] == b"fLaC":
        _flac(file)
        if not int.from_bytes(file[21:26], "big") & 0xFFFFFFFFF:  # samples, 36 bits
            raise ValueError("it was written into a pipe and does not say how long it is: decode it and encode it anew")
    else:
        file = file.lstrip(b"\0")  # what ID3 tags leave for changes
        _mp3(file)
    return file


def _declared(size: int, found: int) -> None:
    if size > found:
        raise ValueError(f"it is cut short: {size} bytes of sound are declared, {max(found, 0)} are there")


def _chunks(file: bytes, at: int, size_of: str, sound: bytes, another: bytes, large: int | None = None) -> None:
    """Walk chunks of a name of 4 bytes, a size and contents of an even number of bytes."""
    heard = False
    while at + 8 <= len(file):
        name, (size,) = file[at : at + 4], struct.unpack_from(size_of, file, at + 4)
        begin = at + 8
        if name == another:
            raise ValueError("another recording follows in it")
        _none_begins(file, at)
        if name == sound:
            if heard:
                raise ValueError("another recording follows in it")
            heard = True
            found = len(file) - begin
            if size == 0xFFFFFFFF and large is not None:
                size = large
            if another != b"FORM" and size > found and UNKNOWN <= size <= 0xFFFFFFFF:
                _nothing_behind(file, begin)
                return
            if size == 0 < found:
                raise ValueError(f"no sound is declared, though {found} bytes follow: it was not closed when written")
            _declared(size, found)
            if size % 2:  # without the byte that makes it even
                _none_begins(file, begin + size)
        elif heard and len(file) - at > FOREIGN and not _NAME.match(name) and file[at:].strip(b"\0"):
            raise ValueError(f"{len(file) - at} bytes follow its end, which are no chunk of it")
        at = begin + size + size % 2


def _wav(file: bytes) -> None:
    large = None
    if file[:4] == b"RF64" and file[12:16] == b"ds64" and len(file) >= 36:
        (large,) = struct.unpack_from("<Q", file, 28)
    _chunks(file, 12, ">I" if file[:4] == b"RIFX" else "<I", b"data", file[:4], large)


def _w64(file: bytes) -> None:
    """Names of 16 bytes, sizes of 8 that count themselves and the name, on multiples of 8."""
    _alone(file, file[:16])
    at = 40
    while at + 24 <= len(file):
        (size,) = struct.unpack_from("<Q", file, at + 16)
        if file[at : at + 4] == b"data":
            _declared(size - 24, len(file) - at - 24)
        at += max(size + -size % 8, 24)
    _ended(file, struct.unpack_from("<Q", file.ljust(24, b"\0"), 16)[0])


def _caf(file: bytes) -> None:
    _alone(file, b"caff\0\1\0\0desc")
    at = 8
    while at + 12 <= len(file):
        (size,) = struct.unpack_from(">q", file, at + 4)
        _none_begins(file, at)
        if size < 0:
            _nothing_behind(file, at + 12)
            return
        if file[at : at + 4] == b"data":
            _declared(size, len(file) - at - 12)
        at += 12 + size


def _au(file: bytes) -> None:
    begin, size = struct.unpack_from(">II" if file[:4] == b".snd" else "<II", file.ljust(12, b"\0"), 4)
    _alone(file, file[:8])
    if size == 0xFFFFFFFF:
        _nothing_behind(file, begin)
    else:
        _declared(size, len(file) - begin)
        _ended(file, begin + size)


def _flac(file: bytes) -> None:
    """That no signature stands behind its blocks, which may hold the header of the WAV that it was made from."""
    at, last = 4, False
    while not last and at + 4 <= len(file):
        last = bool(file[at] & 128)
        at += 4 + int.from_bytes(file[at + 1 : at + 4], "big")
    _nothing_behind(file, at)


def _nothing_behind(file: bytes, at: int) -> None:
    """That no recording begins anywhere from there on: an MP3 by four frames, by chance once in some 1e12 bytes."""
    frames = (list(islice(_frames(file, sync.start()), 4)) for sync in _SYNC.finditer(file, at))
    if _START.search(file, at) or any(len(four) == 4 for four in frames):
        raise ValueError("another recording follows in it")


def _tag(file: bytes, at: int) -> int:
    """Bytes of the ID3 tag that begins there, 0 if none does."""
    head = file[at : at + 10]
    if head[:3] != b"ID3" or len(head) < 10:
        return 0
    return 10 + sum((byte & 127) << 7 * (3 - i) for i, byte in enumerate(head[6:])) + 10 * bool(head[5] & 16)


def _none_begins(file: bytes, at: int) -> None:
    """That no recording of any kind begins there, be it behind a tag: an MP3 by two frames."""
    at += _tag(file, at)
    size = _frame_size(file[at : at + 4].ljust(4, b"\0"))
    if _START.match(file, at) or (size and _frame_size(file[at + size : at + size + 4].ljust(4, b"\0"))):
        raise ValueError("another recording follows in it")


def _alone(file: bytes, start: bytes) -> None:
    """That what recordings of its kind start with is there once."""
    if file.find(start, len(start)) >= 0:
        raise ValueError("another recording follows in it")


def _ended(file: bytes, end: int) -> None:
    """That nothing stands where the decoder would take it for sound."""
    if len(file) > end + 8:
        raise ValueError(f"{len(file) - end} bytes follow its end")


def _ogg(file: bytes) -> None:
    """Pages of the one stream of sound: numbered, whole, and the last one marked as such."""
    at, sound, number, last, begun = 0, None, 0, False, False
    while at < len(file):
        segments = file[at + 27 : at + 27 + file[at + 26]] if at + 27 <= len(file) else b""
        begin = at + 27 + len(segments)
        end = begin + sum(segments)
        if file[at : at + 4] != b"OggS":
            if last:
                _none_begins(file, at)
                return  # a tag
            raise ValueError(f"it is damaged {len(file) - at} bytes before its end")
        if at + 27 > len(file) or len(segments) < file[at + 26] or end > len(file):
            raise ValueError("it is cut short within its last page")
        flags, _, serial, count, checksum = struct.unpack_from("<BqIII", file, at + 5)
        if _checksum(file[at : at + 22] + b"\0\0\0\0" + file[at + 26 : end]) != checksum:
            raise ValueError(f"it is damaged {len(file) - at} bytes before its end")
        if flags & 2:
            if begun:
                raise ValueError("another recording follows in it")
            if file[begin:end].startswith(SOUNDS):
                if sound is not None:
                    raise ValueError("it holds several streams of sound")
                sound, number = serial, count
        else:
            begun = True
        if serial == sound:
            if count != number:
                raise ValueError(f"its page {number} is missing")
            number, last = number + 1, bool(flags & 4)
        at = end
    if sound is not None and not last:
        raise ValueError("it is cut short: its last page is missing")


def _checksum(page: bytes) -> int:
    """CRC-32 as Ogg has it, with the highest bit first: that of zlib on mirrored bits."""
    found = zlib.crc32(page.translate(_REVERSED), 0xFFFFFFFF) ^ 0xFFFFFFFF
    return int.from_bytes(found.to_bytes(4, "little").translate(_REVERSED), "big")


def _mp3(file: bytes) -> None:
    """Frame by frame, as many as the first declares if it does, the last one whole."""
    frames, declared, end = 0, None, 0
    for frames, (begin, end) in enumerate(_frames(file), 1):
        found = _frame_count(file[begin:end])
        if found is not None and frames > 1:
            raise ValueError("another recording follows in it")
        declared = found if frames == 1 else declared
    if not frames:
        if len(file) > 1 and file[0] == 0xFF and file[1] >= 0xE0:
            raise ValueError("it begins with no frame of an MP3 that says how long it is")
        return
    rest = file[end:]
    if end > len(file) or (declared is not None and frames < declared):
        counted = "" if declared is None else f": {declared} frames are declared, {frames} are there"
        raise ValueError(f"it is cut short{counted or ' within its last frame'}")
    if declared is not None and frames > declared + 1:  # the frame that declares is counted by some
        raise ValueError("another recording follows in it")
    _none_begins(file, end)
    if rest[:3] == b"TAG":
        _none_begins(file, end + 128)
    if b"ID3" in rest or (declared is None and rest.strip(b"\0") and not rest.startswith(TAILS)):
        raise ValueError(f"it is damaged, or another recording follows, {len(rest)} bytes before its end")


def _frames(file: bytes, at: int = 0) -> Iterator[tuple[int, int]]:
    """Begin and end of each frame from there on; the last may end behind the file."""
    while at + 4 <= len(file) and (size := _frame_size(file[at : at + 4])):
        yield at, at + size
        at += size


def _frame_size(head: bytes) -> int:
    """Bytes of a frame with this header, 0 if it is none or does not say."""
    sync, rest = head[0] << 3 | head[1] >> 5, head[2]
    version, layer = head[1] >> 3 & 3, 4 - (head[1] >> 1 & 3)
    if sync != 0x7FF or version == 1 or layer == 4 or rest >> 4 in (0, 15) or rest >> 2 & 3 == 3:
        return 0
    halved = version != 3
    kilobits = _BITRATES[(2 if halved else 1, layer)][(rest >> 4) - 1]
    rate = (44100, 48000, 32000)[rest >> 2 & 3] // {3: 1, 2: 2, 0: 4}[version]
    padding = rest >> 1 & 1
    if layer == 1:
        return (12000 * kilobits // rate + padding) * 4
    return (72000 if halved and layer == 3 else 144000) * kilobits // rate + padding


def _frame_count(frame: bytes) -> int | None:
    """How many frames follow, by the header that encoders of variable rates put into the first."""
    if frame[36:40] == b"VBRI" and len(frame) >= 54:
        return int(struct.unpack_from(">I", frame, 50)[0])
    mono = len(frame) > 3 and frame[3] >> 6 == 3
    at = 4 + ((17 if mono else 32) if len(frame) > 1 and frame[1] >> 3 & 3 == 3 else (9 if mono else 17))
    if frame[at : at + 4] in (b"Xing", b"Info") and len(frame) >= at + 12 and frame[at + 7] & 1:
        return int(struct.unpack_from(">I", frame, at + 8)[0])
    return None
