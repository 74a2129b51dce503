"""A Whisper model from CTranslate2's format to a folder for transformers:
`python convert.py MODEL.bin FOLDER [--language en]`

Beside MODEL.bin lie its config.json and tokenizer.json. What the folder has is all that `generate()` asks for: greedy
decoding, timestamps of segments and tokens, recordings of any length, and finding the language, unless it is told one.
"""

import argparse
import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from tokenizers import AddedToken, Tokenizer
from transformers import (
    GenerationConfig,
    WhisperConfig,
    WhisperFeatureExtractor,
    WhisperForConditionalGeneration,
    WhisperProcessor,
    WhisperTokenizer,
)

from ctranslate2_file import FileError, read_variables

TIMESTAMPS = [f"<|{step * 0.02:.2f}|>" for step in range(1501)]  # of 30 s
GELU = 3  # CTranslate2's number of the activation
IDS = ("decoder_start_token_id", "bos_token_id", "eos_token_id", "pad_token_id")


def convert(model_file: Path, folder: Path, language: str | None = None) -> None:
    """Write the model of ``model_file`` into ``folder``; ``language``, a code, is what it hears unless told otherwise.

    Raises:
        FileError: a file is missing, is not what it should be, or does not fit the others, or the model does not know
            the language.
    """
    told = _facts(model_file.with_name("config.json"))
    tokenizer = _tokenizer(model_file.with_name("tokenizer.json"))
    model = build(read_variables(model_file), model_file)
    rows = model.config.vocab_size
    if len(tokenizer) != rows:
        raise FileError(f"{model_file} has {rows} tokens, but the tokenizer beside it {len(tokenizer)}")
    model.generation_config = _generation_config(tokenizer, told, model.config)
    if language is not None:
        known = getattr(model.generation_config, "lang_to_id", {})
        if f"<|{language}|>" not in known:
            there = f"{len(known)} languages, by codes such as en" if known else "no language but English"
            raise FileError(f"language is {language!r}, and {model_file} knows {there}")
        model.generation_config.language = language
    for key in IDS:
        setattr(model.config, key, getattr(model.generation_config, key))
    model.save_pretrained(folder)
    features = WhisperFeatureExtractor(feature_size=model.config.num_mel_bins)
    WhisperProcessor(features, tokenizer).save_pretrained(folder)
    features.save_pretrained(folder)  # where transformers 4 looks for it


def build(variables: dict[str, NDArray], source: Path) -> WhisperForConditionalGeneration:
    """The model that CTranslate2's ``variables`` make, in float32: ``from_pretrained`` keeps the dtype it finds, and
    the processor's features are float32. ``source`` is what errors name.
    """
    left = dict(variables)

    def take(name: str, rank: int) -> torch.Tensor:
        if name not in left:
            raise FileError(f"{source} has no variable {name!r}")
        found = left.pop(name)
        if found.ndim != rank:
            raise FileError(f"{name!r} in {source} must have {rank} dimensions, got shape {list(found.shape)}")
        if rank and found.dtype.kind != "f":
            raise FileError(f"{name!r} in {source} must be float32 or float16, got {found.dtype}: it is quantised")
        return torch.from_numpy(found.astype(np.float32 if rank else np.int64))

    state: dict[str, torch.Tensor] = {}

    def linear(ours: str, theirs: str, rank: int = 2) -> None:
        state[f"{ours}.weight"], state[f"{ours}.bias"] = take(f"{theirs}/weight", rank), take(f"{theirs}/bias", 1)

    def norm(ours: str, theirs: str) -> None:
        state[f"{ours}.weight"], state[f"{ours}.bias"] = take(f"{theirs}/gamma", 1), take(f"{theirs}/beta", 1)

    def projections(ours: str, theirs: str, kinds: str) -> None:
        """Those that CTranslate2 keeps one below the other."""
        for part, rank in (("weight", 2), ("bias", 1)):
            joined = take(f"{theirs}/{part}", rank)
            if len(joined) % len(kinds):
                raise FileError(f"{theirs}/{part} in {source} must be {len(kinds)} parts, got shape {[*joined.shape]}")
            for kind, projection in zip(kinds, joined.chunk(len(kinds)), strict=True):
                if (kind, part) != ("k", "bias"):  # Whisper's keys have none; CTranslate2 fills in zeros
                    state[f"{ours}.{kind}_proj.{part}"] = projection.clone()

    if (take("decoder/activation", 0), take("decoder/pre_norm", 0)) != (GELU, 1):  # the encoder's are not said
        raise FileError(f"the decoder in {source} must have GELU and norms before its layers, as Whisper has")
    layers, heads = {}, {}
    for side in ("encoder", "decoder"):
        heads[side] = int(take(f"{side}/num_heads", 0))
        numbered = {name.split("/")[1] for name in variables if name.startswith(f"{side}/layer_")} - {"layer_norm"}
        layers[side] = len(numbered)
        for layer in range(layers[side]):
            ours, theirs = f"model.{side}.layers.{layer}", f"{side}/layer_{layer}"
            projections(f"{ours}.self_attn", f"{theirs}/self_attention/linear_0", "qkv")
            linear(f"{ours}.self_attn.out_proj", f"{theirs}/self_attention/linear_1")
            norm(f"{ours}.self_attn_layer_norm", f"{theirs}/self_attention/layer_norm")
            if side == "decoder":
                projections(f"{ours}.encoder_attn", f"{theirs}/attention/linear_0", "q")
                projections(f"{ours}.encoder_attn", f"{theirs}/attention/linear_1", "kv")
                linear(f"{ours}.encoder_attn.out_proj", f"{theirs}/attention/linear_2")
                norm(f"{ours}.encoder_attn_layer_norm", f"{theirs}/attention/layer_norm")
            linear(f"{ours}.fc1", f"{theirs}/ffn/linear_0")
            linear(f"{ours}.fc2", f"{theirs}/ffn/linear_1")
            norm(f"{ours}.final_layer_norm", f"{theirs}/ffn/layer_norm")
        norm(f"model.{side}.layer_norm", f"{side}/layer_norm")
        state[f"model.{side}.embed_positions.weight"] = take(f"{side}/position_encodings/encodings", 2)
    for conv in ("conv1", "conv2"):
        linear(f"model.encoder.{conv}", f"encoder/{conv}", rank=3)
    embeddings = take("decoder/embeddings/weight", 2)
    state["model.decoder.embed_tokens.weight"] = state["proj_out.weight"] = embeddings
    unknown = [name for name, values in left.items() if values.ndim]
    if unknown:
        raise FileError(f"{source} has {len(unknown)} weights that Whisper does not, {unknown[0]!r} for one")
    if not all(layers.values()):
        raise FileError(f"{source} has an encoder or a decoder without layers")

    width, mels, _ = state["model.encoder.conv1.weight"].shape
    if width < 4 or width % 2:
        raise FileError(f"the features in {source} must be an even number from 4 on, as sinusoids need, got {width}")
    if any(number < 1 or width % number for number in heads.values()):
        raise FileError(f"the heads in {source} must divide its {width} features, got {heads}")
    config = WhisperConfig(
        vocab_size=len(embeddings),
        num_mel_bins=mels,
        d_model=width,
        encoder_layers=layers["encoder"],
        decoder_layers=layers["decoder"],
        encoder_attention_heads=heads["encoder"],
        decoder_attention_heads=heads["decoder"],
        encoder_ffn_dim=len(state["model.encoder.layers.0.fc1.weight"]),
        decoder_ffn_dim=len(state["model.decoder.layers.0.fc1.weight"]),
        max_source_positions=len(state["model.encoder.embed_positions.weight"]),
        max_target_positions=len(state["model.decoder.embed_positions.weight"]),
        begin_suppress_tokens=None,  # it belongs to the generation config; the ids come with the tokenizer
        **dict.fromkeys(IDS, 0),
    )
    with torch.device("meta"):  # no memory for weights that the file may not have
        model = WhisperForConditionalGeneration(config)
    try:
        model.load_state_dict(state, assign=True)
    except RuntimeError as error:
        raise FileError(f"the weights in {source} do not fit each other: {error}") from error
    model.tie_weights()
    return model.eval()


