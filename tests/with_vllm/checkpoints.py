"""The model families that vLLM serves and the plug-in pools, each with a small random checkpoint and a judge.

``FAMILIES[name].write(folder)`` makes the checkpoint, ``.prompt(clips)`` a prompt for it, and ``.judge(folder)`` says
what the same checkpoint answers to any rows in place of a clip's audio tokens.
"""

from __future__ import annotations

import conformers
import omni
import phi4
import ultravox
import voxtral
import whisper_encoders
from family import Family

FAMILIES: dict[str, Family] = {
    **whisper_encoders.FAMILIES,
    **conformers.FAMILIES,
    **voxtral.FAMILIES,
    **omni.FAMILIES,
    **ultravox.FAMILIES,
    **phi4.FAMILIES,
}
