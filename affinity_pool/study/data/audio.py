"""Recordings as the models want them: one channel of float32 at one rate, from anything soundfile reads."""

from __future__ import annotations

import io
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import numpy as np
import soundfile
import soxr

from .. import InputError

SHORTEST = 0.1  # seconds; two frames of a 25 Hz encoder, below which there is nothing to pool


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


def load_audio(source: Path | bytes | BinaryIO, rate: int, name: str | None = None) -> Audio:
    """Read a recording, average its channels and resample it to ``rate``.

    Args:
        source: a file, the contents of one, or one that is open.
        rate: samples a second, whatever those of the recording are.
        name: what messages call it; None: its path.

    Raises:
        InputError: there is no such file, it cannot be decoded, is shorter than 0.1 s, all zeros, or not finite.
    """
    name = name or (str(source) if isinstance(source, Path) else "the recording")
    try:
        # from memory, because of a path soundfile believes the suffix: ".raw" would need a rate
        contents = source.read_bytes() if isinstance(source, Path) else source
        file = io.BytesIO(contents) if isinstance(contents, bytes) else contents
        channels, own_rate = soundfile.read(file, dtype="float32", always_2d=True)
    except FileNotFoundError as error:
        raise InputError(f"no such recording: {name}") from error
    except (soundfile.SoundFileError, OSError, ValueError, MemoryError) as error:
        reason = error.error_string if isinstance(error, soundfile.LibsndfileError) else error
        other = (
            f"for others: ffmpeg -i {source.name} {source.stem}.wav" if isinstance(source, Path) else "others do not"
        )
        raise InputError(f"cannot read {name}: {reason} (WAV, FLAC, OGG and MP3 work; {other})") from error
    samples = channels.mean(1)
    if len(samples) < SHORTEST * own_rate:
        raise InputError(f"{name} has {len(samples) / own_rate:.2f} s of sound; at least {SHORTEST} s are needed")
    if not np.isfinite(samples).all():
        raise InputError(f"{name} has samples that are NaN or infinite")
    if not samples.any():
        raise InputError(f"{name} is silent: every sample is zero")
    return Audio(samples, own_rate).at(rate)
