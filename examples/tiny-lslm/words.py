"""Synthesise every word once, in many voices and tempi, and cache the samples: `python words.py` -> build/words.*

Utterances are put together from this cache, so training never waits for a synthesiser. Three sources:

- espeak-ng, 61 voice variants x 8 accents x random speed and pitch: the variety;
- flite, 4 voices: another synthesiser, less robotic (train only);
- Asterisk's prompts, spoken by Allison Smith: the human voice, one recording a word, varied with sox.

Splits never share an espeak-ng variant. The human recordings are 63 and cannot be split by voice: the splits share the
recordings and differ in tempo and pitch; the recording as spoken (tempo 1, pitch 0) is in the test split only.

A word is kept with its plain tempo and with pitch-preserving copies (sox, WSOLA): TRAIN_TEMPI for the training words,
SLOW_TEMPO for the slow test sets. Without such copies the language model learns to count a word's tokens, and merging
tokens then hurts it (threshold 0.95 at the input: WER 0.170 against 0.096 of dropping as many at equal strides).
"""

import argparse
import json
import os
import random
import subprocess
import tempfile
from collections.abc import Callable, Iterable
from multiprocessing import Pool
from pathlib import Path
from typing import NamedTuple

import numpy as np
import soundfile
import soxr

from vocabulary import DAYS, DIGITS, MONTHS, NATO, WORDS

BUILD = Path(__file__).parent / "build"
ALLISON = Path("/usr/share/asterisk/sounds/en_US_f_Allison")
RATE = 16000
TRAIN_TEMPI = (0.74, 0.87, 1.18, 1.38)  # resampling by 5 % on top makes 0.70 to 1.45 continuous
SLOW_TEMPO = 0.7
ALLISON_FLOOR_DB = -34  # her recordings breathe
LONGEST_SECONDS = 1.6  # a longer "word" is a synthesiser's mishap


def _names(text: str) -> list[str]:
    return text.split()


ACCENTS = ["en-us", "en-us", "en-us", "en-gb", "en-gb-x-rp", "en-gb-scotland", "en-029", "en-us-nyc"]
HELD_OUT_ACCENTS = ["en-us", "en-gb", "en-gb-scotland"]
ESPEAK_VARIANTS = {
    "train": _names(
        "Alex Alicia Andy Annie antonio aunty belinda boris david Denis Diogo ed edward edward2 gustave Henrique Hugo "
        "iven iven2 iven3 Jacky john marcelo Marco Mario max Michael michel miguel Mike Nguyen paul pedro quincy "
        "RicishayMax RicishayMax2 rob robert steph steph2 steph3 anika f1 f2 f3 grandpa klatt klatt2 klatt3 klatt4 "
        "m1 m2 m3 m4 m6 m7 norbert sandro shelby travis victor"
    ),
    "dev": _names("f5 m8 zac pablo linda Gene caleb grandma"),
    "test": _names("f4 m5 Andrea benjamin Lee kaukovalta Gene2 adam"),
}
FLITE_VOICES = ["slt", "rms", "awb", "kal16"]
FLITE_STRETCHES = [0.8, 0.95, 1.1]
# (tempo, pitch in cents, speed): speed moves both, as a tape does.
ALLISON_RENDERINGS = {
    "train": [
        (1.07, 0, 1.0),
        (1.15, 0, 1.0),
        (1.3, 50, 1.0),
        (1.4, -60, 1.0),
        (1.1, -100, 1.0),
        (1.2, 100, 1.0),
        (1.25, 0, 1.05),
        (1.1, 0, 0.95),
        (1.5, 0, 0.95),
        (1.3, 0, 1.1),
        (0.93, 0, 1.0),
        (1.03, 60, 1.0),
        (0.97, -50, 1.0),
    ],
    "dev": [(1.08, 20, 1.0), (1.25, -20, 1.0), (1.17, 0, 1.03), (1.35, 30, 0.98), (0.96, 0, 1.02)],
    "test": [(1.0, 0, 1.0), (1.05, 0, 1.0), (1.2, 0, 1.0), (1.35, -30, 1.0), (1.2, 40, 1.02), (1.3, 0, 0.97)],
}


class Rendering(NamedTuple):
    """One word to synthesise: `voice` names the speaker, `settings` is the source's own."""

    split: str
    source: str
    voice: str
    word: str
    settings: tuple[float, ...]


