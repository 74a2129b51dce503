"""A random Whisper, written in CTranslate2's format here, and read again by examples/whisper: the same model, and none
of what may be wrong with a file is anything but an error in words.
"""

from __future__ import annotations

import json
import random
import struct
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
from transformers import AutoProcessor, WhisperConfig, WhisperForConditionalGeneration

FOLDER = Path(__file__).parents[2] / "examples" / "whisper"
sys.path.append(str(FOLDER))
import convert  # noqa: E402
from ctranslate2_file import FileError, read_variables  # noqa: E402

LANGUAGES = ("en", "de")
NAMED = ["endoftext", "startoftranscript", *LANGUAGES, "translate", "transcribe", "startoflm", "startofprev"]
SPECIAL = [f"<|{name}|>" for name in [*NAMED, "nocaptions", "notimestamps"]]
TYPES = {"float32": 0, "int8": 1, "int16": 2, "float16": 4}
Variables = dict[str, np.ndarray]


def random_model(vocabulary: int, positions: int = 1500, width: int = 8) -> WhisperForConditionalGeneration:
    torch.manual_seed(0)
    config = WhisperConfig(
        vocab_size=vocabulary, num_mel_bins=80 if positions == 1500 else 2, d_model=width, encoder_layers=1,
        decoder_layers=2, encoder_attention_heads=2, decoder_attention_heads=2, encoder_ffn_dim=width + 1,
        decoder_ffn_dim=width + 2, max_source_positions=positions, max_target_positions=32,
        bos_token_id=0, eos_token_id=0, pad_token_id=0, decoder_start_token_id=0,
    )  # fmt: skip
    return WhisperForConditionalGeneration(config).half().float().eval()  # exact in float16


def variables_of(model: WhisperForConditionalGeneration) -> Variables:
    """The names and layouts of CTranslate2."""
    state = {name: value.half().numpy() for name, value in model.state_dict().items()}
    found: Variables = {
        "decoder/activation": np.array(3, np.int8),
        "decoder/pre_norm": np.array(1, np.int8),
        "encoder/num_heads": np.array(2, np.int16),
        "decoder/num_heads": np.array(2, np.int16),
        "decoder/embeddings/weight": state["model.decoder.embed_tokens.weight"],
    }

    def both(theirs: str, ours: str, weight: str = "weight", bias: str = "bias") -> None:
        found[f"{theirs}/{weight}"], found[f"{theirs}/{bias}"] = state[f"{ours}.weight"], state[f"{ours}.bias"]

    def joined(theirs: str, ours: str, kinds: str) -> None:
        weights = [state[f"{ours}.{kind}_proj.weight"] for kind in kinds]
        found[f"{theirs}/weight"] = np.concatenate(weights)
        biases = [state.get(f"{ours}.{kind}_proj.bias", np.zeros(len(weights[0]), np.float16)) for kind in kinds]
        found[f"{theirs}/bias"] = np.concatenate(biases)

    for side, layers in (("encoder", 1), ("decoder", 2)):
        found[f"{side}/position_encodings/encodings"] = state[f"model.{side}.embed_positions.weight"]
        both(f"{side}/layer_norm", f"model.{side}.layer_norm", "gamma", "beta")
        for layer in range(layers):
            theirs, ours = f"{side}/layer_{layer}", f"model.{side}.layers.{layer}"
            joined(f"{theirs}/self_attention/linear_0", f"{ours}.self_attn", "qkv")
            both(f"{theirs}/self_attention/linear_1", f"{ours}.self_attn.out_proj")
            both(f"{theirs}/self_attention/layer_norm", f"{ours}.self_attn_layer_norm", "gamma", "beta")
            if side == "decoder":
                joined(f"{theirs}/attention/linear_0", f"{ours}.encoder_attn", "q")
                joined(f"{theirs}/attention/linear_1", f"{ours}.encoder_attn", "kv")
                both(f"{theirs}/attention/linear_2", f"{ours}.encoder_attn.out_proj")
                both(f"{theirs}/attention/layer_norm", f"{ours}.encoder_attn_layer_norm", "gamma", "beta")
            both(f"{theirs}/ffn/linear_0", f"{ours}.fc1")
            both(f"{theirs}/ffn/linear_1", f"{ours}.fc2")
            both(f"{theirs}/ffn/layer_norm", f"{ours}.final_layer_norm", "gamma", "beta")
    for conv in ("conv1", "conv2"):
        both(f"encoder/{conv}", f"model.encoder.{conv}")
    return found


