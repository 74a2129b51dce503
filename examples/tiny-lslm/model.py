"""The tiny speech LLM: `Qwen2AudioForConditionalGeneration`, 4.3 million parameters, and the batches it is trained on.

Nothing of the architecture is this project's: only the sizes differ from Qwen2-Audio's, and the checkpoint is loaded by
`from_pretrained`. What is here is the way through it in training, which skips two costs of the official forward: the
encoder runs over the longest utterance of a batch and not over ten seconds, and no logits are made where no answer is.
"""

import functools
import math
from collections.abc import Sequence
from pathlib import Path

import torch
import torch.nn.functional as F
from transformers import (
    AttentionInterface,
    AttentionMaskInterface,
    PreTrainedTokenizerFast,
    Qwen2AudioConfig,
    Qwen2AudioEncoderConfig,
    Qwen2AudioForConditionalGeneration,
    Qwen2AudioProcessor,
    Qwen2Config,
    WhisperFeatureExtractor,
)
from transformers.audio_utils import mel_filter_bank
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

from vocabulary import CHAT_TEMPLATE, TOKEN_ID, TOKENS, build_tokenizer, prompt_ids

WIDTH = 192
MELS = 80
SECONDS = 10  # every input is padded to this
IGNORE = -100  # cross_entropy's ignore_index


def build_model() -> Qwen2AudioForConditionalGeneration:
    """Encoder: 4 layers of width 192. Decoder: 8 layers of width 192, 6 heads, 2 of them for keys and values."""
    encoder = Qwen2AudioEncoderConfig(
        num_mel_bins=MELS,
        encoder_layers=4,
        encoder_attention_heads=6,
        encoder_ffn_dim=512,
        d_model=WIDTH,
        max_source_positions=50 * SECONDS,
        initializer_range=0.05,
    )
    decoder = Qwen2Config(
        vocab_size=len(TOKENS),
        hidden_size=WIDTH,
        intermediate_size=384,
        num_hidden_layers=8,
        num_attention_heads=6,
        num_key_value_heads=2,
        max_position_embeddings=1024,
        initializer_range=0.05,
        tie_word_embeddings=False,
        rope_theta=10000.0,
        bos_token_id=None,
        eos_token_id=TOKEN_ID["<|im_end|>"],
        pad_token_id=TOKEN_ID["<|pad|>"],
    )
    model = Qwen2AudioForConditionalGeneration(
        Qwen2AudioConfig(
            audio_config=encoder,
            text_config=decoder,
            audio_token_index=TOKEN_ID["<|AUDIO|>"],
            pad_token_id=TOKEN_ID["<|pad|>"],
            eos_token_id=TOKEN_ID["<|im_end|>"],
        )
    )
    model.model.audio_tower.embed_positions.weight.data.copy_(_sinusoids(50 * SECONDS, WIDTH))
    return model


def train_in_bfloat16(model: Qwen2AudioForConditionalGeneration) -> None:
    """Keep attention in float32 under autocast.

    One core multiplies matrices at 200 GFLOP/s in bfloat16 and 75 in float32, but torch's attention is slower in
    bfloat16, twice so backward: a step of 18 utterances takes 1.91 s in float32, 1.65 s in bfloat16, 1.47 s like this.
    """

    def attend(module, query, key, value, mask, **settings):  # type: ignore[no-untyped-def]
        with torch.autocast("cpu", enabled=False):
            return sdpa_attention_forward(module, query.float(), key.float(), value.float(), mask, **settings)

    AttentionInterface.register("sdpa_float32", attend)
    AttentionMaskInterface.register("sdpa_float32", sdpa_mask)
    model.set_attn_implementation("sdpa_float32")


def build_processor(tokenizer: PreTrainedTokenizerFast) -> Qwen2AudioProcessor:
    extractor = WhisperFeatureExtractor(feature_size=MELS, sampling_rate=16000, chunk_length=SECONDS)
    return Qwen2AudioProcessor(feature_extractor=extractor, tokenizer=tokenizer, chat_template=CHAT_TEMPLATE)


