"""Playing a recording faster, its pitch kept: the baseline that saves tokens before there are any.

WSOLA (Verhelst and Roelands, "An overlap-add technique based on waveform similarity", ICASSP 1993): the output is a sum
of overlapping windowed pieces of the input, each taken near the place that the new speed asks for, just where it goes
on most like the piece before it.
"""

from __future__ import annotations

import math

import numpy as np

from ..data.audio import Audio

HOP = 0.016  # seconds; a piece is two of them, enough for two periods of a deep voice
SEARCH = 0.010  # seconds to either side; together the period of the lowest voices, 50 Hz
QUIET = 1e-10  # energy of a piece, full scale 1, below which nothing is like anything


def speed_up(audio: Audio, factor: float) -> Audio:
    """Play ``audio`` ``factor`` times as fast without raising its pitch.

    Args:
        factor: 1 or more. The ``n`` samples become ``round(n / factor)``; at 1 they are the same.

    Raises:
        ValueError: ``factor`` is below 1, not finite, or so large that no sample is left.

    Example:
        >>> import numpy as np
        >>> from affinity_pool.study.data import Audio
        >>> from affinity_pool.study.reductions import speed_up
        >>> speed_up(Audio(np.zeros(16000, dtype=np.float32), 16000), 1.25).seconds
        0.8
    """
    if not (math.isfinite(factor) and factor >= 1):
        raise ValueError(f"factor must be 1 or more (times as fast), got {factor}")
    samples = len(audio.samples)
    length = round(samples / factor)
    if length == samples:
        return audio
    if length == 0:
        raise ValueError(f"factor {factor} leaves nothing of {samples} samples")

    hop, search = max(1, round(HOP * audio.rate)), max(1, round(SEARCH * audio.rate))
    piece = 2 * hop
    window = 0.5 - 0.5 * np.cos(np.pi * np.arange(piece) / hop)  # Hann: shifted by a hop, the sum is 1
    source = np.pad(audio.samples.astype(np.float64), (hop + search, 2 * piece + search))
    energy = np.convolve(source**2, np.ones(piece), "valid")
    # Of places equally good, as in a steady tone or in silence, the one nearest to where the speed puts it.
    detour = 1e-6 * np.abs(np.arange(-search, search + 1))

    pieces = math.ceil(length / hop) + 1
    result = np.zeros((pieces + 1) * hop)
    at = search  # where the first piece starts in `source`: its middle is the first sample
    for number in range(pieces):
        if number:
            earliest = min(round(number * hop * factor), samples)
            goes_on = source[at + hop : at + hop + piece]
            likeness = np.correlate(source[earliest : earliest + 2 * search + piece], goes_on, "valid")
            norm = np.sqrt(np.maximum(energy[earliest : earliest + 2 * search + 1] * (goes_on @ goes_on), QUIET**2))
            at = earliest + int(np.argmax(likeness / norm - detour))
        result[number * hop : number * hop + piece] += window * source[at : at + piece]
    return Audio(result[hop : hop + length].astype(np.float32), audio.rate)