def file_of(variables: Variables, version: int = 6, kind: str = "WhisperSpec") -> bytes:
    def string(text: str) -> bytes:
        return struct.pack("<H", len(text) + 1) + text.encode() + b"\0"

    parts = [struct.pack("<I", version), string(kind), struct.pack("<II", 3, len(variables))]
    for name, values in variables.items():
        shape = struct.pack(f"<B{values.ndim}I", values.ndim, *values.shape)
        parts += [string(name), shape, struct.pack("<BI", TYPES[values.dtype.name], values.nbytes), values.tobytes()]
    aliases = [struct.pack("<I", 1), string("decoder/projection/weight"), string("decoder/embeddings/weight")]
    return b"".join([*parts, *aliases])


def write_folder(folder: Path, content: bytes, words: int) -> Path:
    """A model file with its config and a tokenizer of ``words`` tokens before the special ones."""
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    texts = [*letters, *(f"unused{number}" for number in range(words - len(letters)))]
    tokenizer = Tokenizer(models.BPE({text: number for number, text in enumerate(texts)}, []))
    tokenizer.pre_tokenizer, tokenizer.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken(text, normalized=False, special=True) for text in SPECIAL])
    tokenizer.save(str(folder / "tokenizer.json"))
    ids = [tokenizer.token_to_id(f"<|{language}|>") for language in LANGUAGES]
    told = {"alignment_heads": [[1, 0]], "lang_ids": ids, "suppress_ids": [1, 2], "suppress_ids_begin": [5]}
    (folder / "config.json").write_text(json.dumps(told))
    (folder / "model.bin").write_bytes(content)
    return folder / "model.bin"


@pytest.fixture(params=[256, 51865 - 1501 - len(SPECIAL)], ids=["English", "multilingual"])
def words(request: pytest.FixtureRequest) -> int:
    return request.param


def test_the_folder_has_the_model_that_was_written(words: int, tmp_path: Path) -> None:
    model = random_model(words + len(SPECIAL) + 1501)
    convert.convert(write_folder(tmp_path, file_of(variables_of(model)), words), tmp_path / "out")
    found = WhisperForConditionalGeneration.from_pretrained(tmp_path / "out").eval()
    processor = AutoProcessor.from_pretrained(tmp_path / "out")
    expected = model.state_dict()
    assert found.state_dict().keys() == expected.keys()
    assert all(torch.equal(value, expected[name]) for name, value in found.state_dict().items())

    noise = np.random.default_rng(0).normal(size=48000).astype(np.float32)
    inputs = processor([noise, noise[:16000]], sampling_rate=16000, return_tensors="pt", return_attention_mask=True)
    timed = {"return_timestamps": True, "return_token_timestamps": True}
    for wanted in ({}, {"return_timestamps": True}, timed):
        found.generate(**inputs, max_new_tokens=5, **wanted)
    whole = {"truncation": False, "padding": "longest", "return_attention_mask": True}
    long = processor([np.tile(noise, 11)], sampling_rate=16000, return_tensors="pt", **whole)
    assert long.input_features.shape[-1] > 3000
    found.generate(**long, max_new_tokens=5, return_timestamps=True)
    assert processor.tokenizer.convert_tokens_to_ids("<|30.00|>") == found.config.vocab_size - 1
    assert found.generation_config.is_multilingual == (words > 256)
    if found.generation_config.is_multilingual:
        heard = found.detect_language(inputs.input_features)
        assert set(heard.tolist()) <= set(found.generation_config.lang_to_id.values())
        found.generate(**inputs, max_new_tokens=5, language="de", task="translate")