def plan(train_takes: int, held_out_takes: int, seed: int) -> list[Rendering]:
    """Every rendering of every word; a take is one espeak-ng voice with its own speed and pitch for each word."""
    draw = random.Random(seed)
    renderings: list[Rendering] = []
    for split, ways in ALLISON_RENDERINGS.items():
        renderings += [Rendering(split, "allison", "allison", word, way) for word in WORDS for way in ways]
    for voice in FLITE_VOICES:
        renderings += [Rendering("train", "flite", voice, word, (s,)) for word in WORDS for s in FLITE_STRETCHES]
    for split, variants in ESPEAK_VARIANTS.items():
        train = split == "train"
        for take in range(train_takes if train else held_out_takes):
            variant = variants[take % len(variants)]
            accents = ACCENTS if train else HELD_OUT_ACCENTS
            accent = draw.choice(accents) if train else accents[take // len(variants) % len(accents)]
            speeds, pitches = ((130, 230), (20, 80)) if train else ((135, 215), (30, 70))
            for word in WORDS:
                speed, pitch = draw.randint(*speeds), draw.randint(*pitches)
                renderings.append(Rendering(split, "espeak", f"{accent}+{variant}", word, (speed, pitch)))
    return renderings


def render(rendering: Rendering) -> np.ndarray | None:
    """The samples of one rendering, silence cut off and peak fixed, or None where the synthesiser failed."""
    speak = {"espeak": _espeak, "flite": _flite, "allison": _allison}[rendering.source]
    samples = trim(speak(rendering), floor_db=ALLISON_FLOOR_DB if rendering.source == "allison" else -38)
    if samples is None or len(samples) > LONGEST_SECONDS * RATE:
        return None
    return (samples / np.abs(samples).max() * 16000).astype(np.int16)


def _espeak(rendering: Rendering) -> np.ndarray:
    speed, pitch = rendering.settings
    spoken = "x-ray" if rendering.word == "xray" else rendering.word
    command = ["espeak-ng", "-v", rendering.voice, "-s", str(speed), "-p", str(pitch), "--stdout", spoken]
    wav = subprocess.run(command, capture_output=True, check=True).stdout
    body = wav[44:]  # the sizes in the header are not to be trusted, its length is
    samples = np.frombuffer(body[: len(body) // 2 * 2], np.int16).astype(np.float32)
    return soxr.resample(samples, 22050, RATE)


def _flite(rendering: Rendering) -> np.ndarray:
    spoken = "x-ray" if rendering.word == "xray" else rendering.word
    stretch = f"duration_stretch={rendering.settings[0]}"
    with tempfile.NamedTemporaryFile(suffix=".wav") as out:
        command = ["flite", "-voice", rendering.voice, "--setf", stretch, "-t", spoken, "-o", out.name]
        subprocess.run(command, check=True)
        samples, rate = soundfile.read(out.name, dtype="float32")
    return soxr.resample(samples, rate, RATE) * 32768


def _allison(rendering: Rendering) -> np.ndarray:
    tempo, pitch, speed = rendering.settings
    return sox(allison_file(rendering.word), "gain", "-3", "tempo", "-s", tempo, "pitch", pitch, "speed", speed)


def allison_file(word: str) -> Path:
    """The prompt in which Allison says just this word."""
    if word in DIGITS:
        return ALLISON / f"digits/{DIGITS.index(word)}.wav"
    if word in NATO:
        return ALLISON / f"phonetic/{word[0]}_p.wav"
    if word in DAYS:
        return ALLISON / f"digits/day-{DAYS.index(word)}.wav"
    if word in MONTHS:
        return ALLISON / f"digits/mon-{MONTHS.index(word)}.wav"
    folder = "letters" if word in ("dash", "dot", "slash", "plus") else "digits"
    return ALLISON / f"{folder}/{word}.wav"


def sox(source: Path, *effects: str | float) -> np.ndarray:
    """The samples of `source` at 16 kHz after the effects, in 16-bit units."""
    with tempfile.NamedTemporaryFile(suffix=".wav") as out:
        command = ["sox", str(source), "-r", str(RATE), "-b", "16", out.name, *map(str, effects)]
        subprocess.run(command, check=True, stderr=subprocess.DEVNULL)
        return soundfile.read(out.name, dtype="int16")[0].astype(np.float32)


def sounding(samples: np.ndarray, floor_db: float) -> slice | None:
    """Where the sound is, to 10 ms and with 10 ms around it; None when there is next to none."""
    frames = len(samples) // 160
    if frames < 5:
        return None
    energy = np.sqrt((samples[: frames * 160].reshape(frames, 160) ** 2).mean(1) + 1)
    loud = np.flatnonzero(20 * np.log10(energy / energy.max()) > floor_db)
    if len(loud) < 8:
        return None
    return slice(max(0, loud[0] * 160 - 160), min(len(samples), (loud[-1] + 1) * 160 + 160))


def trim(samples: np.ndarray, floor_db: float) -> np.ndarray | None:
    """Cut the silence before and after the sound."""
    where = sounding(samples, floor_db)
    return None if where is None else samples[where]


def stretch(words: list[np.ndarray], tempo: float) -> list[np.ndarray | None]:
    """Copies of `words` at another tempo, by one call of sox: they pass through it in a row, 0.15 s apart."""
    gap = int(0.15 * RATE)
    margin = int(gap / tempo * 0.4)
    starts = np.cumsum([0] + [len(word) + gap for word in words])
    with tempfile.NamedTemporaryFile(suffix=".wav") as row:
        soundfile.write(row.name, np.concatenate([np.append(word, np.zeros(gap, np.int16)) for word in words]), RATE)
        stretched = sox(Path(row.name), "tempo", "-s", tempo)
    copies: list[np.ndarray | None] = []
    for start, word in zip(starts, words, strict=False):
        piece = stretched[max(0, int(start / tempo) - margin) : int((start + len(word)) / tempo) + margin]
        cut = trim(piece, floor_db=-40)
        copies.append(None if cut is None else cut.astype(np.int16))
    return copies


def _stretch_job(job: tuple[list[int], list[np.ndarray], float]) -> list[tuple[int, float, np.ndarray]]:
    indices, words, tempo = job
    return [(i, tempo, copy) for i, copy in zip(indices, stretch(words, tempo), strict=True) if copy is not None]


def stretch_jobs(kept: list[tuple[Rendering, np.ndarray]]) -> Iterable[tuple[list[int], list[np.ndarray], float]]:
    """Rows of up to 150 words of one split for each tempo that the split is stretched to."""
    for split in ("train", "dev", "test"):
        indices = [i for i, (rendering, _) in enumerate(kept) if rendering.split == split]
        for tempo in TRAIN_TEMPI if split == "train" else (SLOW_TEMPO,):
            for start in range(0, len(indices), 150):
                row = indices[start : start + 150]
                yield row, [kept[i][1] for i in row], tempo


def save(rows: list[tuple[Rendering, float, np.ndarray]], folder: Path) -> None:
    """words.npy: the samples, end to end (memory-mapped by every rank); words.npz: one row of facts for each word."""
    offsets = np.concatenate([[0], np.cumsum([len(samples) for _, _, samples in rows])])
    np.save(folder / "words.npy", np.concatenate([samples for _, _, samples in rows]))
    np.savez(
        folder / "words.npz",
        offsets=offsets,
        split=np.array([r.split for r, _, _ in rows]),
        source=np.array([r.source for r, _, _ in rows]),
        voice=np.array([r.voice for r, _, _ in rows]),
        word=np.array([WORDS.index(r.word) for r, _, _ in rows], np.int16),
        tempo=np.array([tempo for _, tempo, _ in rows], np.float32),
    )


def _in_parallel(job: Callable, items: Iterable) -> Iterable:
    with Pool(os.cpu_count()) as pool:
        yield from pool.imap(job, items, chunksize=8)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--train-takes", type=int, default=168, help="espeak-ng takes of the whole vocabulary")
    parser.add_argument("--held-out-takes", type=int, default=24, help="the same, for each of dev and test")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=BUILD)
    arguments = parser.parse_args()

    arguments.out.mkdir(parents=True, exist_ok=True)
    renderings = plan(arguments.train_takes, arguments.held_out_takes, arguments.seed)
    rendered = zip(renderings, _in_parallel(render, renderings), strict=True)
    kept = [(rendering, samples) for rendering, samples in rendered if samples is not None]
    print(f"{len(kept)} of {len(renderings)} words rendered", flush=True)

    rows = [(rendering, 1.0, samples) for rendering, samples in kept]
    for copies in _in_parallel(_stretch_job, stretch_jobs(kept)):
        rows += [(kept[i][0], tempo, samples) for i, tempo, samples in copies]
    save(rows, arguments.out)
    minutes = sum(len(samples) for _, _, samples in rows) / RATE / 60
    print(json.dumps({"words": len(rows), "minutes": round(minutes), "folder": str(arguments.out)}))


if __name__ == "__main__":
    main()
