"""From seconds to audio tokens: which tokens hear a word, and how a recording is cut into units.

**What a token of Qwen2-Audio hears.** At 16 kHz, samples being ``s`` and the hop 160:

- mel frame ``f`` comes from a window of 400 samples around sample ``160 f`` (the first sample of the window has weight
  zero, and around the ends the recording is mirrored);
- conv1 (kernel 3, stride 1, padding 1): frame ``f`` hears the mel frames ``f - 1`` to ``f + 1``;
- conv2 (kernel 3, stride 2, padding 1): frame ``i`` hears ``2i - 1`` to ``2i + 1`` of conv1, that is mel frames
  ``2i - 2`` to ``2i + 2``;
- average pooling (2, stride 2): token ``j`` hears ``2j`` and ``2j + 1`` of conv2, mel frames ``4j - 2`` to ``4j + 4``.

So token ``j`` hears 85 ms, from ``0.04 j - 0.0325`` to ``0.04 j + 0.0525`` seconds, around ``0.04 j + 0.01``: 10 ms
before the middle of the 40 ms it stands for. Self-attention lets a token know of all others; what it is *of* is this.

Any encoder that starts like Whisper's and averages or stacks ``n`` frames of 20 ms is 10 ms early in the same way:
``T = 0.02 n`` seconds a token, centred on ``T (j + 1/2) - 0.01``. That is what is used here for every model. For the
other front ends it may be off, by less than a token.

**The rule.** A word is ``start <= t < end``, and ends at the latest where the next word starts. A token belongs to the
word that its centre lies in, else to a silence. So two words never share a token, and a word that lies between two
centres has none.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from itertools import pairwise

from ..errors import InputError
from ..groups import Span
from .manifest import Word

EARLY = 0.01  # seconds between a token's centre and the middle of the time it stands for
ROUNDING = 1e-6  # seconds by which a centre may be early and still be on a boundary
WORDS = "words"


def token_centre(token: int, token_seconds: float) -> float:
    """The second that a token is of."""
    return token_seconds * (token + 0.5) - EARLY


def token_spans(words: Sequence[Word], token_seconds: float, tokens: int) -> list[Span]:
    """The tokens of each word, in order and disjoint; a word without a token is left out.

    Args:
        words: in the order of their starts.
        token_seconds: that one token stands for, such as 0.04.
        tokens: of the recording; what lies behind them is cut off.
    """
    starts = [_first_token(word.start, token_seconds, tokens) for word in words]
    ends = [_first_token(word.end, token_seconds, tokens) for word in words]
    nexts = [*starts, tokens][1:]
    spans = [Span(start, min(end, later)) for start, end, later in zip(starts, ends, nexts, strict=True)]
    return [span for span in spans if span.start < span.end]


def units(words: Sequence[Word], token_seconds: float, tokens: int, kind: str = WORDS) -> list[Span]:
    """All tokens of a recording in consecutive units, none empty.

    Args:
        words: in the order of their starts; not looked at for spans of seconds.
        token_seconds: that one token stands for.
        tokens: of the recording.
        kind: "words", where each word is a unit and so is each silence before, between and after them; or a number of
            seconds, such as "0.4", which every unit is long, but for the last.

    Raises:
        InputError: ``kind`` is neither.
    """
    if kind == WORDS:
        return _between((edge for span in token_spans(words, token_seconds, tokens) for edge in span), tokens)
    try:
        seconds = float(kind)
    except ValueError:
        seconds = math.nan
    if not 0 < seconds < math.inf:
        raise InputError(f"units must be '{WORDS}' or a number of seconds, got {kind!r}")
    span_of = [math.floor((token_centre(token, token_seconds) + ROUNDING) / seconds) for token in range(tokens)]
    return _between((token for token in range(1, tokens) if span_of[token] != span_of[token - 1]), tokens)


def _first_token(second: float, token_seconds: float, tokens: int) -> int:
    """The first token whose centre is at ``second`` or later; ``tokens`` if none is."""
    later = (second + EARLY - ROUNDING) / token_seconds - 0.5
    return min(max(math.ceil(later), 0), tokens)


def _between(edges: Iterable[int], tokens: int) -> list[Span]:
    """The spans that ``edges`` cut 0 to ``tokens`` into."""
    return [Span(start, end) for start, end in pairwise(sorted({0, *edges, tokens}))]
