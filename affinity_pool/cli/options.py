"""Options that several commands take, so that they read alike everywhere, and the parsing of lists in them."""

from __future__ import annotations

from collections.abc import Callable
from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal, TypeVar

import typer

if TYPE_CHECKING:
    from ..models.settings import Attention as Kind

Value = TypeVar("Value")

SHORTEST, LONGEST = 0.1, 3600.0  # seconds of a prompt that is measured
MOST_DIGITS = 6  # of a layer's number


def among(*words: str, listed: bool = False) -> Callable[[str], list[str]]:
    """What a shell completes where an option knows some words: one, or the last of those with commas between them."""

    def complete(incomplete: str) -> list[str]:
        before, comma, begun = incomplete.rpartition(",") if listed else ("", "", incomplete)
        return [before + comma + word for word in words if word.startswith(begun)]

    return complete


PRESETS = ("conservative", "aggressive", "aggressive-counted", "memory")
ATTENTIONS = ("plain", "proportional")
DTYPES = ("auto", "float32", "bfloat16", "float16")

Model = Annotated[str | None, typer.Option(help="Hub id or folder; the bundled tiny model if left out.")]
Data = Annotated[
    str | None,
    typer.Option(
        help="Manifest (JSON lines), or a datasets id as ID[@REVISION][:CONFIG[:SPLIT]]; the bundled recordings if "
        "left out."
    ),
]
Sites = Annotated[
    str | None,
    typer.Option(
        help="'conservative', 'aggressive', 'aggressive-counted', a JSON file, or sites with commas between them, "
        "LAYER:THRESHOLD:WINDOW or LAYER:keep=SHARE, as '0:0.9:1,7:keep=0.2'; for Whisper 'memory', or a site as "
        "'memory:0.96:1'. If left out the model's own affinity_pool.json, else 'aggressive', or 'memory'.",
        autocompletion=among(*PRESETS),
    ),
]
_WEIGHT = (
    "What a merged token weighs where it is attended to: 'plain', as much as any other, or 'proportional', as the "
    "tokens it stands for together"
)
Attention = Annotated[str, typer.Option(help=f"{_WEIGHT}.", autocompletion=among(*ATTENTIONS))]
SitesAttention = Annotated[
    str | None,
    typer.Option(
        "--attention",
        help=f"{_WEIGHT}; if left out what the sites' file says, else 'plain'.",
        autocompletion=among(*ATTENTIONS),
    ),
]
Attentions = Annotated[
    str | None,
    typer.Option(
        "--attention",
        help=f"{_WEIGHT}; 'plain,proportional' for both at the same sites; if left out what the sites' file says, else "
        "'plain'.",
        autocompletion=among(*ATTENTIONS, listed=True),
    ),
]
Task = Annotated[str | None, typer.Option(help="Only the recordings of this task; all if left out.")]
OneTask = Annotated[str, typer.Option(help="Only the recordings of this task.")]


def check_prompt(prompt: str | None) -> str | None:
    """A prompt that a tokenizer takes."""
    if prompt is not None and (not prompt.strip() or any("\ud800" <= letter <= "\udfff" for letter in prompt)):
        raise typer.BadParameter(f"must be text, and not empty, got {prompt!r}")
    return prompt


