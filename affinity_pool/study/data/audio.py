"""Recordings as the models want them: one channel of float32 at one rate, from anything soundfile reads."""

from __future__ import annotations

import io
import stat
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import numpy as np
import soundfile
import soxr

from .. import InputError
from .containers import check_whole, without_tag

SHORTEST = 0.1  # seconds; two frames of a 25 Hz encoder, below which there is nothing to pool
MOST = 2**27  # samples of all channels, half a gigabyte: 46 minutes of 48 kHz stereo, where models hear minutes
MOST_BYTES = 2**29  # of a file
RATES = (1000, 768_000)  # samples a second that sound is recorded at
LOUDEST = 16.0  # of samples whose full scale is 1: 24 dB above it; integers written as floats peak in the hundreds
CANCELLED = 1e-3  # what is left of channels that cancel out, as a share of their peak


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
        InputError: there is no such file, it cannot be decoded, is cut short, or two recordings in one; is shorter than
            0.1 s or takes more than half a gigabyte; is silent or cancels out, is not finite, or not at full scale 1.
    """
    name = name or (str(source) if isinstance(source, Path) else "the recording")
    try:
        # from memory, because of a path soundfile believes the suffix: ".raw" would need a rate
        content = without_tag(_content(source, name))
        check_whole(content)
        with soundfile.SoundFile(io.BytesIO(content)) as file:
            own_rate, declared = file.samplerate, file.frames
            _check_size(declared * file.channels, own_rate, name)
            channels = file.read(dtype="float32", always_2d=True)
    except FileNotFoundError as error:
        raise InputError(f"no such recording: {name}") from error
    except InputError:
        raise
    except (soundfile.SoundFileError, OSError, ValueError, MemoryError) as error:
        reason = error.error_string if isinstance(error, soundfile.LibsndfileError) else error
        other = (
            f"for others: ffmpeg -i {source.name} {source.stem}.wav" if isinstance(source, Path) else "others do not"
        )
        raise InputError(f"cannot read {name}: {reason} (WAV, FLAC, OGG and MP3 work; {other})") from error
    if len(channels) < declared:
        raise InputError(f"cannot read {name}: it is cut short: it declares {declared} samples and has {len(channels)}")
    if len(channels) < SHORTEST * own_rate:
        raise InputError(f"{name} has {len(channels) / own_rate:.2f} s of sound; at least {SHORTEST} s are needed")
    return Audio(_mono(channels, name), own_rate).at(rate)


def _content(source: Path | bytes | BinaryIO, name: str) -> bytes:
    """All bytes of a recording. Pipes and devices are no recordings: reading one may never end."""
    if isinstance(source, bytes):
        return source
    if not isinstance(source, Path):
        return source.read()
    about = source.stat()
    if not stat.S_ISREG(about.st_mode) and not stat.S_ISDIR(about.st_mode):
        raise InputError(f"{name} is no file")
    if about.st_size > MOST_BYTES:
        raise InputError(f"{name} has {about.st_size / 2**20:.0f} MB; a recording may have {MOST_BYTES // 2**20}")
    return source.read_bytes()


def _check_size(samples: int, rate: int, name: str) -> None:
    if not RATES[0] <= rate <= RATES[1]:
        raise InputError(f"{name} declares {rate} samples a second; sound has {RATES[0]} to {RATES[1]}")
    if samples > MOST:
        raise InputError(f"{name} has {samples} samples, {samples / rate / 3600:.1f} h; a recording may have {MOST}")


def _mono(channels: np.ndarray, name: str) -> np.ndarray:
    """The mean of the channels ``[samples, channels]``, if it is sound."""
    if not np.isfinite(channels).all():
        raise InputError(f"{name} has samples that are NaN or infinite")
    peak = float(np.abs(channels).max())
    if peak > LOUDEST:
        raise InputError(
            f"{name} peaks at {peak:g}, and full scale is 1: its samples seem to be integers that were written as "
            "floats. Divide them by their own full scale, such as 32768"
        )
    if peak == 0:
        raise InputError(f"{name} is silent: every sample is zero")
    if (channels == channels[0]).all():
        raise InputError(f"{name} is silent: every sample is {channels[0, 0]:g}")
    samples = channels.mean(1)
    if np.abs(samples).max() < CANCELLED * peak:
        raise InputError(
            f"the {channels.shape[1]} channels of {name} cancel each other out: one is the other, inverted. Keep one"
        )
    return samples
