"""Models that vLLM serves on any machine, from a small checkpoint of the Qwen2-Audio architecture.

vLLM's Qwen2-Audio takes windows of 30 s and no others. One that hears less is given a longer window: its encoder masks
what is padded, so the same recording gives the same audio tokens.

    python -m affinity_pool.study.experiments.serving.checkpoints SOURCE TARGET [--mid-size]
"""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Annotated, Any

import typer

from ....cli.application import errors_in_words
from ...errors import InputError
from ...runs import folders

SECONDS = 30
POSITIONS = 50 * SECONDS
"""Of the encoder: it makes one of two frames of the spectrogram, of which there are 100 a second."""

CONFIG, PROCESSOR, WEIGHTS = "config.json", "processor_config.json", "model.safetensors"
OF_THESE_WEIGHTS = shutil.ignore_patterns("*.safetensors", "affinity_pool.json")

ENCODER = {"d_model": 256, "encoder_layers": 4, "encoder_attention_heads": 4, "encoder_ffn_dim": 1024}
DECODER: dict[str, int | list[str]] = {
    "hidden_size": 1024,
    "intermediate_size": 2816,
    "num_hidden_layers": 12,
    "num_attention_heads": 16,
    "num_key_value_heads": 8,
    "layer_types": ["full_attention"] * 12,
}


def for_thirty_seconds(source: Path, target: Path) -> None:
    """Write a checkpoint that hears less than 30 s at once as one that hears 30 s, with all its files.

    Raises:
        InputError: ``source`` is no such checkpoint, or ``target`` cannot be written.
    """
    import torch
    from safetensors import SafetensorError
    from safetensors.torch import load_file, save_file

    config, processor = _with_the_window(source)
    try:
        weights = load_file(source / WEIGHTS)
    except (OSError, SafetensorError) as error:
        raise InputError(f"cannot read {source / WEIGHTS}, all the weights in one file: {error}") from error
    tables = [name for name in weights if name.endswith("embed_positions.weight")]
    if len(tables) != 1:
        raise InputError(f"{source / WEIGHTS} has {len(tables)} tables of positions, where the encoder has one")
    table = weights[tables[0]]
    of_padding = table.new_zeros(POSITIONS - table.shape[0], table.shape[1])  # nothing attends to it
    weights[tables[0]] = torch.cat([table, of_padding])
    with folders.writing(target):
        shutil.copytree(source, target, dirs_exist_ok=True)
        save_file(weights, target / WEIGHTS, metadata={"format": "pt"})
    _write(target, config, processor)


def mid_size(source: Path, target: Path) -> None:
    """Write a model of 145 million parameters without weights: tokenizer and processor of ``source``, hears 30 s.

    As in large models the decoder, 12 layers of 1024 features, does most of the work; the encoder has 4 of 256.

    Raises:
        InputError: as :func:`for_thirty_seconds`.
    """
    config, processor = _with_the_window(source)
    config["audio_config"].update(ENCODER)
    config["text_config"].update(DECODER)
    with folders.writing(target):
        shutil.copytree(source, target, dirs_exist_ok=True, ignore=OF_THESE_WEIGHTS)
    _write(target, config, processor)


def _with_the_window(source: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """Config and processor of a checkpoint, hearing 30 s."""
    config, processor = folders.read(source / CONFIG), folders.read(source / PROCESSOR)
    if not isinstance(config, dict) or config.get("model_type") != "qwen2_audio":
        raise InputError(f"{source} is no folder with a checkpoint of the Qwen2-Audio architecture: see its {CONFIG}")
    extractor = processor.get("feature_extractor") if isinstance(processor, dict) else None
    if not isinstance(extractor, dict):
        raise InputError(f"{source / PROCESSOR} has no feature_extractor, or is not there")
    positions = config["audio_config"]["max_source_positions"]
    if positions >= POSITIONS:
        raise InputError(f"{source} hears {positions / 50:g} s at once already: vLLM serves it as it is")
    config["audio_config"]["max_source_positions"] = POSITIONS
    extractor.update(
        chunk_length=SECONDS,
        n_samples=SECONDS * extractor["sampling_rate"],
        nb_max_frames=SECONDS * extractor["sampling_rate"] // extractor["hop_length"],
    )
    return config, processor


def _write(target: Path, config: dict[str, Any], processor: dict[str, Any]) -> None:
    folders.write_json(target / CONFIG, config, indent=2)
    folders.write_json(target / PROCESSOR, processor, indent=2)


def main(
    source: Annotated[Path, typer.Argument(help="Folder of a Qwen2-Audio checkpoint that hears less than 30 s.")],
    target: Annotated[Path, typer.Argument(help="Folder to write.")],
    config_only: Annotated[
        bool, typer.Option("--mid-size", help="A model of 145 million parameters without weights.")
    ] = False,
) -> None:
    """Write a checkpoint that vLLM serves."""
    with errors_in_words():
        (mid_size if config_only else for_thirty_seconds)(source, target)


if __name__ == "__main__":
    typer.run(main)
