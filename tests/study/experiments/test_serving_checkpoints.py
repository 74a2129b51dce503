"""Checkpoints that vLLM serves, made of the bundled one."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from affinity_pool.study.bundled import BUNDLED
from affinity_pool.study.data import open_data
from affinity_pool.study.errors import InputError
from affinity_pool.study.experiments.serving import checkpoints
from affinity_pool.study.subject.lslm import load as load_model

CHECKPOINT = BUNDLED / "checkpoint"


@pytest.fixture(scope="module")
def converted(tmp_path_factory: pytest.TempPathFactory) -> Path:
    target = tmp_path_factory.mktemp("checkpoints") / "tiny"
    checkpoints.for_thirty_seconds(CHECKPOINT, target)
    return target


def test_the_converted_model_gives_the_same_tokens(converted: Path) -> None:
    before, after = load_model(str(CHECKPOINT), "cpu"), load_model(str(converted), "cpu")
    assert (before.longest, after.longest) == (10, 30)
    for utterance in open_data(None)[:2]:
        audio = utterance.load(16000)
        inputs = [model.inputs(audio, utterance.task) for model in (before, after)]
        assert torch.equal(inputs[0]["input_ids"], inputs[1]["input_ids"])
        assert before.generate(inputs[0]).tolist() == after.generate(inputs[1]).tolist()


def test_the_mid_size_model_is_a_config_with_tokenizer_and_processor(tmp_path: Path) -> None:
    from transformers import AutoConfig, AutoProcessor, Qwen2AudioForConditionalGeneration

    checkpoints.mid_size(CHECKPOINT, tmp_path / "mid")
    assert not [*(tmp_path / "mid").glob("*.safetensors")]
    assert not (tmp_path / "mid" / "affinity_pool.json").exists()
    config = AutoConfig.from_pretrained(tmp_path / "mid")
    with torch.device("meta"):
        model = Qwen2AudioForConditionalGeneration(config)
    everything = {name: parameter.numel() for name, parameter in model.named_parameters()}
    encoder = sum(number for name, number in everything.items() if "audio_tower" in name)
    decoder = sum(everything.values()) - encoder
    assert decoder == pytest.approx(142e6, rel=0.02)
    assert encoder < decoder / 30
    assert AutoProcessor.from_pretrained(tmp_path / "mid").feature_extractor.n_samples == 480000


def test_what_cannot_be_converted_is_refused(converted: Path, folder: Path, tmp_path: Path) -> None:
    target = tmp_path / "target"
    with pytest.raises(InputError, match="no folder with a checkpoint of the Qwen2-Audio architecture"):
        checkpoints.for_thirty_seconds(tmp_path, target)
    with pytest.raises(InputError, match="hears 30 s at once already"):
        checkpoints.for_thirty_seconds(converted, target)
    bare = shutil.copytree(folder, tmp_path / "bare", ignore=shutil.ignore_patterns("*.safetensors"))
    with pytest.raises(InputError, match=r"cannot read .*all the weights in one file"):
        checkpoints.for_thirty_seconds(bare, target)
    assert not target.exists()


def test_the_conversion_is_a_program(folder: Path, tmp_path: Path) -> None:
    module = "affinity_pool.study.experiments.serving.checkpoints"
    done = subprocess.run([sys.executable, "-m", module, folder, tmp_path / "long"], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert load_model(str(tmp_path / "long"), "cpu").longest == 30
    done = subprocess.run([sys.executable, "-m", module, tmp_path, tmp_path / "no"], capture_output=True, text=True)
    assert done.returncode == 2
    assert done.stdout.startswith("Error: ")
