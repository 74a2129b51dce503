"""The demo: recordings go through a speech language model twice, as it is and with Dual Affinity Pooling.

For each recording: both answers and their word errors, the audio tokens left after each site, the operations of the
prefill (computed from the token counts, see ``flops``), the bytes of the KV cache after it (measured), and the time to
the first token (measured in interleaved pairs, see ``ttft``). Totals are over all recordings, and a picture shows the
groups of the longest one.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from statistics import median
from typing import Any, Protocol

from torch import Tensor

from ....models import PrefillStats, Site
from ....models.settings import Attention, Pooling, sites_json
from ....provenance import provenance
from ...data import Utterance, open_data
from ...efficiency import ttft
from ...efficiency.flops import Flops
from ...efficiency.ttft import Ttft
from ...errors import InputError
from ...groups import Picture, Row, Span, spans_after_sites
from ...metrics import Normaliser
from ...metrics.wer import WordErrors, word_errors
from ...runs.results import DemoSummary
from ...sites import rule_name, site_name
from ...subject.lslm import Lslm


@dataclass(frozen=True)
class Cost:
    """What prefills take without and with pooling."""

    text_tokens: int
    audio_tokens: tuple[int, ...]
    """As the encoder made them, then after each site."""
    flops: tuple[Flops, Flops]
    kv_bytes: tuple[int, int]
    ttft: Ttft
    heard_tokens: tuple[int, ...] = ()
    """Of an encoder-decoder model, which hears a window of a fixed length: those of the recording, without the padding
    behind it, and after the site the groups they are in. Empty where all are the recording's."""

    @property
    def flops_ratio(self) -> float:
        """Pooled over unpooled, the decoder alone."""
        return self.flops[1].decoder / self.flops[0].decoder


@dataclass(frozen=True)
class Clip:
    """One recording, both answers and both costs."""

    name: str
    seconds: float
    prompt: str
    reference: str | None
    unpooled: str
    pooled: str
    cost: Cost


@dataclass(frozen=True)
class Demo:
    """A finished run."""

    model: str
    device: str
    dtype: str
    pooling: Pooling
    runs: int
    clips: tuple[Clip, ...]
    picture: Picture
    notes: tuple[str, ...]
    """What the reader should know: recordings left out or cut."""
    normaliser: Normaliser = "plain"
    """Of answers and references before words are compared."""

    @property
    def cost(self) -> Cost:
        """Of all recordings together."""
        parts = [clip.cost for clip in self.clips]
        unpooled, pooled = zip(*(part.flops for part in parts), strict=True)
        return Cost(
            text_tokens=sum(part.text_tokens for part in parts),
            audio_tokens=tuple(map(sum, zip(*(part.audio_tokens for part in parts), strict=True))),
            flops=(sum(unpooled[1:], unpooled[0]), sum(pooled[1:], pooled[0])),
            kv_bytes=(sum(part.kv_bytes[0] for part in parts), sum(part.kv_bytes[1] for part in parts)),
            ttft=ttft.total([part.ttft for part in parts]),
            heard_tokens=tuple(map(sum, zip(*(part.heard_tokens for part in parts), strict=True))),
        )

    @property
    def errors(self) -> tuple[WordErrors, WordErrors] | None:
        """Word errors of both answers over the recordings that have a reference; None if none has."""
        known = [clip for clip in self.clips if clip.reference is not None]
        if not known:
            return None
        references = [str(clip.reference) for clip in known]
        return (
            word_errors(references, [clip.unpooled for clip in known], normaliser=self.normaliser),
            word_errors(references, [clip.pooled for clip in known], normaliser=self.normaliser),
        )


