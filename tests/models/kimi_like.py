"""A small model that is called as Kimi-Audio's code is, written anew for the tests, and a loop that decodes with it.

Two streams of ids, features added where a mask says so, a branch of layers for the audio stream, caches of tuples, and
rotary phases looked up in a table that is as long as the keys.
"""

from __future__ import annotations

import functools
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import Qwen2Config

HIDDEN, HEADS, LAYERS, BRANCH, MIMO, VOCABULARY, FEATURES = 32, 2, 5, 2, 2, 90, 12
BLANK, MEDIA_BEGIN, MEDIA_END = 1, 2, 3


class Table(nn.Module):
    """Cosines and sines of the first ``seq_len`` positions."""

    def forward(self, like: Tensor, seq_len: int) -> tuple[Tensor, Tensor]:
        size = like.shape[-1]
        angles = torch.arange(seq_len)[:, None] / 100.0 ** (torch.arange(0, size, 2) / size)
        angles = torch.cat([angles, angles], -1)
        return angles.cos().to(like), angles.sin().to(like)


def rotated(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    left, right = x.chunk(2, -1)
    return x * cos + torch.cat([-right, left], -1) * sin


class Attention(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.qkv = nn.Linear(HIDDEN, 3 * HIDDEN)
        self.rotary_emb = Table()

    def forward(self, hidden: Tensor, position_ids: Tensor, past_key_value: Any, padding_mask: Any) -> Any:
        assert padding_mask is None or padding_mask.shape[1] == hidden.shape[1]
        shape = (*hidden.shape[:2], HEADS, -1)
        query, key, value = (x.reshape(shape).transpose(1, 2) for x in self.qkv(hidden).chunk(3, -1))
        before = 0 if past_key_value is None else past_key_value[0].shape[2]
        cos, sin = self.rotary_emb(value, seq_len=before + hidden.shape[1])
        cos, sin = cos[position_ids][:, None], sin[position_ids][:, None]
        query, key = rotated(query, cos, sin), rotated(key, cos, sin)
        if past_key_value is not None:
            key, value = torch.cat([past_key_value[0], key], 2), torch.cat([past_key_value[1], value], 2)
        visible = torch.ones(hidden.shape[1], key.shape[2], dtype=torch.bool).tril(before)
        out = F.scaled_dot_product_attention(query, key, value, attn_mask=visible)
        return out.transpose(1, 2).flatten(2), (key, value)


class Layer(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.self_attn = Attention()
        self.mlp = nn.Sequential(nn.LayerNorm(HIDDEN), nn.Linear(HIDDEN, HIDDEN), nn.SiLU(), nn.Linear(HIDDEN, HIDDEN))

    def forward(
        self,
        hidden_states: Tensor,
        attention_mask: Any = None,
        position_ids: Any = None,
        past_key_value: Any = None,
        output_attentions: bool = False,
        use_cache: bool = False,
        padding_mask: Any = None,
    ) -> Any:
        seen, cache = self.self_attn(hidden_states, position_ids, past_key_value, padding_mask)
        hidden_states = hidden_states + seen
        hidden_states = hidden_states + self.mlp(hidden_states)
        return (hidden_states, cache) if use_cache else (hidden_states,)


class Decoder(nn.Module):
    def __init__(self, config: Qwen2Config) -> None:
        super().__init__()
        self.config = config
        self.embed_tokens = nn.Embedding(VOCABULARY, HIDDEN)
        self.vq_adaptor = nn.Linear(FEATURES, HIDDEN)
        self.layers = nn.ModuleList(Layer() for _ in range(LAYERS))
        self.mimo_layers = nn.ModuleList(Layer() for _ in range(MIMO))
        self.index = {layer: i for i, layer in enumerate((*self.layers, *self.mimo_layers))}

    @property
    def dtype(self) -> torch.dtype:
        return self.embed_tokens.weight.dtype

    def forward(
        self, input_ids: Tensor, text_input_ids: Any, features: Any, mask: Any, position_ids: Any, past: Any, use: bool
    ) -> Any:
        columns = input_ids.shape[1]
        if position_ids is None:
            before = 0 if past is None else past[0][0].shape[2]
            position_ids = torch.arange(before, before + columns)[None]
        hidden = self.embed_tokens(input_ids)
        if features is not None:
            (begin,) = (input_ids[0] == MEDIA_BEGIN).nonzero()[0].tolist()
            (end,) = (input_ids[0] == MEDIA_END).nonzero()[0].tolist()
            laid = torch.zeros(columns, FEATURES)
            laid[begin + 1 : end] = features[0].squeeze(0)[: end - begin - 1]
            added = (hidden + self.vq_adaptor(laid)[None]) * 2**0.5
            hidden = torch.where(mask[..., None], added, hidden)
        if text_input_ids is not None:
            hidden = hidden + self.embed_tokens(text_input_ids)
        caches: list[Any] = []
        branch = hidden
        for layer in self.layers:
            hidden = self.through(layer, hidden, position_ids, past, use, caches)
            if layer is self.layers[self.config.kimia_mimo_transformer_from_layer_index]:
                branch = hidden.clone()
        for layer in self.mimo_layers:
            branch = self.through(layer, branch, position_ids, past, use, caches)
        return hidden, branch, tuple(caches)

    def through(self, layer: Layer, hidden: Tensor, position_ids: Tensor, past: Any, use: bool, caches: Any) -> Tensor:
        out = layer(
            hidden,
            attention_mask=None,
            position_ids=position_ids,
            past_key_value=None if past is None else past[self.index[layer]],
            output_attentions=False,
            use_cache=use,
            padding_mask=None,
        )
        caches += out[1:]
        return out[0]


class Kimi(nn.Module):
    """Gives ``(audio_logits, text_logits, cache)``, or the same by name."""

    def __init__(self) -> None:
        super().__init__()
        self.config = Qwen2Config(
            vocab_size=VOCABULARY,
            hidden_size=HIDDEN,
            num_hidden_layers=LAYERS,
            num_attention_heads=HEADS,
            num_key_value_heads=HEADS,
            kimia_mimo_layers=MIMO,
            kimia_mimo_transformer_from_layer_index=BRANCH,
        )
        self.config.model_type = "kimi_audio"
        self.model = Decoder(self.config)
        self.lm_head = nn.Linear(HIDDEN, VOCABULARY, bias=False)
        self.mimo_output = nn.Linear(HIDDEN, VOCABULARY, bias=False)

    def forward(
        self,
        input_ids: Tensor | None = None,
        text_input_ids: Tensor | None = None,
        whisper_input_feature: list[Tensor] | None = None,
        is_continuous_mask: Tensor | None = None,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        past_key_values: Any = None,
        labels: Tensor | None = None,
        use_cache: bool = True,
        return_dict: bool = False,
    ) -> Any:
        text, audio, cache = self.model(
            input_ids,
            text_input_ids,
            whisper_input_feature,
            is_continuous_mask,
            position_ids,
            past_key_values,
            use_cache,
        )
        logits = (self.mimo_output(audio), self.lm_head(text))
        if return_dict:
            from transformers.modeling_outputs import CausalLMOutputWithPast

            return CausalLMOutputWithPast(logits=logits, past_key_values=cache or None)
        return (*logits, cache) if use_cache else logits


@functools.cache
@torch.inference_mode(False)
def kimi() -> Any:
    torch.manual_seed(0)
    model = Kimi().eval()
    with torch.no_grad():
        for weight in model.parameters():
            weight.normal_(std=0.25)
    return model


def conversation(clip: int = 24, seed: int = 0) -> dict[str, Any]:
    """Text, a clip whose neighbours are alike, text: both streams, the mask and the features of one conversation."""
    generator = torch.Generator().manual_seed(seed)
    codes = torch.randint(40, VOCABULARY, (clip // 4 + 1,), generator=generator).repeat_interleave(4)[:clip]
    features = torch.randn(1, clip // 4 + 1, FEATURES, generator=generator).repeat_interleave(4, 1)[:, :clip]
    features = features + 0.05 * torch.randn(features.shape, generator=generator)
    blank = torch.full((clip + 2,), BLANK)
    words = torch.randint(10, 40, (9,), generator=generator)
    audio = torch.cat([torch.full((4,), BLANK), torch.tensor([MEDIA_BEGIN]), codes, torch.tensor([MEDIA_END])])
    return {
        "input_ids": torch.cat([audio, torch.full((5,), BLANK)])[None],
        "text_input_ids": torch.cat([words[:4], blank, words[4:]])[None],
        "is_continuous_mask": F.pad(torch.ones(clip, dtype=torch.bool), (5, 6))[None],
        "whisper_input_feature": [features],
    }


def decode(model: Any, inputs: dict[str, Any], new: int = 8, cached: bool = True) -> Tensor:
    """Greedy in both streams, as Kimi-Audio's loop: ``[2, new]``, audio and text; uncached it starts over."""
    given = dict(inputs, position_ids=torch.arange(inputs["input_ids"].shape[1])[None])
    past, said = None, []
    for _ in range(new):
        audio, text, *cache = model(**given, past_key_values=past, use_cache=cached)
        next_ids = torch.stack([audio[0, -1].argmax(), text[0, -1].argmax()])
        said.append(next_ids)
        after = given["position_ids"][:, -1:] + 1
        if cached:
            (past,) = cache
            given = {"input_ids": next_ids[None, :1], "text_input_ids": next_ids[None, 1:], "position_ids": after}
        else:
            given["input_ids"] = torch.cat([given["input_ids"], next_ids[None, :1]], 1)
            given["text_input_ids"] = torch.cat([given["text_input_ids"], next_ids[None, 1:]], 1)
            given["is_continuous_mask"] = F.pad(given["is_continuous_mask"], (0, 1))
            given["position_ids"] = torch.cat([given["position_ids"], after], 1)
    return torch.stack(said, 1)
