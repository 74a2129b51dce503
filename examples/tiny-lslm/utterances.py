"""Utterances of one to eight words put together from the word cache, and the named sets of them.

Cut from single words, an utterance comes with what no forced aligner gives exactly: the time of every word, and what is
being said in each of the encoder's 40 ms frames.
"""

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from vocabulary import SPANISH, WORDS
from words import BUILD, RATE, SLOW_TEMPO, TRAIN_TEMPI

FRAME = RATE // 25  # samples of one audio token: Qwen2-Audio has 25 of them a second
LONGEST = 10 * RATE - 3 * FRAME  # the encoder sees ten seconds
FRAME_CLASSES = 1 + 3 * len(WORDS)  # silence, or the first, middle or last third of a word
TRANSLATABLE = np.array([WORDS.index(word) for word in SPANISH])
NATURAL = 1.0


@dataclass(frozen=True)
class Utterance:
    """`samples` at 16 kHz, `frames` the class of each 40 ms frame, `times` (word, start, end) in seconds."""

    samples: np.ndarray
    words: list[str]
    frames: np.ndarray
    times: list[tuple[str, float, float]]
    voice: str


class WordCache:
    """The words that words.py made, looked up by split, source, voice and tempo."""

    def __init__(self, folder: Path = BUILD) -> None:
        self._samples = np.load(folder / "words.npy", mmap_mode="r")
        facts = np.load(folder / "words.npz")
        self._offsets = facts["offsets"]
        self._takes: dict[tuple[str, str, float, int], list[int]] = {}
        rows = zip(facts["split"], facts["voice"], facts["tempo"], facts["word"], strict=True)
        for row, (split, voice, tempo, word) in enumerate(rows):
            key = (str(split), str(voice), round(float(tempo), 2), int(word))
            self._takes.setdefault(key, []).append(row)
        speakers = set(zip(*(facts[name].tolist() for name in ("split", "source", "voice")), strict=True))
        self.voices: dict[tuple[str, str], list[str]] = {}
        for split, source, voice in sorted(speakers):
            if all((split, voice, NATURAL, word) in self._takes for word in range(len(WORDS))):
                self.voices.setdefault((split, source), []).append(voice)

    def take(self, draw: np.random.Generator, split: str, voice: str, word: int, tempo: float) -> np.ndarray:
        """One recording of `word`, drawn among those of the voice; at the natural tempo where no copy was made."""
        takes = self._takes.get((split, voice, tempo, word)) or self._takes[split, voice, NATURAL, word]
        row = takes[draw.integers(len(takes))]
        return self._samples[self._offsets[row] : self._offsets[row + 1]].astype(np.float32) / 32768


