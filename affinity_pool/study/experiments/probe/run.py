"""The layer-wise probe: Affinity Pooling at one layer at a time, over thresholds and windows.

For every layer, threshold and window: the share of audio tokens left and the error of the answers (paper, "layer-wise
Affinity Pooling"). And a picture of one recording: the groups that each layer would make of it, a row a layer.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from torch import Tensor

from ....models import Site
from ....models.settings import Attention, Pooling
from ...data import Audio, Utterance
from ...errors import InputError
from ...groups import Picture, Row, Span, spans_after_sites
from ...runs.conditions import UNPOOLED, Condition
from ...sites import with_attention
from ...subject.lslm import Lslm


def conditions(
    layers: Sequence[int], thresholds: Sequence[float], windows: Sequence[int], attention: Attention = "plain"
) -> list[Condition]:
    """The unpooled model, then every combination."""
    return [
        UNPOOLED,
        *(
            Condition(
                with_attention(f"layer {layer}, threshold {threshold:g}, window {window}", attention),
                {"layer": layer, "threshold": threshold, "window": window},
                Pooling((Site(layer, threshold, window),), attention=attention),
            )
            for window in windows
            for threshold in thresholds
            for layer in layers
        ),
    ]


def groups_by_layer(
    lslm: Lslm, inputs: Mapping[str, Tensor], layers: Sequence[int], threshold: float, window: int
) -> list[list[Span]]:
    """The groups that pooling at each layer alone makes of the audio tokens of a batch of one."""
    positions = lslm.audio_positions(inputs)
    found = []
    for layer in layers:
        with lslm.patched(Pooling((Site(layer, threshold, window),))) as handle:
            lslm.generate(inputs, longest=1)
            assert handle.stats is not None
            found += spans_after_sites(handle.stats.sites, positions)
    return found


def check_picture(utterances: Sequence[Utterance], wanted: str | None) -> None:
    """Raise unless there is a recording of this id, or none is wanted in particular."""
    if wanted is not None and wanted not in {utterance.id for utterance in utterances}:
        raise InputError(f"no recording {wanted!r} among {len(utterances)}; the first is {utterances[0].id!r}")


def recording_to_draw(utterances: Sequence[Utterance], wanted: str | None, lslm: Lslm) -> tuple[Utterance, Audio]:
    """The recording to draw: the one named, else the longest with word times that the model hears whole.

    Raises:
        InputError: there is none.
    """
    check_picture(utterances, wanted)
    if wanted is not None:
        (utterance,) = (one for one in utterances if one.id == wanted)
        audio = utterance.load(lslm.rate)
        lslm.check(audio)
        return utterance, audio
    known = sorted((u for u in utterances if u.words), key=lambda u: -u.words[-1].end) or utterances
    for utterance in known:
        try:
            audio = utterance.load(lslm.rate)
            lslm.check(audio)
            return utterance, audio
        except InputError:
            continue
    raise InputError("no recording can be drawn")


def picture(
    lslm: Lslm,
    utterance: Utterance,
    audio: Audio,
    prompt: str | None,
    layers: Sequence[int],
    threshold: float,
    window: int,
) -> Picture:
    """A row a layer: the groups that pooling there alone would make."""
    inputs = lslm.inputs(audio, prompt or utterance.task)
    tokens = int(lslm.audio_positions(inputs).sum())
    groups = groups_by_layer(lslm, inputs, layers, threshold, window)
    return Picture(
        title=f"{utterance.id}, {audio.seconds:.1f} s: cosine ≥ {threshold:g}, window {window}",
        mel=lslm.spectrogram(inputs, audio),
        seconds=audio.seconds,
        frame_seconds=lslm.token_seconds,
        words=utterance.words,
        rows=[
            Row("audio tokens", "", [Span(i, i + 1) for i in range(tokens)]),
            *(Row(f"layer {layer}" if layer else "input", "", of) for layer, of in zip(layers, groups, strict=True)),
        ],
        independent=True,
    )
