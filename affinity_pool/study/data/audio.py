"""Recordings as the models want them: one channel of float32 at one rate, from any file soundfile reads."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

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


def load_audio(path: Path, rate: int) -> Audio:
    """Read a recording, average its channels and resample it to ``rate`` (soxr's high quality).

    Raises:
        InputError: there is no such file, it cannot be decoded, is shorter than 0.1 s, all zeros, or not finite.
    """
    if not path.is_file():
        raise InputError(f"no such recording: {path}")
    try:
        channels, own_rate = soundfile.read(path, dtype="float32", always_2d=True)
    except soundfile.LibsndfileError as error:
        raise InputError(
            f"cannot read {path}: {error.error_string} (WAV, FLAC, OGG and MP3 work; for others: "
            f"ffmpeg -i {path.name} {path.stem}.wav)"
        ) from error
    samples = channels.mean(1)
    if len(samples) < SHORTEST * own_rate:
        raise InputError(f"{path} has {len(samples) / own_rate:.2f} s of sound; at least {SHORTEST} s are needed")
    if not np.isfinite(samples).all():
        raise InputError(f"{path} has samples that are NaN or infinite")
    if not samples.any():
        raise InputError(f"{path} is silent: every sample is zero")
    return Audio(samples if own_rate == rate else soxr.resample(samples, own_rate, rate), rate)