def find_recordings(
    audio: Sequence[Path], texts: Sequence[str], data: Path | None, task: str | None
) -> list[Utterance]:
    """The recordings that are asked for.

    Files in ``audio`` are all taken, with ``texts`` as references in the same order. Else the utterances of the
    manifest ``data`` (None: the bundled one) whose task is ``task`` (None: transcribe).

    Raises:
        InputError: there are none such, or the references do not fit.
    """
    if audio:
        if data is not None:
            raise InputError("give either --audio or --data, not both")
        if texts and len(texts) != len(audio):
            raise InputError(
                f"{len(audio)} recordings but {len(texts)} reference texts: give --text once for each --audio"
            )
        references: list[str | None] = [*texts] or [None] * len(audio)
        task = task or "transcribe"
        return [Utterance(path.stem, path, text, task) for path, text in zip(audio, references, strict=True)]
    if texts:
        raise InputError("--text is the reference of an --audio, which is missing")
    everything = open_data(data)
    wanted = [utterance for utterance in everything if utterance.task == (task or "transcribe")]
    if not wanted:
        tasks = ", ".join(sorted({utterance.task for utterance in everything}))
        name = data or "the bundled manifest"
        raise InputError(f"{name} has no recording for the task {task or 'transcribe'!r}, only for {tasks}")
    return wanted


class Speller(Protocol):
    """Whoever knows the words of a model."""

    @property
    def name(self) -> str: ...

    def can_spell(self, text: str) -> bool: ...


def select_recordings(
    lslm: Speller, audio: Sequence[Path], texts: Sequence[str], data: Path | None, task: str | None
) -> tuple[list[Utterance], list[str]]:
    """The recordings to run, see :func:`find_recordings`, and notes on those of a manifest left out.

    Of a manifest those are run whose reference the model's tokenizer can spell.
    """
    wanted = find_recordings(audio, texts, data, task)
    if audio:
        return wanted, []
    chosen = [utterance for utterance in wanted if utterance.text is None or lslm.can_spell(utterance.text)]
    if not chosen:
        name = data or "the bundled manifest"
        raise InputError(f"every text in {name} has words that are not in the vocabulary of {lslm.name}")
    left = [utterance.id for utterance in wanted if utterance not in chosen]
    return chosen, [f"left out, with words outside the model's vocabulary: {', '.join(left)}"] if left else []


def run(
    lslm: Lslm,
    utterances: Sequence[Utterance],
    sites: str | Path | Sequence[Site],
    *,
    attention: Attention | None = None,
    prompt: str | None = None,
    normaliser: Normaliser = "plain",
    runs: int = 11,
    notes: Sequence[str] = (),
    progress: Callable[[Sequence[Utterance]], Any] = iter,
) -> Demo:
    """Run every recording; ``prompt`` None asks each for its own task. ``progress`` wraps the iteration."""
    clips, pictures, cuts = [], [], []
    pooling = lslm.pooling(sites, attention)
    for utterance in progress(utterances):
        clip, picture, cut = _run_clip(lslm, utterance, prompt or utterance.task, pooling, runs)
        clips.append(clip)
        pictures.append(picture)
        cuts += cut
    return Demo(
        model=lslm.name,
        device=str(lslm.device),
        dtype=lslm.dtype,
        pooling=pooling,
        runs=runs,
        clips=tuple(clips),
        picture=max(pictures, key=lambda picture: picture.seconds),
        notes=(*notes, *cuts),
        normaliser=normaliser,
    )


