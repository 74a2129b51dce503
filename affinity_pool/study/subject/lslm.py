"""A model with its processor: loaded by name, asked about recordings."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from torch import Tensor
from transformers import AutoConfig, AutoProcessor, WhisperFeatureExtractor

from ...models import FAMILIES, MEMORY, Site
from ...models.settings import FILE as SITES_FILE
from ...models.settings import Attention, Pooling
from ..bundled import BUNDLED, bundled_model
from ..data import digests
from ..data.audio import Audio
from ..errors import InputError
from ..prompts import longest_clip, model_inputs, sampling_rate
from ..sites import check_sites, parse_sites
from .devices import usable_device
from .subject import Subject


@dataclass(frozen=True)
class Lslm(Subject):
    """A speech language model with its processor."""

    processor: Any
    name: str
    sites: str
    """Where to pool when nobody says: its folder if that has an ``affinity_pool.json``, else the paper's preset."""
    digest: str = ""
    """Of its files, :mod:`affinity_pool.study.data.digests`, or its commit on the Hub."""

    @property
    def rate(self) -> int:
        """Samples a second that the model wants."""
        return sampling_rate(self.processor)

    @property
    def longest(self) -> float:
        """Seconds that it hears whole, in one clip."""
        return longest_clip(self.processor, self.config.model_type) / self.rate

    def check(self, audio: Audio) -> None:
        """Refuse a recording that the model would hear cut, which would count as its error.

        Raises:
            InputError: it is too long.
        """
        if audio.seconds > self.longest + 1e-3:
            raise InputError(f"lasts {audio.seconds:.1f} s, and {self.name} hears {self.longest:g} s at once")

    def check_prompt(self, prompt: str) -> None:
        """Refuse a question that holds the model's own placeholder, for which there is no recording.

        Raises:
            InputError: it does.
        """
        placeholder = getattr(self.processor, "audio_token", None)
        if placeholder and placeholder in prompt:
            raise InputError(f"is asked {prompt!r}, which holds {placeholder}, the place of a recording in a prompt")

    def inputs(self, audio: Audio, prompt: str) -> dict[str, Tensor]:
        """The model's keyword arguments for one recording and one question: :meth:`batch` of one."""
        return self.batch([audio], [prompt])

    def batch(self, audio: Sequence[Audio], prompts: Sequence[str]) -> dict[str, Tensor]:
        """The model's keyword arguments for recordings and a question about each, padded on the left, on its device.

        Audio longer than :attr:`longest`, or at another rate than :attr:`rate`, is refused.
        """
        for prompt in prompts:
            self.check_prompt(prompt)
        self.check_clips(audio)
        clips = [clip.samples for clip in audio]
        return self.to_device(model_inputs(self.processor, self.config.model_type, clips, list(prompts)))

    def check_clips(self, audio: Sequence[Audio]) -> None:
        """Refuse what the model would hear cut, or at another speed."""
        for clip in audio:
            if clip.rate != self.rate or clip.seconds > self.longest + 1e-3:
                raise ValueError(
                    f"audio has {clip.seconds:.2f} s at {clip.rate} Hz; {self.name} takes up to {self.longest} s at "
                    f"{self.rate} Hz"
                )

    def pooling(self, sites: str | Path | Sequence[Site], attention: Attention | None = None) -> Pooling:
        """Where and how a patch given these pools, with nothing left open; a text is as :func:`parse_sites` has it.

        Raises:
            InputError: there are none such, or not in this model.
        """
        if isinstance(sites, (str, Path)):
            asked = parse_sites(str(sites), self.pooled_depth, attention).pooling
        else:
            asked = Pooling(tuple(sites), attention=attention)
        return self.resolved(asked)

    def resolved(self, asked: Pooling) -> Pooling:
        """The same with nothing left open; raises what :meth:`pooling` does."""
        try:
            with self.patched(asked) as handle:
                return Pooling(handle.sites, handle.positions, handle.attention).fixed()
        except ValueError as error:
            raise InputError(str(error)) from error

    def spectrogram(self, inputs: Mapping[str, Tensor], audio: Audio) -> np.ndarray:
        """``[bins, frames]`` log-mel spectrogram to show: what the encoder gets, if that is one, without padding."""
        extractor = WhisperFeatureExtractor(sampling_rate=self.rate)
        frames = round(audio.samples.shape[0] / extractor.hop_length)
        features = self.features(inputs)
        own = getattr(self.processor, "feature_extractor", None)
        if features.shape[0] == 1 and getattr(own, "feature_size", None) == features.shape[1]:
            return features[0, :, :frames].float().cpu().numpy()
        return extractor(audio.samples, sampling_rate=self.rate).input_features[0][:, :frames]

    def can_spell(self, text: str) -> bool:
        """:func:`can_spell` with its tokenizer."""
        return can_spell(self.processor.tokenizer, text)

    def texts(self, tokens: Tensor) -> list[str]:
        """``[B, new]`` ids of answers as texts."""
        return [text.strip() for text in self.processor.tokenizer.batch_decode(tokens, skip_special_tokens=True)]

    def answer(self, inputs: Mapping[str, Tensor]) -> str:
        """The greedy answer of a batch of one as text."""
        return self.texts(self.generate(inputs))[0]


