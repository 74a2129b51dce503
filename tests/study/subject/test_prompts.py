"""Each family's official processor, around a tokenizer of a few words, makes what the family's model takes.

Granite Speech's needs torchaudio and Voxtral's mistral-common: their tests skip without. The processors that see images
too are built without that part, which needs torchvision.
"""

from __future__ import annotations

import base64
import copy
import json
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import WhitespaceSplit
from transformers import PreTrainedTokenizerFast, WhisperFeatureExtractor

from affinity_pool.models import FAMILIES, Site, patch
from affinity_pool.study.prompts import model_inputs, sampling_rate

sys.path.append(str(Path(__file__).parents[2] / "models"))
from random_families import random_model
from random_speech import AUDIO, speech_model

RATE = 16_000
SPECIAL = ["<|pad|>", "<eos>", "<bos>", "<unk>", "<image>", "<|AUDIO|>", "<a>", "</a>", "<video>", "<v>", "</v>"]
WORDS = ["what", "is", "said", "user", "assistant", "system"]
CHAT = (
    "{% for m in messages %}{{ m['role'] }} {% if m['content'] is string %}{{ m['content'] }} {% else %}"
    "{% for c in m['content'] %}{% if c['type'] == 'audio' %}<a> <|AUDIO|> </a> {% else %}{{ c['text'] }} {% endif %}"
    "{% endfor %}{% endif %}{% endfor %}{% if add_generation_prompt %}assistant{% endif %}"
)


def tokenizer(**named: str) -> Any:
    words = {word: i for i, word in enumerate(SPECIAL + WORDS)}
    assert words["<|AUDIO|>"] == AUDIO
    level = Tokenizer(WordLevel(words, unk_token="<unk>"))
    level.pre_tokenizer = WhitespaceSplit()
    fast = PreTrainedTokenizerFast(
        tokenizer_object=level, pad_token="<|pad|>", unk_token="<unk>", eos_token="<eos>", extra_special_tokens=named
    )
    fast.add_special_tokens({"additional_special_tokens": SPECIAL[4:]})
    fast.model_input_names = ["input_ids", "attention_mask"]
    fast.chat_template = CHAT
    return fast


NAMED = {"audio_token": "<|AUDIO|>", "audio_bos_token": "<a>", "audio_eos_token": "</a>"}
SEEING = {"image_token": "<image>", "video_token": "<video>", "vision_bos_token": "<v>", "vision_eos_token": "</v>"}


def ears() -> Any:
    """Eight mel bands and 1.2 s, as the random encoders hear."""
    extractor = WhisperFeatureExtractor(feature_size=8, chunk_length=1)
    extractor.chunk_length, extractor.n_samples, extractor.nb_max_frames = 1.2, RATE * 12 // 10, 120
    return extractor


NO_EYES = SimpleNamespace(merge_size=2)