def compose(
    cache: WordCache,
    draw: np.random.Generator,
    split: str,
    source: str,
    count: int,
    *,
    translatable: bool = False,
    slow: bool = False,
    tempo: bool = True,
) -> Utterance:
    """`count` random words (fewer if they outlast ten seconds) of one voice, with pauses, noise and a random gain.

    Training words come at many tempi; `tempo=False` keeps them as spoken, for the ablation.
    """
    train = split == "train"
    voices = cache.voices[split, source]
    voice = voices[draw.integers(len(voices))]
    words = draw.choice(TRANSLATABLE, count) if translatable else draw.integers(0, len(WORDS), count)
    if train and count > 1 and draw.random() < 0.12:  # the same word twice in a row is otherwise 1 in 63
        twin = draw.integers(1, count)
        words[twin] = words[twin - 1]
    tempi = _draw_tempi(draw, count) if train and tempo else [SLOW_TEMPO if slow else NATURAL] * count

    pieces = [np.zeros(int(draw.uniform(0.06, 0.3) * RATE), np.float32)]
    spans: list[tuple[int, int, int]] = []
    position = len(pieces[0])
    for index, word in enumerate(words):
        samples = cache.take(draw, split, voice, int(word), tempi[index])
        if train and draw.random() < 0.6:
            samples = _resample(samples, draw.uniform(0.95, 1.05))
        spans.append((int(word), position, position + len(samples)))
        pieces.append(samples * draw.uniform(0.7, 1.2))
        position += len(samples)
        if index < count - 1:
            seconds = _draw_pause(draw, longest=1.0 if train else 0.6)
            pause = int((min(seconds, 0.03) if position > 8 * RATE else seconds) * RATE)
            pieces.append(np.zeros(pause, np.float32))
            position += pause
    if position > LONGEST:
        return compose(cache, draw, split, source, max(1, count - 1), translatable=translatable, slow=slow, tempo=tempo)

    tail = int(min(draw.uniform(0.1, 0.3) * RATE, LONGEST + FRAME - position))
    tail += -(position + tail) % FRAME
    pieces.append(np.zeros(tail, np.float32))
    samples = _degrade(np.concatenate(pieces), draw, telephone=source != "allison")
    times = [(WORDS[word], start / RATE, end / RATE) for word, start, end in spans]
    frames = _frame_classes(spans, len(samples) // FRAME)
    return Utterance(samples, [WORDS[word] for word in words], frames, times, voice)


def _draw_tempi(draw: np.random.Generator, count: int) -> list[float]:
    """A tempo for every word (55 %), one for the utterance (25 %), or none at all."""
    tempi = [*TRAIN_TEMPI, NATURAL]
    kind = draw.random()
    if kind < 0.55:
        return [tempi[i] for i in draw.integers(0, len(tempi), count)]
    return [tempi[draw.integers(len(tempi))] if kind < 0.8 else NATURAL] * count


def _draw_pause(draw: np.random.Generator, longest: float) -> float:
    """Half of the pauses are as good as none, few are long."""
    kind = draw.random()
    if kind < 0.5:
        return draw.uniform(0, 0.08)
    if kind < 0.87:
        return draw.uniform(0.08, 0.25)
    return draw.uniform(0.25, 0.6) if kind < 0.97 or longest <= 0.6 else draw.uniform(0.6, longest)


def _resample(samples: np.ndarray, speed: float) -> np.ndarray:
    positions = np.arange(0, len(samples) - 1, speed)
    return np.interp(positions, np.arange(len(samples)), samples).astype(np.float32)


def _degrade(samples: np.ndarray, draw: np.random.Generator, telephone: bool) -> np.ndarray:
    """A telephone's band for one in three (Allison's recordings already have it), noise for three in four, a gain."""
    if telephone and draw.random() < 0.35:
        spectrum = np.fft.rfft(samples)
        hertz = np.fft.rfftfreq(len(samples), 1 / RATE)
        spectrum *= 1 / (1 + (hertz / draw.uniform(3400, 4200)) ** 16)
        samples = np.fft.irfft(spectrum, len(samples)).astype(np.float32)
    if draw.random() < 0.75:
        ratio_db = draw.uniform(12, 40)
        noise = draw.standard_normal(len(samples), dtype=np.float32)
        if draw.random() < 0.6:  # low-pass: rooms and cars rather than hiss
            noise = np.convolve(noise, np.array([1, 0.9, 0.7, 0.5, 0.3, 0.2], np.float32), "same")
        noise *= np.sqrt((samples**2).mean() / (noise**2).mean()) * 10 ** (-ratio_db / 20)
        samples = samples + noise
    return (samples * draw.uniform(0.2, 1.6)).astype(np.float32)


def _frame_classes(spans: list[tuple[int, int, int]], count: int) -> np.ndarray:
    """What is said at the centre of each frame."""
    classes = np.zeros(count, np.int64)
    centres = np.arange(count) * FRAME + FRAME // 2
    for word, start, end in spans:
        inside = (centres >= start) & (centres < end)
        thirds = (centres[inside] - start) * 3 // max(1, end - start)
        classes[inside] = 1 + 3 * word + np.clip(thirds, 0, 2)
    return classes


@dataclass(frozen=True)
class UtteranceSet:
    """A reproducible list of utterances: the same seed gives the same ones, whatever the count."""

    split: str
    source: str
    slow: bool
    seed: int

    def utterance(self, cache: WordCache, task: str, index: int) -> Utterance:
        """The `index`-th utterance for `task`: three to eight words."""
        draw = np.random.default_rng([self.seed, ["transcribe", "question", "spanish"].index(task_group(task)), index])
        count = int(draw.integers(3, 9))
        translatable = task == "spanish"
        return compose(cache, draw, self.split, self.source, count, translatable=translatable, slow=self.slow)


def task_group(task: str) -> str:
    """`first` and `last` are asked of the same utterances."""
    return "question" if task in ("first", "last") else task


# Thresholds and sites are chosen on dev sets only, reported on test sets only.
SETS = {
    f"{split}-{source}{'-slow' if slow else ''}": UtteranceSet(split, source, slow, seed)
    for seed, (split, source, slow) in enumerate(
        [(s, k, slow) for s in ("dev", "test") for k in ("espeak", "allison") for slow in (False, True)], start=100
    )
}