def _run_clip(
    lslm: Lslm, utterance: Utterance, prompt: str, pooling: Pooling, runs: int
) -> tuple[Clip, Picture, list[str]]:
    audio, cut = utterance.load(lslm.rate), []
    if audio.seconds > lslm.longest:
        cut = [f"{utterance.id} has {audio.seconds:.1f} s; the model hears the first {lslm.longest:g} s"]
        audio = audio.first(lslm.longest)
    inputs = lslm.inputs(audio, prompt)

    def first_token() -> float:
        return ttft.timed(lambda: lslm.generate(inputs, longest=1), lslm.device)

    def first_token_pooled() -> float:
        with lslm.patched(pooling):
            return first_token()

    said = lslm.answer(inputs)
    with lslm.patched(pooling) as handle:
        said_pooled = lslm.answer(inputs)
        stats = handle.stats
    assert stats is not None  # the answer began with a prefill
    frame = lslm.token_seconds
    heard = int(lslm.heard_positions(inputs, [audio.seconds]).sum())
    spans = [
        [Span(span.start, min(span.end, heard)) for span in groups if span.start < heard]
        for groups in spans_after_sites(stats.sites, lslm.audio_positions(inputs))
    ]
    own = (heard, *map(len, spans)) if lslm.pooled_depth is None else ()
    cost = _cost(lslm, inputs, stats, own, ttft.interleave(first_token, first_token_pooled, runs))
    picture = Picture(
        title=f"{utterance.id}, {audio.seconds:.1f} s",
        mel=lslm.spectrogram(inputs, audio),
        seconds=audio.seconds,
        frame_seconds=frame,
        words=utterance.words,
        rows=[
            Row("audio tokens", f"{1 / frame:g} a second", [Span(i, i + 1) for i in range(heard)]),
            *(Row(site_name(site), rule_name(site), groups) for site, groups in zip(pooling.sites, spans, strict=True)),
        ],
    )
    return Clip(utterance.id, audio.seconds, prompt, utterance.text, said, said_pooled, cost), picture, cut


def _cost(lslm: Lslm, inputs: Mapping[str, Tensor], stats: PrefillStats, heard: tuple[int, ...], times: Ttft) -> Cost:
    text, audio = int(lslm.text_tokens(inputs)), int(lslm.audio_positions(inputs).sum())
    encoder = lslm.encoder_flops(inputs) or 0.0
    unpooled = lslm.prefill_flops(text, audio)
    pooled = lslm.prefill_flops(text, audio, {site.layer: site.audio_after[0] for site in stats.sites})
    return Cost(
        text_tokens=text,
        audio_tokens=(audio, *(site.audio_after[0] for site in stats.sites)),
        flops=(replace(unpooled, encoder=encoder), replace(pooled, encoder=encoder)),
        kv_bytes=(stats.kv_bytes + stats.kv_bytes_saved, stats.kv_bytes),
        ttft=times,
        heard_tokens=heard,
    )


def summarise(demo: Demo) -> DemoSummary:
    """Everything measured and what it was measured on and with."""
    errors = demo.errors
    return {
        "command": "demo",
        "config": {
            "model": demo.model,
            "device": demo.device,
            "dtype": demo.dtype,
            "sites": sites_json(demo.pooling.sites),
            "positions": demo.pooling.positions,
            "attention": demo.pooling.attention,
            "runs": demo.runs,
            "normaliser": demo.normaliser,
        },
        "provenance": provenance(demo.device),
        "notes": list(demo.notes),
        "wer": None if errors is None else {"unpooled": errors[0].rate, "pooled": errors[1].rate},
        "word_errors": None if errors is None else {"unpooled": asdict(errors[0]), "pooled": asdict(errors[1])},
        "total": _cost_json(demo.cost),
        "clips": [
            {
                "name": clip.name,
                "seconds": round(clip.seconds, 3),
                "prompt": clip.prompt,
                "reference": clip.reference,
                "unpooled": clip.unpooled,
                "pooled": clip.pooled,
                **_cost_json(clip.cost),
            }
            for clip in demo.clips
        ],
    }


def _cost_json(cost: Cost) -> dict[str, Any]:
    low, high = cost.ttft.interval
    return {
        "text_tokens": cost.text_tokens,
        "audio_tokens": list(cost.audio_tokens),
        **({"heard_tokens": list(cost.heard_tokens)} if cost.heard_tokens else {}),
        "prefill_flops": {"unpooled": asdict(cost.flops[0]), "pooled": asdict(cost.flops[1])},
        "relative_decoder_flops": cost.flops_ratio,
        "kv_bytes": {"unpooled": cost.kv_bytes[0], "pooled": cost.kv_bytes[1]},
        "ttft_seconds": {
            "unpooled": median(cost.ttft.unpooled),
            "pooled": median(cost.ttft.pooled),
            "ratio": cost.ttft.ratio,
            "interval_95": [low, high],
            "pairs": [list(pair) for pair in zip(cost.ttft.unpooled, cost.ttft.pooled, strict=True)],
        },
    }
