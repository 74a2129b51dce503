"""The model under study: where its parts are, which of its tokens are audio, what it generates."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from typing import Any, cast

import torch
from torch import Tensor
from transformers import LogitsProcessorList

from ...models import Family, Handle, Layer, patch
from ...models.families import family_of
from ...models.settings import Pooling
from ..efficiency.flops import Flops, decoder_config, encoder_flops, knows_encoder, prefill_flops, tokens_per_layer
from ..errors import InputError

LONGEST_ANSWER = 256  # new tokens, the paper's limit: a decoding loop ends there
# The limits are the study's: a checkpoint's own sampling settings would make runs differ.
GREEDY: dict[str, Any] = {"do_sample": False, "num_beams": 1, "temperature": None, "top_p": None, "top_k": None}


@dataclass(frozen=True)
class Subject:
    """A model of a supported family."""

    model: Any

    @cached_property
    def family(self) -> Family:
        """Where the family keeps its parts."""
        return family_of(self.model)

    @cached_property
    def decoder(self) -> Any:
        """The module that holds the decoder's layers."""
        return self.family.decoder(self.model)

    @property
    def config(self) -> Any:
        return self.model.config

    @property
    def device(self) -> torch.device:
        return self.model.device

    @property
    def dtype(self) -> str:
        """As ``float32``."""
        return str(self.model.dtype).removeprefix("torch.")

    @property
    def layers(self) -> Sequence[torch.nn.Module]:
        """Of the decoder."""
        return self.decoder.layers

    @property
    def depth(self) -> int:
        """Decoder layers."""
        return len(self.layers)

    @property
    def pooled_depth(self) -> int | None:
        """Layers that sites may be at; None: the one site is the memory that a decoder attends to."""
        return self.depth

    @property
    def encoder(self) -> torch.nn.Module | None:
        """The module that turns features into audio embeddings; None where the family does not say."""
        return self.family.encoder(self.model)

    @property
    def token_seconds(self) -> float:
        """Seconds that one audio token stands for.

        Raises:
            InputError: the model's family does not say.
        """
        seconds = self.family.token_seconds(self.config)
        if seconds is None:
            raise InputError(f"how long an audio token of a {self.config.model_type} model is, is not known")
        return seconds

    def patched(self, pooling: Pooling) -> Handle:
        """Pool it, until the handle is let go."""
        return patch(self.model, pooling.sites, positions=pooling.positions, attention=pooling.attention)

    @property
    def audio_layers(self) -> Sequence[torch.nn.Module]:
        """Those that audio tokens pass."""
        return self.layers

    @property
    def _last_of_audio(self) -> torch.nn.Module:
        """What they leave at last."""
        return self.layers[-1]

    def audio_positions(self, inputs: Mapping[str, Tensor]) -> Tensor:
        """``[B, T]`` bool: which tokens are audio, of those that the first site is given."""
        return inputs["input_ids"] == self.family.audio_token_id(self.config)

    def heard_positions(self, inputs: Mapping[str, Tensor], seconds: Sequence[float]) -> Tensor:
        """``[B, T]`` bool: which of them are of the recordings, of so many seconds, and not of padding behind them."""
        return self.audio_positions(inputs)

    def text_tokens(self, inputs: Mapping[str, Tensor]) -> Tensor:
        """``[B]`` tokens of the prompt that are not audio."""
        return inputs["attention_mask"].sum(1) - self.audio_positions(inputs).sum(1)

    def prefill_flops(self, text: float, audio: float, after: Mapping[Layer, float] | None = None) -> Flops:
        """Operations of the decoder until the first token; ``after[layer]`` audio tokens are left from a site on.

        Raises:
            ValueError: they cannot be counted for this decoder.
        """
        depth = decoder_config(self.config).num_hidden_layers
        left = {cast(int, layer): text + kept for layer, kept in (after or {}).items()}
        return prefill_flops(self.config, tokens_per_layer(depth, text + audio, left))

    def columns(self, inputs: Mapping[str, Tensor]) -> tuple[int, int]:
        """What a batch is computed over, padding included, as ``text`` and ``audio`` of :meth:`prefill_flops`."""
        return 0, inputs["input_ids"].shape[1]

    def encoder_flops(self, inputs: Mapping[str, Tensor]) -> float | None:
        """Operations of the encoder, of the whole batch; None where they cannot be counted."""
        if not knows_encoder(self.config):
            return None
        features = self.features(inputs)
        return features.shape[0] * encoder_flops(self.config, features.shape[-1])

    def features(self, inputs: Mapping[str, Tensor]) -> Tensor:
        """What the encoder gets."""
        return inputs[self.family.features]

    def to_device(self, inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """On the model's device, floats in its dtype."""
        return {
            name: value.to(self.device, self.model.dtype) if value.is_floating_point() else value.to(self.device)
            for name, value in inputs.items()
        }

    @torch.inference_mode()
    def generate(
        self,
        inputs: Mapping[str, Tensor],
        longest: int = LONGEST_ANSWER,
        first: Callable[[Tensor], object] | None = None,
        exactly: bool = False,
        **settings: Any,
    ) -> Tensor:
        """``[B, new]`` ids of the greedy answer.

        Args:
            longest: new tokens at most.
            first: is shown the logits ``[B, V]`` of the first token.
            exactly: not fewer either: no token ends an answer, so that the work is the same whatever is said.
            settings: more of ``model.generate``'s.
        """
        shown = False

        def watch(ids: Tensor, scores: Tensor) -> Tensor:
            nonlocal shown
            if first is not None and not shown:
                shown = True
                first(scores)
            return scores

        watching = {} if first is None else {"logits_processor": LogitsProcessorList([watch])}
        tokens = self.model.generate(**inputs, **GREEDY, **self._limits(longest, exactly), **watching, **settings)
        return tokens[:, self._told(inputs) :]

    def _limits(self, longest: int, exactly: bool) -> dict[str, Any]:
        """What tells ``model.generate`` how many tokens :meth:`generate` is to make."""
        return {"max_new_tokens": longest, **({"eos_token_id": None} if exactly else {})}

    def _told(self, inputs: Mapping[str, Tensor]) -> int:
        """Tokens of the prompt that ``model.generate`` returns before the new ones."""
        return inputs["input_ids"].shape[1]

    @contextmanager
    def encoded_once(self) -> Iterator[None]:
        """Within, the encoder runs for the first forward, and its output serves all that follow with the same input.

        Conditions differ in what the decoder gets, and the encoder takes most of a small model's time.
        """
        encoder = self.encoder
        if encoder is None:
            yield
            return
        before, forward = vars(encoder).get("forward"), encoder.forward
        heard: list[Tensor] = []
        kept: Any = None

        def once(*args: Any, **kwargs: Any) -> Any:
            nonlocal heard, kept
            given = [one for one in (*args, *kwargs.values()) if isinstance(one, Tensor)]
            if kept is None:
                heard, kept = given, forward(*args, **kwargs)
                return kept
            same = len(heard) == len(given) and all(map(torch.equal, heard, given))
            return kept if same else forward(*args, **kwargs)

        encoder.forward = once
        try:
            yield
        finally:
            del encoder.forward
            if before is not None:  # accelerate's hooks live there too
                encoder.forward = before

    @contextmanager
    def hidden_states(self, measure: Callable[[Tensor], None]) -> Iterator[None]:
        """Show ``measure`` what enters each of :attr:`audio_layers`, in order, and what leaves the last one."""

        def entering(layer: torch.nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            measure(args[0])

        def leaving(layer: torch.nn.Module, args: tuple[Any, ...], output: Any) -> None:
            measure(output if isinstance(output, Tensor) else output[0])

        hooks = [layer.register_forward_pre_hook(entering, with_kwargs=True) for layer in self.audio_layers]
        hooks.append(self._last_of_audio.register_forward_hook(leaving))
        try:
            yield
        finally:
            for hook in hooks:
                hook.remove()
