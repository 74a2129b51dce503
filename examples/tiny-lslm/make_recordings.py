"""Re-create recordings/: human speech for the demo and the tests, 16 kHz FLAC and manifest.jsonl.

Two kinds, from two Debian packages (recordings/LICENSES.md):

- Allison Smith's prompts of Asterisk, word after word as she recorded them, with the pauses of her recordings: what
  the tiny model can answer. Where a word begins and ends is exact: the recordings are trimmed one by one.
- LibriVox sentences of pocketsphinx's tests: continuous speech, for looking at alignment and similarity. The tiny model
  does not know their words. Their word times are pocketsphinx's forced alignment.
"""

import json
from pathlib import Path

import numpy as np
import soundfile
from affinity_pool.study.data import Audio, Utterance
from affinity_pool.study.data.alignment import word_times

from vocabulary import answer
from words import ALLISON_FLOOR_DB, RATE, allison_file, sounding, sox

OUT = Path(__file__).parent / "recordings"
LIBRIVOX = Path("/usr/share/pocketsphinx/test/data/librivox")

# name: (task, seconds added to every pause, what she says)
PROMPTS = {
    "allison-room": ("transcribe", 0.0, "five nine two"),
    "allison-callsign": ("transcribe", 0.0, "november seven four kilo"),
    "allison-number": ("transcribe", 0.05, "six hundred thousand three hundred two"),
    "allison-keys": ("transcribe", 0.1, "star eight one dash zero four pound"),
    "allison-long": ("transcribe", 0.17, "whiskey november september quebec yankee victor wednesday uniform"),
    "allison-first-day": ("first", 0.0, "thursday monday friday saturday"),
    "allison-last-letter": ("last", 0.05, "alpha tango echo sierra bravo"),
    "allison-spanish-date": ("spanish", 0.0, "tuesday three october seven hundred"),
}
SENTENCES = {
    "librivox-0880": "he was not an ill disposed young man",
    "librivox-0890": "unless to be rather cold hearted and rather selfish is to be ill disposed",
    "librivox-0930": "he might even have been made amiable himself",
}


def say(text: str, extra_pause: float) -> tuple[np.ndarray, list[tuple[str, float, float]]]:
    """Her recordings of the words of `text` end to end, and the times of the words."""
    pieces: list[np.ndarray] = []
    times: list[tuple[str, float, float]] = []
    position = 0
    for word in text.split():
        recording = sox(allison_file(word))
        sound = sounding(recording, ALLISON_FLOOR_DB)
        assert sound is not None, f"no sound in {allison_file(word)}"
        times.append((word, (position + sound.start) / RATE, (position + sound.stop) / RATE))
        pieces += [recording, room_tone(extra_pause)]
        position += sum(len(piece) for piece in pieces[-2:])
    return np.concatenate(pieces[:-1]), times


def room_tone(seconds: float) -> np.ndarray:
    """The quiet before the word "one", forwards and backwards for as long as it takes."""
    recording = sox(allison_file("one"))
    sound = sounding(recording, ALLISON_FLOOR_DB)
    assert sound is not None
    quiet = recording[: sound.start]
    return np.resize(np.concatenate([quiet, quiet[::-1]]), int(seconds * RATE))


def align(samples: np.ndarray, text: str) -> list[tuple[str, float, float]]:
    """Word times by forced alignment, to pocketsphinx's 10 ms."""
    spoken = Utterance("", Path(), text, "transcribe", "en")
    return list(word_times(spoken, Audio(samples.astype(np.float32) / 32768, RATE), "pocketsphinx"))


def write(name: str, samples: np.ndarray, times: list[tuple[str, float, float]], **facts: str) -> str:
    """The audio file, and its line of the manifest."""
    soundfile.write(OUT / f"{name}.flac", samples.astype(np.int16), RATE, subtype="PCM_16")
    line = {
        "audio": f"{name}.flac",
        "seconds": round(len(samples) / RATE, 3),
        **facts,
        "words": [[word, round(start, 3), round(end, 3)] for word, start, end in times],
    }
    return json.dumps(line)


def main() -> None:
    OUT.mkdir(exist_ok=True)
    lines = []
    for name, (task, extra_pause, spoken) in PROMPTS.items():
        samples, times = say(spoken, extra_pause)
        facts = {
            "text": " ".join(answer(spoken.split(), task)),
            "task": task,
            "language": "es" if task == "spanish" else "en",
            "word_times": "exact",
            "source": "asterisk-core-sounds-en-wav",
        }
        lines.append(write(name, samples, times, **facts))
    for name, text in SENTENCES.items():
        file = LIBRIVOX / f"sense_and_sensibility_01_austen_64kb-{name[-4:]}.wav"
        samples = soundfile.read(file, dtype="int16")[0]
        facts = {
            "text": text,
            "task": "transcribe",
            "language": "en",
            "word_times": "pocketsphinx",
            "source": "pocketsphinx-testdata",
        }
        lines.append(write(name, samples, align(samples, text), **facts))
    (OUT / "manifest.jsonl").write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
