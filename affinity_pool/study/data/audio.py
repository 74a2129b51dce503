"""Recordings as the models want them: one channel of float32 at one rate, from what soundfile reads."""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import cycle
from pathlib import Path
from typing import BinaryIO, NamedTuple

import numpy as np
import soundfile
import soxr

from ..errors import InputError
from .containers import whole_recording
from .files import contents

FORMATS = frozenset({"WAV", "WAVEX", "RF64", "W64", "AIFF", "CAF", "AU", "FLAC", "OGG", "MP3"})
"""Of libsndfile's those for which ``containers`` knows whether a recording is whole. The others have no names that
noise could not have too."""
SHORTEST = 0.1  # seconds; two frames of a 25 Hz encoder, below which there is nothing to pool
LONGEST = 3600  # seconds; models hear 30 at once
MOST = 100_000_000  # samples of a channel, 400 MB; with the file and the sound at 16 kHz it stays below 1 GB
RATES = (4000, 384_000)  # samples a second
LOUDEST = 16.0
"""Of full scale. Mixes in floats have peaks of 2 or 4 at most. Integers written as floats have 127 or more, unless they
are all but silent (an int16's 16 is 66 dB below its full scale)."""
QUIETEST = 1e-6  # of full scale, between the highest and the lowest sample; a bit of 20
CANCELLED = 0.14  # of the level that the average of channels has that have nothing in common; two correlate by -0.98
BLOCK = 1 << 18  # samples of all channels decoded at once


@dataclass(frozen=True)
class Audio:
    """One channel of sound."""

    samples: np.ndarray
    """``[samples]`` float32, full scale 1."""
    rate: int
    """Samples a second."""

    @property
    def seconds(self) -> float:
        return len(self.samples) / self.rate

    def first(self, seconds: float) -> Audio:
        """What a model that hears ``seconds`` at once will hear of it."""
        return Audio(self.samples[: round(seconds * self.rate)], self.rate)

    def at(self, rate: int) -> Audio:
        """The same sound at another rate, by soxr's high quality resampling."""
        return self if rate == self.rate else Audio(soxr.resample(self.samples, self.rate, rate), rate)


def joined(clips: Sequence[Audio], seconds: float) -> Audio:
    """Exactly so much sound: clips of one rate one after the other, from the first again after the last."""
    rate = clips[0].rate
    pieces: list[np.ndarray] = []
    missing = round(seconds * rate)
    for clip in cycle(clips):
        pieces.append(clip.samples[:missing])
        missing -= len(pieces[-1])
        if missing <= 0:
            break
    return Audio(np.concatenate(pieces), rate)


