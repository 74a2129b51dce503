"""Write a dev or test set as audio files and a manifest: `python export_set.py dev-espeak --count 256`

For everything that reads manifests rather than this folder's Python: build/sets/<name>/manifest.jsonl has one line for
each utterance and task, of the same form as recordings/manifest.jsonl.
"""

import argparse
import json
from pathlib import Path

import soundfile

from utterances import SETS, WordCache, task_group
from vocabulary import TASKS, answer
from words import BUILD, RATE

METRIC = {"transcribe": "wer", "question": "accuracy", "spanish": "bleu"}


def export(cache: WordCache, set_name: str, tasks: list[str], count: int, out: Path) -> Path:
    """`count` utterances for each task; `first` and `last` share theirs. Returns the manifest's path."""
    out.mkdir(parents=True, exist_ok=True)
    lines = []
    for task in tasks:
        for index in range(count):
            utterance = SETS[set_name].utterance(cache, task, index)
            audio = f"{task_group(task)}-{index:04d}.flac"
            soundfile.write(out / audio, utterance.samples.clip(-1, 1), RATE, subtype="PCM_16")
            line = {
                "audio": audio,
                "seconds": round(len(utterance.samples) / RATE, 3),
                "text": " ".join(answer(utterance.words, task)),
                "task": task,
                "metric": METRIC[task_group(task)],
                "language": "es" if task == "spanish" else "en",
                "word_times": "exact",
                "source": f"{set_name}, {utterance.voice}",
                "words": [[word, round(start, 3), round(end, 3)] for word, start, end in utterance.times],
            }
            lines.append(json.dumps(line))
    manifest = out / "manifest.jsonl"
    manifest.write_text("\n".join(lines) + "\n")
    return manifest


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("sets", nargs="+", choices=SETS)
    parser.add_argument("--task", dest="tasks", action="append", choices=TASKS, help="default: all")
    parser.add_argument("--count", type=int, default=256, help="utterances for each task")
    parser.add_argument("--out", type=Path, default=BUILD / "sets")
    arguments = parser.parse_args()
    cache = WordCache()
    for set_name in arguments.sets:
        print(export(cache, set_name, arguments.tasks or TASKS, arguments.count, arguments.out / set_name))


if __name__ == "__main__":
    main()