def test_a_language_is_one_that_the_model_knows(words: int, tmp_path: Path) -> None:
    model = write_folder(tmp_path, file_of(variables_of(random_model(words + len(SPECIAL) + 1501))), words)
    if words > 256:
        convert.convert(model, tmp_path / "out", "de")
        assert WhisperForConditionalGeneration.from_pretrained(tmp_path / "out").generation_config.language == "de"
        with pytest.raises(FileError, match=r"language is 'deutsch', and .* knows .* languages, by codes such as en"):
            convert.convert(model, tmp_path / "out", "deutsch")
    else:
        with pytest.raises(FileError, match="knows no language but English"):
            convert.convert(model, tmp_path / "out", "de")


@pytest.fixture(scope="module")
def small() -> Variables:
    return variables_of(random_model(3, positions=2, width=4))


def test_a_file_that_is_cut_short_says_so(small: Variables, tmp_path: Path) -> None:
    file, whole = tmp_path / "model.bin", file_of(small)
    for length in range(len(whole)):
        file.write_bytes(whole[:length])
        with pytest.raises(FileError, match="would take"):
            read_variables(file)


def test_whatever_a_byte_becomes_it_is_a_model_or_an_error_in_words(small: Variables, tmp_path: Path) -> None:
    file, whole = tmp_path / "model.bin", file_of(small)
    draw = random.Random(0)
    for _ in range(300):
        changed = bytearray(whole)
        changed[draw.randrange(len(whole))] = draw.choice([0, 1, 127, 255])
        file.write_bytes(changed)
        try:
            convert.build(read_variables(file), file)
        except FileError as error:
            assert str(file) in str(error)  # noqa: PT017 (only some of the files are wrong)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (lambda good: b"", "would take 4 bytes, but 0 are left"),
        (lambda good: b"RIFF" * 8, "its version must be 6, got"),
        (lambda good: file_of(good, version=5), "its version must be 6, got 5"),
        (lambda good: file_of(good, kind="TransformerSpec"), "its kind must be WhisperSpec, got 'TransformerSpec'"),
        (lambda good: file_of(good) + b"!", "1 bytes follow its end"),
        (lambda good: file_of(dict(list(good.items())[:-1])), "has no variable 'encoder/conv2/bias'"),
        (lambda good: file_of({**good, "decoder/adapter": np.zeros(2, np.float32)}), "weights that Whisper does not"),
        (lambda good: file_of({**good, "encoder/conv1/bias": np.zeros(2, np.int8)}), "it is quantised"),
        (lambda good: file_of({**good, "encoder/conv1/bias": np.zeros(9, np.float32)}), "do not fit each other"),
        (lambda good: file_of({**good, "decoder/activation": np.array(0, np.int8)}), "must have GELU"),
        (lambda good: file_of({**good, "decoder/num_heads": np.array(3, np.int16)}), "heads in .* must divide"),
        (lambda good: file_of(good), "has 3 tokens, but the tokenizer beside it"),
    ],
)  # fmt: skip
def test_a_foreign_file_is_refused_by_what_is_wrong(content, said, small: Variables, tmp_path: Path) -> None:
    model = write_folder(tmp_path, content(small), 256)
    with pytest.raises(FileError, match=said):
        convert.convert(model, tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("missing", ["model.bin", "config.json", "tokenizer.json"])
def test_the_command_names_the_file_it_misses(
    missing: str, small: Variables, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    model = write_folder(tmp_path, file_of(small), 256)
    (tmp_path / missing).unlink()
    monkeypatch.setattr(sys, "argv", ["convert.py", str(model), str(tmp_path / "out")])
    with pytest.raises(SystemExit, match="2"):
        convert.main()
    assert str(tmp_path / missing) in capsys.readouterr().err
