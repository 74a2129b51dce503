"""Recordings of people with what they say, as folders that `affinity-pool eval --data FOLDER/manifest.jsonl` reads:
`python recordings.py ROOT OUT [SET ...]`

ROOT is where the packages that the README names were unpacked, OUT gets a folder for each set. Recordings are copied as
they are. A text says what is spoken, as far as its source does: notes in brackets and dots go, and where nothing is
left the recording is left out, by name. Recordings above 30 s are named too, for Whisper hears so much at once.
"""

import argparse
import gzip
import json
import re
import shutil
from collections.abc import Callable, Iterator
from itertools import chain
from pathlib import Path
from typing import NamedTuple

import soundfile

HEARD_AT_ONCE = 30.0  # seconds

NOTE = re.compile(r"\[[^]]*\]|\([^)]*\)|<[^>]*>|\.\.\.")  # "[this is a simple beep tone]", "at [@]", "Press ..."
SPOKEN = {"*": "star", "#": "pound"}  # keys of a telephone that are written as signs
MISSPELT = {
    "exclaimation": "exclamation",
    "fourtieth": "fortieth",
    "represenatives": "representatives",
    "umute": "unmute",
    "un-indentified": "unidentified",
    "witheld": "withheld",
}  # in the texts of Asterisk
TWO_CITIES = (  # Charles Dickens, A Tale of Two Cities (1859), how it begins
    "It was the best of times, it was the worst of times, it was the age of wisdom, it was the age of foolishness, it "
    "was the epoch of belief, it was the epoch of incredulity, it was the season of Light, it was the season of "
    "Darkness, it was the spring of hope, it was the winter of despair, we had everything before us, we had nothing "
    "before us, we were all going direct to Heaven, we were all going direct the other way – in short, the period was "
    "so far like the present period, that some of its noisiest authorities insisted on its being received, for good "
    "or for evil, in the superlative degree of comparison only."
)


class Recording(NamedTuple):
    """A file, its path in the set, and what is said; None: nobody has written it down, "": nothing."""

    file: Path
    name: str
    text: str | None


def said(text: str) -> str:
    """What is spoken of a prompt's text."""
    words = NOTE.sub(" ", text)
    for sign, word in SPOKEN.items():
        words = words.replace(sign, f" {word} ")
    for wrong, right in MISSPELT.items():
        words = re.sub(rf"\b{wrong}\b", right, words, flags=re.IGNORECASE)
    return " ".join(words.split())


def asterisk(root: Path) -> Iterator[Recording]:
    """Allison Smith's prompts for Asterisk, 8 kHz; their texts are in another package."""
    sounds = root / "usr/share/asterisk/sounds/en_US_f_Allison"
    with gzip.open(
        root / "usr/share/doc/asterisk-core-sounds-en/core-sounds-en.txt.gz", "rt", encoding="utf-8"
    ) as file:
        lines = [line.strip() for line in file if line.strip() and not line.startswith(";")]
    for name, _, text in (line.partition(":") for line in lines):
        if (sound := sounds / f"{name}.wav").exists():  # one text has no recording
            yield Recording(sound, f"{name}.wav", said(text))


def librivox(root: Path) -> Iterator[Recording]:
    """Sentences of a reading of Jane Austen's Sense and Sensibility."""
    folder = root / "usr/share/pocketsphinx/test/data/librivox"
    for line in (folder / "transcription").read_text(encoding="utf-8").splitlines():
        text, name = re.fullmatch(r"<s> (.*?) </s> \((.*)\)", line).groups()
        yield Recording(folder / f"{name}.wav", f"{name}.wav", text)


def moonshine(root: Path) -> Iterator[Recording]:
    """Actors reading; a text is known of the Dickens alone, from the book."""
    folder = root / "moonshine_voice/assets"
    for name, text in (
        ("two_cities", TWO_CITIES),
        ("beckett", None),
        ("endgame_nagg_nell", None),
        ("clone-test", None),
    ):
        yield Recording(folder / f"{name}.wav", f"{name}.wav", text)


FEWEST_WORDS = 4  # of a sentence; a word that stands alone is written in many ways, "for" as 4


def sentences(root: Path) -> Iterator[Recording]:
    """Of Asterisk's prompts and LibriVox those that are more than a few words."""
    for recording in chain(asterisk(root), librivox(root)):
        if len((recording.text or "").split()) >= FEWEST_WORDS:
            yield recording


SETS: dict[str, tuple[Callable[[Path], Iterator[Recording]], str]] = {
    "asterisk": (asterisk, "asterisk-core-sounds-en-wav"),
    "librivox": (librivox, "pocketsphinx-testdata"),
    "moonshine": (moonshine, "moonshine-voice"),
    "sentences": (sentences, "asterisk-core-sounds-en-wav, pocketsphinx-testdata"),
}


def make(name: str, root: Path, out: Path) -> Path:
    """Copy the recordings of a set and write its manifest, which is returned."""
    find, source = SETS[name]
    lines, left_out = [], []
    for recording in find(root):
        if recording.text == "":
            left_out.append(recording.name)
            continue
        seconds = soundfile.info(recording.file).duration
        if seconds > HEARD_AT_ONCE:
            print(f"{name}: {recording.name} has {seconds:.1f} s")
        target = out / name / recording.name
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(recording.file, target)
        line = {"audio": recording.name, "seconds": round(seconds, 3), "text": recording.text}
        lines.append(json.dumps({**line, "task": "transcribe", "language": "en", "source": source}))
    if left_out:
        print(f"{name}: nothing is said in {len(left_out)}, left out: {', '.join(left_out)}")
    manifest = out / name / "manifest.jsonl"
    manifest.write_text("\n".join(lines) + "\n", encoding="utf-8")
    print(f"{name}: {len(lines)} recordings in {manifest}")
    return manifest


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("root", type=Path, metavar="ROOT")
    parser.add_argument("out", type=Path, metavar="OUT")
    parser.add_argument("sets", nargs="*", metavar="SET", help=f"of {', '.join(SETS)}; default: all")
    arguments = parser.parse_args()
    if unknown := [name for name in arguments.sets if name not in SETS]:
        parser.error(f"SET must be one of {', '.join(SETS)}, got {unknown[0]!r}")
    for name in arguments.sets or SETS:
        try:
            make(name, arguments.root, arguments.out)
        except (OSError, soundfile.SoundFileError) as error:
            parser.error(f"cannot make the set {name} from {arguments.root}: {error}")


if __name__ == "__main__":
    main()