def can_spell(tokenizer: Any, text: str) -> bool:
    """Whether the tokenizer knows every word: a model with a closed vocabulary cannot say the others."""
    unknown = tokenizer.unk_token_id
    return unknown is None or unknown not in tokenizer(text, add_special_tokens=False)["input_ids"]


DTYPES = ("auto", "float32", "bfloat16", "float16")


def load(
    name: str | None = None,
    device: str | None = None,
    dtype: str = "auto",
    check: Callable[[int | None], object] | None = None,
    only_layers: str | None = None,
) -> Lslm:
    """Load a model from a folder or the Hub; None: the tiny one that comes with the source.

    ``device`` None is the first GPU, else the CPU. ``dtype`` "auto" is float32 on the CPU and the checkpoint's own on
    a GPU. ``check`` is called, before the weights are read, with the number of decoder layers that audio tokens pass,
    None in an encoder-decoder model; what is about those layers alone says its name, ``only_layers``.

    Raises:
        InputError: an argument makes no sense here, or the model cannot be loaded.
    """
    device = usable_device(device)
    if dtype not in DTYPES:
        raise InputError(f"dtype must be one of {', '.join(DTYPES)}, got {dtype!r}")
    shown = name or BUNDLED.name
    if name is None:
        name = str(bundled_model("--model"))
    try:
        config = AutoConfig.from_pretrained(name)
    except Exception as error:  # damaged files end in errors of every kind
        raise InputError(f"cannot load the model {name}: {error}") from error
    if config.model_type not in FAMILIES:
        raise InputError(
            f"{name} is a {config.model_type} model; supported are {', '.join(sorted(FAMILIES))}. "
            "A family is a few lines in affinity_pool/models/families.py"
        )
    attends = FAMILIES[config.model_type].attends is not None
    if attends and config.model_type != "whisper":
        raise InputError(
            f"{name} is a {config.model_type} model: affinity_pool.patch pools it, but how it is asked is not known to "
            "the study, which of models whose decoder attends to an encoder takes Whisper alone"
        )
    if attends and only_layers is not None:
        raise InputError(
            f"{only_layers} is about the decoder layers that audio tokens pass, and in {name}, a {config.model_type} "
            "model, they pass none: its decoder attends to them. eval, demo, dynamics and cost take it"
        )
    if attends:
        transformers.utils.logging.set_verbosity_error()  # Whisper's generate() warns of its own defaults at every call
    if Path(name).is_dir():
        transformers.utils.logging.disable_progress_bar()  # a download deserves one, reading a folder does not
    depth = None if attends else config.get_text_config(decoder=True).num_hidden_layers
    sites = name if (Path(name) / SITES_FILE).is_file() else MEMORY if attends else "aggressive"
    check_sites(sites, depth)
    if check is not None:
        check(depth)
    names = getattr(config, "architectures", None) or ["none"]
    architecture = getattr(transformers, names[0], None)
    if architecture is None:
        raise InputError(f"{name} is to be loaded as {names[0]}, which transformers {transformers.__version__} lacks")
    try:
        processor = AutoProcessor.from_pretrained(name)
        model = architecture.from_pretrained(
            name, dtype=torch.float32 if dtype == "auto" and torch.device(device).type == "cpu" else dtype
        )
    except Exception as error:  # as above
        raise InputError(f"cannot load the model {name}: {error}") from error
    files = digests.of_folder(Path(name)) if Path(name).is_dir() else str(getattr(config, "_commit_hash", None))
    kind: type[Lslm] = Lslm
    if attends:
        from .encoder_decoder import Whisper  # which is made of what stands here

        kind = Whisper
    return kind(model.to(device).eval(), processor, shown, sites, files)
