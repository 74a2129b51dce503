"""The colours of pages and figures, light and dark."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Palette:
    """Names are those of the stylesheet's variables; ``groups`` are six hues that the colour-blind tell apart."""

    paper: str
    card: str
    ink: str
    faint: str
    line: str
    bad: str
    alone: str
    sound: tuple[str, ...]
    groups: tuple[str, ...]

    def variables(self) -> dict[str, str]:
        """Colour by the name it has in the stylesheet; the spectrogram's are in pictures only."""
        hues = {f"hue-{i}": colour for i, colour in enumerate(self.groups)}
        names = ("paper", "card", "ink", "faint", "line", "bad", "alone")
        return {name: getattr(self, name) for name in names} | hues


LIGHT = Palette(
    paper="#ffffff",
    card="#f4f6f9",
    ink="#1c2430",
    faint="#5d6978",
    line="#dfe4ea",
    bad="#c02b4a",
    alone="#c6ccd4",
    sound=("#ffffff", "#dfe6ee", "#8fa3b8", "#34465a", "#111a26"),
    groups=("#2f7fc1", "#e8833a", "#3a9d73", "#c8527d", "#8067b7", "#c9a227"),
)
DARK = Palette(
    paper="#12161c",
    card="#1a2029",
    ink="#e6eaf0",
    faint="#98a3b1",
    line="#2a323d",
    bad="#ff8fa3",
    alone="#424c59",
    sound=("#12161c", "#1f2c3b", "#3f6788", "#9cc4dd", "#f2f8fc"),
    groups=("#58a6e8", "#f09a55", "#4fbf8e", "#e2729a", "#a28ee0", "#dcba4a"),
)
