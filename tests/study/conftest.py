"""A random Qwen2-Audio of a few thousand parameters with a processor of its own, and recordings of noise and tones."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from fake_vllm import FakeVllm

CHAT = (
    "{% for m in messages %}<|im_start|> {% for c in m['content'] %}{% if c['type'] == 'audio' %}<|audio_bos|><|AUDIO|>"
    "<|audio_eos|> {% else %}{{ c['text'] }} {% endif %}{% endfor %}<|im_end|> {% endfor %}<|im_start|>"
)
SPECIAL = ("<|pad|>", "<unk>", "<|im_end|>", "<|AUDIO|>", "<|audio_bos|>", "<|audio_eos|>", "<|im_start|>")
WORDS = ("transcribe", "first", "one", "two", "three")


@pytest.fixture(scope="session")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint folder: hears 2 s, 4 decoder layers, sites of its own."""
    from tokenizers import Tokenizer
    from tokenizers.models import WordLevel
    from tokenizers.pre_tokenizers import WhitespaceSplit
    from transformers import (
        PreTrainedTokenizerFast,
        Qwen2AudioConfig,
        Qwen2AudioForConditionalGeneration,
        Qwen2AudioProcessor,
        WhisperFeatureExtractor,
    )

    path = tmp_path_factory.mktemp("random-lslm")
    tokenizer = Tokenizer(WordLevel({word: i for i, word in enumerate((*SPECIAL, *WORDS))}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = WhitespaceSplit()
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<|pad|>", unk_token="<unk>", eos_token="<|im_end|>"
    )
    fast.add_special_tokens({"additional_special_tokens": list(SPECIAL[3:])})
    features = WhisperFeatureExtractor(feature_size=16, chunk_length=2)
    Qwen2AudioProcessor(features, fast, chat_template=CHAT).save_pretrained(path)
    config = Qwen2AudioConfig(
        audio_config={
            "num_mel_bins": 16,
            "d_model": 32,
            "encoder_layers": 2,
            "encoder_attention_heads": 2,
            "encoder_ffn_dim": 48,
            "max_source_positions": 100,
        },
        text_config={
            "model_type": "qwen2",
            "hidden_size": 48,
            "num_hidden_layers": 4,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            "intermediate_size": 80,
            "vocab_size": 32,
            "eos_token_id": 2,
            "pad_token_id": 0,
        },
        audio_token_index=3,
        pad_token_id=0,
    )
    torch.manual_seed(0)
    Qwen2AudioForConditionalGeneration(config).save_pretrained(path)
    sites = [{"layer": 0, "threshold": 0.9, "window": 1}, {"layer": 2, "threshold": 0.5, "window": 3}]
    (path / "affinity_pool.json").write_text(json.dumps({"sites": sites, "positions": "keep"}))
    return path


@pytest.fixture(scope="session")
def whisper(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint folder of a random Whisper, which hears 2 s, 100 tokens, whatever the recording."""
    from tokenizers import Tokenizer
    from tokenizers.models import WordLevel
    from tokenizers.pre_tokenizers import WhitespaceSplit
    from transformers import (
        GenerationConfig,
        PreTrainedTokenizerFast,
        WhisperConfig,
        WhisperFeatureExtractor,
        WhisperForConditionalGeneration,
    )

    path = tmp_path_factory.mktemp("random-whisper")
    special = ("<|endoftext|>", "<|startoftranscript|>", "<|notimestamps|>")  # timestamps would follow the last one
    every = (*special[:2], *WORDS, special[2])
    tokenizer = Tokenizer(WordLevel({word: i for i, word in enumerate(every)}, unk_token=special[0]))
    tokenizer.pre_tokenizer = WhitespaceSplit()
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token=special[0], eos_token=special[0])
    fast.add_special_tokens({"additional_special_tokens": list(special[1:])})
    fast.save_pretrained(path)
    WhisperFeatureExtractor(feature_size=16, chunk_length=2).save_pretrained(path)
    (path / "processor_config.json").write_text(json.dumps({"processor_class": "WhisperProcessor"}))
    config = WhisperConfig(
        vocab_size=len(special) + len(WORDS),
        num_mel_bins=16,
        d_model=32,
        encoder_layers=3,
        encoder_attention_heads=2,
        encoder_ffn_dim=48,
        decoder_layers=2,
        decoder_attention_heads=2,
        decoder_ffn_dim=48,
        max_source_positions=100,
        max_target_positions=64,
        bos_token_id=0,
        eos_token_id=0,
        pad_token_id=0,
        decoder_start_token_id=1,
        suppress_tokens=None,
        begin_suppress_tokens=None,
    )
    torch.manual_seed(0)
    model = WhisperForConditionalGeneration(config)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if weight.dim() > 1 and "position" not in name:
                weight.normal_(std=1.3 * weight[0].numel() ** -0.5)
    ends = {"bos_token_id": 0, "eos_token_id": 0, "pad_token_id": 0, "decoder_start_token_id": 1}
    model.generation_config = GenerationConfig(**ends, no_timestamps_token_id=7, is_multilingual=False, max_length=64)
    model.save_pretrained(path)
    return path


@pytest.fixture(scope="session")
def clips(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with two recordings, 8 kHz mono and 44.1 kHz stereo, and their manifest."""
    path = tmp_path_factory.mktemp("clips")
    noise = np.random.default_rng(0)
    for name, rate, seconds, channels in (("tone.wav", 8000, 1.2, 1), ("chord.flac", 44100, 1.6, 2)):
        t = np.arange(round(rate * seconds))[:, None] / rate
        wave = 0.3 * np.sin(2 * np.pi * 300 * (1 + np.floor(2 * t)) * t) + 0.01 * noise.standard_normal(
            (len(t), channels)
        )
        soundfile.write(path / name, wave, rate)
    lines = [
        {"audio": "tone.wav", "text": "one two", "task": "transcribe", "words": [["one", 0.1, 0.5], ["two", 0.5, 1.1]]},
        {"audio": "chord.flac", "text": "three", "task": "first"},
        {"audio": "chord.flac", "text": "quite unknown words", "task": "transcribe"},
    ]
    (path / "manifest.jsonl").write_text("\n".join(map(json.dumps, lines)) + "\n")
    return path


@pytest.fixture(scope="session")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Seven recordings for two tasks, one of them missing and one empty, in a manifest with word times."""
    path = tmp_path_factory.mktemp("corpus")
    noise = np.random.default_rng(1)
    lines = []
    for index, seconds in enumerate((0.8, 1.9, 1.3, 1.0, 1.6)):
        t = np.arange(round(16000 * seconds)) / 16000
        pitch = 200 * (1 + np.floor(4 * t) % 3 + index)
        wave = 0.3 * np.sin(2 * np.pi * pitch * t) * (t > 0.2) + 0.003 * noise.standard_normal(len(t))
        soundfile.write(path / f"{index}.wav", wave, 16000)
        words = [["one", 0.2, 0.5], ["two", 0.5, seconds]]
        task = "first" if index == 3 else "transcribe"
        lines.append({"audio": f"{index}.wav", "text": "one two", "task": task, "language": "en", "words": words})
    lines.insert(1, {"audio": "missing.wav", "text": "one", "task": "transcribe"})
    soundfile.write(path / "empty.wav", np.zeros(0), 16000)
    lines.append({"audio": "empty.wav", "text": "one", "task": "transcribe"})
    (path / "manifest.jsonl").write_text("\n".join(map(json.dumps, lines)) + "\n")
    return path / "manifest.jsonl"


@pytest.fixture
def fake() -> Iterator[FakeVllm]:
    """A server that only looks like vLLM's."""
    with FakeVllm() as found:
        thread = threading.Thread(target=found.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield found
        found.shutdown()
        thread.join()