def load_audio(source: str | Path | bytes | BinaryIO, rate: int, name: str | None = None) -> Audio:
    """Read a recording, average its channels and resample it to ``rate``.

    Args:
        source: a file, the contents of one, or one that is open.
        rate: samples a second, whatever those of the recording are.
        name: what messages call it; None: its path.

    Raises:
        InputError: there is no such file, it cannot be decoded or is not whole, is shorter than 0.1 s or longer than an
            hour, silent, not finite, far louder than full scale, or its channels cancel out.

    Example:
        >>> from affinity_pool.study.data import load_audio
        >>> audio = load_audio("examples/tiny-lslm/recordings/allison-room.flac", 16000)
        >>> round(audio.seconds, 2), audio.samples.dtype
        (2.43, dtype('float32'))
    """
    if isinstance(source, str):
        source = Path(source)
    name = name or (str(source) if isinstance(source, Path) else "the recording")
    try:
        # from memory, because of a path soundfile believes the suffix: ".raw" would need a rate
        file = contents(source) if isinstance(source, Path) else source
        channels, samples, own_rate = _decode(whole_recording(file if isinstance(file, bytes) else file.read()))
    except FileNotFoundError as error:
        raise InputError(f"no such recording: {name}") from error
    except (soundfile.SoundFileError, OSError, ValueError, MemoryError) as error:
        reason = error.error_string if isinstance(error, soundfile.LibsndfileError) else error
        other = (
            f"for others: ffmpeg -i {source.name} {source.stem}.wav" if isinstance(source, Path) else "others do not"
        )
        raise InputError(f"cannot read {name}: {reason} (WAV, FLAC, OGG and MP3 work; {other})") from error
    if len(samples) < SHORTEST * own_rate:
        raise InputError(f"{name} has {len(samples) / own_rate:.2f} s of sound; at least {SHORTEST} s are needed")
    if not np.isfinite(channels.loudest):
        raise InputError(f"{name} has samples that are NaN or infinite")
    if channels.loudest > LOUDEST:
        raise InputError(
            f"{name} has samples up to {channels.loudest:.6g} times full scale, at most {LOUDEST:g} are allowed: "
            "integers written as floats, perhaps"
        )
    if channels.spread < QUIETEST:
        value = "zero" if not channels.loudest else f"about {channels.loudest:.3g} from zero"
        raise InputError(f"{name} is silent: every sample is {value}")
    level = np.linalg.norm(samples) / np.sqrt(len(samples))
    if level < CANCELLED * channels.unrelated or np.ptp(samples) < QUIETEST:
        raise InputError(f"{name} is silent once its channels are averaged: they cancel out; give one of them alone")
    return Audio(samples, own_rate).at(rate)


class Channels(NamedTuple):
    """What is known of all channels of a recording."""

    loudest: float
    """Of all samples, without their signs; NaN or infinite if one is."""
    spread: float
    """Between the highest and the lowest sample of the channel where they are furthest apart."""
    unrelated: float
    """The level (the mean square's root) that their average would have if they had nothing in common."""


class Memory(io.BytesIO):
    """A file in memory that stays where it is when a damaged header sends it in front of its beginning.

    What raises in a callback of libsndfile would be printed as a traceback.
    """

    def seek(self, offset: int, whence: int = io.SEEK_SET, /) -> int:
        try:
            return super().seek(offset, whence)
        except (ValueError, OverflowError):
            return self.tell()


def _decode(file: bytes) -> tuple[Channels, np.ndarray, int]:
    """What the channels have, their average, and the rate. At most one block is held with all channels."""
    count, square = 0, 0.0
    with soundfile.SoundFile(Memory(file)) as sound:
        if sound.format not in FORMATS:
            raise ValueError(f"it looks like {sound.format}")
        rate, declared = sound.samplerate, sound.frames
        if not RATES[0] <= rate <= RATES[1]:
            raise ValueError(f"{rate} samples a second; {RATES[0]} to {RATES[1]} are allowed")
        most = min(MOST, LONGEST * rate)
        if declared > most:
            raise ValueError(f"it is longer than {most / rate:g} s at {rate} samples a second")
        samples = np.empty(declared, np.float32)
        low, high = np.full(sound.channels, np.inf), np.full(sound.channels, -np.inf)
        while len(block := sound.read(max(BLOCK // sound.channels, 1), dtype="float32", always_2d=True)):
            with np.errstate(invalid="ignore", over="ignore"):
                low, high = np.minimum(low, block.min(0)), np.maximum(high, block.max(0))
                square += float(np.mean(np.square(block, dtype=np.float64), 1).sum())
                samples[count : count + len(block)] = block.mean(1)
            count += len(block)
    if count < declared:
        raise ValueError(f"it is damaged: {declared} samples are declared, {count} can be decoded")
    if not count:
        return Channels(0.0, 0.0, 0.0), samples, rate
    loudest = float(np.abs([low, high]).max())
    unrelated = float(np.sqrt(square / count / len(low)))
    with np.errstate(invalid="ignore", over="ignore"):
        spread = float((high - low).max())
    return Channels(loudest, spread, unrelated), samples, rate