Prompt = Annotated[
    str | None, typer.Option(help="What to ask, instead of each recording's own task.", callback=check_prompt)
]
TaskPrompt = Annotated[
    str | None,
    typer.Option(
        "--prompt",
        "--task",
        help="What to ask; also picks the recordings of a manifest by their task.",
        callback=check_prompt,
    ),
]
AudioFiles = Annotated[
    list[Path] | None, typer.Option(help="Recording to use instead of the bundled ones; repeat for more.")
]
Texts = Annotated[list[str] | None, typer.Option(help="Reference text for the WER, one for each --audio.")]
Manifest = Annotated[Path | None, typer.Option(help="Manifest (JSON lines) to use instead of the bundled one.")]
Limit = Annotated[int | None, typer.Option(min=1, help="Only the first N recordings.")]
Batch = Annotated[int, typer.Option(min=1, help="Recordings that go through the model together.")]
Longest = Annotated[int, typer.Option(min=1, help="New tokens of an answer, at most; the paper's limit is 256.")]
Normaliser = Annotated[
    Literal["plain", "whisper"],
    typer.Option(
        help="What texts must agree in for WER, cWER, CER and cCER: 'plain', words but for case and punctuation, or "
        "'whisper', as OpenAI's evaluation of Whisper and most published figures."
    ),
]
Layers = Annotated[
    str | None, typer.Option(help="As '0,7,12-15'; every one of up to 12, else every fifth and the last, if left out.")
]
Alignments = Annotated[
    str | None,
    typer.Option(
        help="Where words begin and end: 'manifest', 'pocketsphinx', or a folder of Montreal Forced Aligner TextGrids; "
        "the manifest's times, else pocketsphinx for English, if left out.",
        autocompletion=among("manifest", "pocketsphinx"),
    ),
]
Out = Annotated[Path, typer.Option(help="Folder for all that is written; started again, a run goes on from there.")]
Seed = Annotated[int, typer.Option(help="Of whatever is random.")]
Device = Annotated[
    str | None,
    typer.Option(help="'cpu', 'cuda', ...; a GPU if there is one.", autocompletion=among("cpu", "cuda")),
]
Dtype = Annotated[
    str,
    typer.Option(
        help="'auto': float32 on the CPU, the checkpoint's own on a GPU.",
        autocompletion=among(*DTYPES),
    ),
]


def parse_list(text: str, kind: Callable[[str], Value], name: str) -> list[Value]:
    """The values of a list written with commas."""
    try:
        values = [kind(part.strip()) for part in text.split(",")]
    except ValueError as error:
        if type(error) is not ValueError:  # says more itself
            raise
        raise typer.BadParameter(
            f"{name} must be {kind.__name__}s with commas between them, got {shortened(text)!r}"
        ) from None
    if any(value in values[:at] for at, value in enumerate(values)):
        raise typer.BadParameter(f"{name} must be named once each, got {shortened(text)!r}")
    return values


def parse_attention(text: str) -> Kind:
    """One of those there are."""
    from ..models.settings import check_attention
    from ..study.errors import InputError

    try:
        return check_attention(text)
    except ValueError as error:
        raise InputError(str(error)) from error


def parse_seconds(text: str, name: str) -> list[float]:
    """Lengths of audio, as 1,2.5,10."""
    found = parse_list(text, float, name)
    if not all(SHORTEST <= seconds <= LONGEST for seconds in found):
        limits = f"{SHORTEST:g} to {LONGEST:g}"
        raise typer.BadParameter(f"{name} must be seconds from {limits}, got {shortened(text)!r}")
    return found


def layers_of(text: str | None, depth: int) -> list[int]:
    """Layers written as ``0,7,12-15``; None: every one of up to 12, else every fifth, as in the paper, and the last."""
    if text is None:
        return list(range(depth)) if depth <= 12 else sorted({*range(0, depth, 5), depth - 1})
    found: set[int] = set()
    for part in text.split(","):
        first, dash, last = part.strip().partition("-")
        if not first.isdecimal() or (dash and not last.isdecimal()):
            raise typer.BadParameter(f"layers must be as '0,7,12-15', got {shortened(text)!r}")
        for end in (first, last or first):
            if len(end) > MOST_DIGITS or int(end) >= depth:
                raise typer.BadParameter(f"this model's decoder has layers 0 to {depth - 1}, got {shortened(text)!r}")
        found |= set(range(int(first), int(last or first) + 1))
    if not found:
        raise typer.BadParameter(f"layers must rise, as in '12-15', got {shortened(text)!r}")
    return sorted(found)


def parse_rules(thresholds: str, windows: str) -> tuple[list[float], list[int]]:
    """The values of both lists, each of which a site can have."""
    from ..models import Site
    from ..study.errors import InputError

    cosines, widths = parse_list(thresholds, float, "thresholds"), parse_list(windows, int, "windows")
    try:
        for cosine, width in product(cosines, widths):
            Site(0, cosine, width)
    except (ValueError, OverflowError) as error:
        raise InputError(str(error)) from error
    return cosines, widths


def shortened(text: str) -> str:
    return text if len(text) <= 80 else text[:77] + "..."