def _facts(file: Path) -> dict[str, Any]:
    """What CTranslate2 keeps of OpenAI's generation settings."""
    try:
        told = json.loads(file.read_bytes())
        return {key: told[key] for key in ("alignment_heads", "lang_ids", "suppress_ids", "suppress_ids_begin")}
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise FileError(f"cannot use CTranslate2's config of the model, {file}: {error!r}") from error


def _tokenizer(file: Path) -> WhisperTokenizer:
    """The tokenizer with its timestamps, which CTranslate2's file leaves out."""
    try:
        read = Tokenizer.from_file(str(file))
    except Exception as error:  # tokenizers raises nothing more particular
        raise FileError(f"cannot read the tokenizer {file}: {error}") from error
    special = [token.content for _, token in sorted(read.get_added_tokens_decoder().items())]
    read.add_tokens([AddedToken(stamp, normalized=False) for stamp in TIMESTAMPS])
    return WhisperTokenizer(tokenizer_object=read, extra_special_tokens=special)


def _generation_config(tokenizer: WhisperTokenizer, told: dict[str, Any], config: WhisperConfig) -> GenerationConfig:
    """OpenAI's settings under the names of transformers.

    From CTranslate2's config: alignment heads, what is never said, what is not said first, which tokens are languages.
    From the tokenizer: every id. From OpenAI's code: a transcript begins in its first second.
    """
    id_of = tokenizer.convert_tokens_to_ids
    end = id_of("<|endoftext|>")
    settings = {
        "decoder_start_token_id": id_of("<|startoftranscript|>"),
        "bos_token_id": end,
        "eos_token_id": end,
        "pad_token_id": end,
        "prev_sot_token_id": id_of("<|startofprev|>"),
        "no_timestamps_token_id": id_of("<|notimestamps|>"),
        "max_initial_timestamp_index": 50,  # of 0.02 s
        "return_timestamps": False,
        "max_length": config.max_target_positions,
        "alignment_heads": told["alignment_heads"],
        "suppress_tokens": told["suppress_ids"],
        "begin_suppress_tokens": told["suppress_ids_begin"],
        "is_multilingual": config.vocab_size >= 51865,  # OpenAI's own rule
    }
    if settings["is_multilingual"]:
        settings["lang_to_id"] = {tokenizer.convert_ids_to_tokens(id): id for id in told["lang_ids"]}
        settings["task_to_id"] = {task: id_of(f"<|{task}|>") for task in ("transcribe", "translate")}
        settings["task"] = "transcribe"  # else transformers leaves the task out where no language is given
    return GenerationConfig(**settings)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path, metavar="MODEL.bin")
    parser.add_argument("folder", type=Path, metavar="FOLDER")
    parser.add_argument("--language", help="of a multilingual model, as en; left out, it finds the language itself")
    arguments = parser.parse_args()
    try:
        convert(arguments.model, arguments.folder, arguments.language)
    except FileError as error:
        parser.error(str(error))


if __name__ == "__main__":
    main()