def blind(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let processors be built without the parts for images and videos."""
    mixin = transformers.processing_utils.ProcessorMixin
    monkeypatch.setattr(mixin, "check_argument_for_proper_class", lambda self, name, part: type(part))


def granite() -> Any:
    pytest.importorskip("torchaudio")
    extractor = transformers.GraniteSpeechFeatureExtractor(
        n_mels=8, projector_window_size=4, projector_downsample_rate=2
    )
    return transformers.GraniteSpeechProcessor(extractor, tokenizer(**NAMED))


PROCESSORS: dict[str, tuple[str, Callable[[], Any]]] = {
    "qwen2_audio": (
        "Qwen2AudioForConditionalGeneration",
        lambda: transformers.Qwen2AudioProcessor(ears(), tokenizer(), chat_template=CHAT),
    ),
    "audioflamingo3": (
        "AudioFlamingo3ForConditionalGeneration",
        lambda: transformers.AudioFlamingo3Processor(
            ears(), tokenizer(), chat_template=CHAT, audio_token="<|AUDIO|>", max_audio_len=1.2
        ),
    ),
    "musicflamingo": (
        "MusicFlamingoForConditionalGeneration",
        lambda: transformers.MusicFlamingoProcessor(
            ears(),
            tokenizer(),
            chat_template=CHAT,
            audio_token="<|AUDIO|>",
            audio_bos_token="<a>",
            audio_eos_token="</a>",
            max_audio_len=1.2,
        ),
    ),
    "glmasr": (
        "GlmAsrForConditionalGeneration",
        lambda: transformers.GlmAsrProcessor(
            ears(), tokenizer(), chat_template=CHAT, audio_token="<|AUDIO|>", max_audio_len=1.2
        ),
    ),
    "qwen3_asr": (
        "Qwen3ASRForConditionalGeneration",
        lambda: transformers.Qwen3ASRProcessor(
            transformers.Qwen3ASRFeatureExtractor(feature_size=8), tokenizer(**NAMED), chat_template=CHAT
        ),
    ),
    "qwen2_5_omni_thinker": (
        "Qwen2_5OmniThinkerForConditionalGeneration",
        lambda: transformers.Qwen2_5OmniProcessor(
            NO_EYES, NO_EYES, ears(), tokenizer(**NAMED, **SEEING), chat_template=CHAT
        ),
    ),
    "phi4_multimodal": (
        "Phi4MultimodalForCausalLM",
        lambda: transformers.Phi4MultimodalProcessor(
            None, transformers.Phi4MultimodalFeatureExtractor(feature_size=8), tokenizer(**NAMED, **SEEING)
        ),
    ),
    "granite_speech": ("GraniteSpeechForConditionalGeneration", granite),
    "granite_speech_plus": ("GraniteSpeechPlusForConditionalGeneration", granite),
}

CLIPS = [0.1 * np.random.default_rng(i).standard_normal(round(RATE * seconds)) for i, seconds in enumerate((1.2, 0.73))]
QUESTIONS = ["what is", "said"]


@pytest.mark.parametrize("kind", PROCESSORS)
def test_a_batch_is_padded_left_and_has_an_audio_token_for_each_embedding(kind, monkeypatch):
    blind(monkeypatch)
    name, build = PROCESSORS[kind]
    model = speech_model() if kind == "qwen2_audio" else random_model(name)
    processor = build()
    assert sampling_rate(processor) == RATE
    inputs = model_inputs(processor, kind, CLIPS, QUESTIONS)
    counts = (inputs["input_ids"] == AUDIO).sum(1)
    seconds = FAMILIES[kind].token_seconds(model.config)
    for count, clip in zip(counts.tolist(), CLIPS, strict=True):
        assert count * seconds == pytest.approx(len(clip) / RATE, abs=2 * seconds)
    assert inputs["attention_mask"][:, 0].tolist() == [1, 0]
    assert inputs["attention_mask"][:, -1].tolist() == [1, 1]
    with torch.inference_mode(), patch(model, [Site(0, -1.0)]) as handle:
        # the models themselves refuse counts that differ
        assert model.generate(**inputs, max_new_tokens=2, do_sample=False).shape[1] == inputs["input_ids"].shape[1] + 2
        assert handle.stats.sites[0].audio_before == counts.tolist()
    for row, clip, question in zip(range(2), CLIPS, QUESTIONS, strict=True):
        alone = model_inputs(processor, kind, [clip], [question])["input_ids"][0]
        assert torch.equal(inputs["input_ids"][row, -len(alone) :], alone)


def test_voxtral_reads_audio_inside_the_message(tmp_path):
    pytest.importorskip("mistral_common")
    from mistral_common.tokens.tokenizers.tekken import Tekkenizer
    from transformers.tokenization_mistral_common import MistralCommonBackend

    named = {token["rank"]: token["token_str"].value for token in Tekkenizer.DEPRECATED_SPECIAL_TOKENS}
    named |= {24: "[AUDIO]", 25: "[BEGIN_AUDIO]", 26: "[TRANSCRIBE]"}
    words = {
        "config": {
            "pattern": r"\p{L}+|\s+|[^\s\p{L}]+",
            "num_vocab_tokens": 256,
            "default_vocab_size": 286,
            "default_num_special_tokens": 30,
            "version": "v7",
        },
        "vocab": [
            {"rank": i, "token_bytes": base64.b64encode(bytes([i])).decode(), "token_str": None} for i in range(256)
        ],
        "special_tokens": [
            {"rank": i, "token_str": named.get(i, f"<special_{i}>"), "is_control": True} for i in range(30)
        ],
        "audio": {
            "sampling_rate": RATE,
            "frame_rate": 12.5,
            "audio_encoding_config": {"num_mel_bins": 8, "hop_length": 160, "window_size": 400},
            "chunk_length_s": 30.0,
        },
    }
    (tmp_path / "tekken.json").write_text(json.dumps(words))
    processor = transformers.VoxtralProcessor(
        WhisperFeatureExtractor(feature_size=8), MistralCommonBackend(tmp_path / "tekken.json")
    )
    long = np.zeros(31 * RATE)
    inputs = model_inputs(processor, "voxtral", [CLIPS[0], long], QUESTIONS)
    config = copy.deepcopy(random_model("VoxtralForConditionalGeneration").config)
    config.audio_config.max_source_positions, config.text_config.vocab_size, config.audio_token_id = 1500, 286, 24
    model = transformers.VoxtralForConditionalGeneration(config).eval()
    assert (inputs["input_ids"] == 24).sum(1).tolist() == [375, 750]  # whole windows of 30 s
    assert inputs["attention_mask"][:, 0].tolist() == [0, 1]
    with torch.inference_mode():
        assert model(**inputs).logits.shape[:2] == inputs["input_ids"].shape


def processor() -> Any:
    return PROCESSORS["qwen2_audio"][1]()


@pytest.mark.parametrize(
    ("kind", "clips", "prompts", "match"),
    [
        ("whisper", CLIPS, QUESTIONS, "model_type is 'whisper'.*qwen2_audio, "),
        ("qwen2_audio", CLIPS, ["what"], "2 clips and 1 prompts: give one prompt for each clip"),
        ("qwen2_audio", [], [], "at least one"),
        ("qwen2_audio", [CLIPS[0], np.zeros(RATE * 2)], QUESTIONS, r"clips\[1\] has shape \[32000\].*1 to 19200"),
        ("qwen2_audio", [np.zeros((2, 100))], ["what"], r"clips\[0\] has shape \[2, 100\]; wanted one channel"),
        ("qwen2_audio", [np.zeros(0)], ["what"], r"clips\[0\] has shape \[0\]"),
    ],
)
def test_what_cannot_be_asked_is_refused(kind, clips, prompts, match):
    with pytest.raises(ValueError, match=match):
        model_inputs(processor(), kind, clips, prompts)