def save_checkpoint(model: Qwen2AudioForConditionalGeneration, out: Path) -> None:
    """The folder that from_pretrained reads. The weights are turned to bfloat16 in place."""
    model.to(torch.bfloat16).save_pretrained(out)
    build_processor(build_tokenizer()).save_pretrained(out)  # one that has been used would save its last padding too


def _sinusoids(count: int, width: int) -> torch.Tensor:
    """Whisper's fixed positions."""
    half = width // 2
    rates = torch.exp(-math.log(10000) / (half - 1) * torch.arange(half))
    angles = torch.arange(count)[:, None] * rates
    return torch.cat([angles.sin(), angles.cos()], dim=1)


@functools.cache
def _spectrum_constants() -> tuple[torch.Tensor, torch.Tensor]:
    filters = mel_filter_bank(201, MELS, 0.0, 8000.0, 16000, norm="slaney", mel_scale="slaney")
    return torch.tensor(filters, dtype=torch.float32).T.contiguous(), torch.hann_window(400)


def log_mel(waves: Sequence[torch.Tensor]) -> torch.Tensor:
    """What WhisperFeatureExtractor computes, over the longest of `waves`: (batch, mels, 10 ms frames)."""
    filters, window = _spectrum_constants()
    padded = torch.nn.utils.rnn.pad_sequence(list(waves), batch_first=True)
    power = torch.stft(padded, 400, 160, window=window, return_complex=True)[..., :-1].abs() ** 2
    mel = torch.clamp(filters @ power, min=1e-10).log10()
    mel = torch.maximum(mel, mel.amax((1, 2), keepdim=True) - 8)
    return (mel + 4) / 4


def encode(model: Qwen2AudioForConditionalGeneration, mel: torch.Tensor, counts: torch.Tensor) -> torch.Tensor:
    """Audio tokens (batch, longest, width): the official encoder and projector without the padding to ten seconds.

    `counts` are the audio tokens of each item. Padding is masked as a key, so an item's result does not depend on it.
    """
    tower = model.model.audio_tower
    hidden = F.gelu(tower.conv1(mel))
    hidden = F.gelu(tower.conv2(hidden)).transpose(1, 2)
    length = hidden.shape[1]
    hidden = hidden + tower.embed_positions.weight[:length]
    inside = torch.arange(length) < 2 * counts[:, None]
    mask = torch.zeros(len(mel), 1, length, length).masked_fill_(~inside[:, None, None], -math.inf)
    for layer in tower.layers:
        hidden = layer(hidden, None if inside.all() else mask)
    hidden = tower.avg_pooler(hidden.transpose(1, 2)).transpose(1, 2)
    return model.model.multi_modal_projector(tower.layer_norm(hidden))


def assemble(
    model: Qwen2AudioForConditionalGeneration,
    audio: torch.Tensor,
    counts: torch.Tensor,
    answers: Sequence[Sequence[int]],
    tasks: Sequence[str],
) -> tuple[torch.Tensor, torch.Tensor]:
    """Prompt, audio tokens, task and answer as embeddings, right-padded, and the token to say at each position."""
    embed = model.model.language_model.embed_tokens
    sequences, labels = [], []
    for item, count, answer, task in zip(audio, counts.tolist(), answers, tasks, strict=True):
        before, after = prompt_ids(task)
        said = [*answer, TOKEN_ID["<|im_end|>"]]
        text = embed(torch.tensor([*before, *after, *said]))
        sequences.append(torch.cat([text[: len(before)], item[:count], text[len(before) :]]))
        labels.append(torch.tensor([IGNORE] * (len(before) + count + len(after) - 1) + said + [IGNORE]))
    inputs = torch.nn.utils.rnn.pad_sequence(sequences, batch_first=True)
    return inputs, torch.nn.utils.rnn.pad_sequence(labels, batch_first=True, padding_value=IGNORE)
