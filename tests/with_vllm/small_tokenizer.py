"""A fast tokenizer of characters, small enough for random models, with the special tokens that a family knows."""

from __future__ import annotations

from typing import Any

import tokenizers
import transformers
from tokenizers import decoders, models, pre_tokenizers

TEXT = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789 .,:;!?'\"-_<>|()[]{}/\n"
VOCABULARY = 128
"""Rows of every embedding: the special tokens, then the characters, then some that no text has."""

PAD, UNKNOWN, END = "<|pad|>", "<|unknown|>", "<|end|>"


def character_tokenizer(*special: str, **named: Any) -> transformers.PreTrainedTokenizerFast:
    """Its first ids are padding, unknown, end and ``special``, in this order; ``named`` become attributes of it."""
    specials = [PAD, UNKNOWN, END, *special]
    vocabulary = {token: number for number, token in enumerate([*specials, *TEXT])}
    assert len(vocabulary) <= VOCABULARY
    tokenizer = tokenizers.Tokenizer(models.WordLevel(vocabulary, unk_token=UNKNOWN))
    tokenizer.pre_tokenizer = pre_tokenizers.Split("", "isolated")
    tokenizer.decoder = decoders.Fuse()
    tokenizer.add_special_tokens(specials)
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token=PAD, unk_token=UNKNOWN, eos_token=END, **named
    )
