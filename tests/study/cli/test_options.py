"""Options and the files they name are checked before the model loads, and said in the command line's words."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import transformers
from commands import invoke
from hypothesis import given, settings
from hypothesis import strategies as st

from affinity_pool.cli.application import extra_that_has
from affinity_pool.cli.options import layers_of
from affinity_pool.models.settings import load
from affinity_pool.study.subject import lslm

SITE = {"layer": 0, "threshold": 0.9, "window": 1}


@pytest.fixture
def no_weights(monkeypatch: pytest.MonkeyPatch) -> None:
    """Reading weights fails the test: whatever is wrong has to be told before."""

    def read(*_: object, **__: object) -> None:
        raise AssertionError("the weights were read")

    monkeypatch.setattr(lslm.transformers.Qwen2AudioForConditionalGeneration, "from_pretrained", read)


def refused(*arguments: object) -> str:
    code, output = invoke(*arguments)
    assert code == 2
    return " ".join(output.replace("│", " ").split())


BAD = {
    "layers beyond the last": (["probe", "--layers", "0-200000000"], "layers 0 to 3"),
    "layers beyond any number": (["oracle", "--layers", "0-" + "9" * 5000], "layers 0 to 3"),
    "layers backwards": (["oracle", "--layers", "3-1"], "layers must rise"),
    "layers of calibrate": (["calibrate", "--flops", "0.9", "--layers", "9"], "layers 0 to 3"),
    "a picture of nobody": (["probe", "--picture", "nobody"], "no recording 'nobody' among"),
    "a window": (["probe", "--windows", "1,99"], "window must be in 1..32"),
    "a window of calibrate": (["calibrate", "--flops", "0.9", "--windows", "0"], "window must be in 1..32"),
    "a threshold": (["probe", "--thresholds", "nan"], "threshold must be a number, got NaN"),
    "no budget": (["calibrate"], "--flops, --retention"),
    "an operator": (["oracle", "--operators", "drop"], "operator must be one of"),
    "an operator twice": (["oracle", "--operators", "random-drop,random-drop"], "named once each"),
    "a unit": (["oracle", "--units", "syllables"], "units must be 'words' or a number of seconds"),
    "an alignment": (["oracle", "--alignments", "nowhere"], "folder of TextGrids, got 'nowhere'"),
    "an alignment of dynamics": (["dynamics", "--alignments", "nowhere"], "folder of TextGrids, got 'nowhere'"),
    "a baseline": (["eval", "--baselines", "drop"], "baseline must be one of"),
    "a baseline twice": (["eval", "--baselines", "interpolate,interpolate"], "named once each"),
    "sites beyond the last": (["eval", "--sites", "7:0.9:1"], "layers 0 to 3"),
    "sites cut short": (["eval", "--sites", "0:0.9"], "'0:0.9' is not LAYER:THRESHOLD:WINDOW"),
    "a threshold twice": (["probe", "--thresholds", "0.9,0.90"], "named once each"),
    "a budget twice": (["oracle", "--budgets", "25%,25.0%"], "named once each"),
    "a window twice": (["calibrate", "--flops", "0.9", "--windows", "1,1"], "named once each"),
    "an empty prompt": (["eval", "--prompt", ""], "must be text, and not empty"),
    "a prompt that is no text": (["eval", "--prompt", "caf\udce9"], "must be text, and not empty"),
    "an empty prompt of the demo": (["demo", "--prompt", " "], "must be text, and not empty"),
    "a device that holds nothing": (["eval", "--device", "meta"], "device 'meta' cannot be used here"),
    "a device of others": (["eval", "--device", "hpu"], "device 'hpu' cannot be used here"),
    "sites twice": (["eval", "--sites", "0:0.9:1", "--sites", "0:0.9:1"], "are given twice"),
    "an attention": (["eval", "--attention", "heavy"], "attention must be 'plain' or 'proportional', got 'heavy'"),
    "an attention twice": (["eval", "--attention", "plain,plain"], "attention must be named once each"),
    "an attention of the demo": (["demo", "--attention", ""], "attention must be 'plain' or 'proportional', got ''"),
    "an attention of probe": (["probe", "--attention", "plain,proportional"], "got 'plain,proportional'"),
    "an attention of cost": (["cost", "--attention", "Plain"], "attention must be 'plain' or 'proportional'"),
    "an attention of calibrate": (["calibrate", "--flops", "0.9", "--attention", "no"], "attention must be 'plain'"),
    "lengths": (["cost", "--lengths", "1,nan"], "lengths must be seconds from 0.1"),
    "lengths without end": (["cost", "--lengths", "1e9"], "lengths must be seconds from 0.1 to 3600"),
    "buckets": (["cost", "--buckets", "5,3"], "buckets must rise"),
    "sites of the demo": (["demo", "--sites", "moderate"], "neither a preset"),
    "sites of cost": (["cost", "--sites", "moderate"], "neither a preset"),
    "a device": (["eval", "--device", "gpu"], "device 'gpu' cannot be used here"),
    "a dtype": (["eval", "--dtype", "float"], "dtype must be one of auto, float32"),
    "a judge": (["eval", "--judge", "no.such:judge"], "judge"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_options_are_told_before_the_weights_are_read(
    name: str, folder: Path, corpus: Path, tmp_path: Path, no_weights: None
) -> None:
    (command, *options), message = BAD[name]
    given = ["--device", "cpu"] if "--device" not in options else []
    said = refused(command, "--model", folder, "--data", corpus, "--out", tmp_path / "out", *given, *options)
    assert message in said
    assert len(said) < 1000


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["cost", "--random-weights", "tiny", "--batch", "0"], "batch must be 1 or more"),
        (["cost", "--random-weights", "tiny", "--lengths", "0"], "lengths must be seconds from 0.1"),
        (["cost", "--random-weights", "tiny", "--device", "gpu"], "device 'gpu' cannot be used here"),
        (["bench", "--device", "gpu"], "device 'gpu' cannot be used here"),
        (["bench", "--threads", "0"], "threads"),
        (["eval", "--data", ""], "a data set is given as"),
    ],
)
def test_bad_options_of_commands_without_a_model_are_told(options: list[str], message: str, tmp_path: Path) -> None:
    assert message in refused(*options, "--out", tmp_path / "out")


FILES = {
    "positions": ({"sites": [SITE], "positions": "Keep"}, "positions must be 'keep' or 'compact', got 'Keep'"),
    "positions of a list": ({"sites": [SITE], "positions": []}, "positions must be 'keep' or 'compact'"),
    "a list": ([SITE], "got list"),
    "attention": ({"sites": [SITE], "attention": "Plain"}, "attention must be 'plain' or 'proportional', got 'Plain'"),
    "no sites": ({}, "'sites' is missing"),
    "sites that are none": ({"sites": 3}, "sites must be a list, got int"),
    "a site that is none": ({"sites": [3]}, "a site has layer, threshold and window"),
    "a huge threshold": ({"sites": [{**SITE, "threshold": 10**400}]}, "threshold must be"),
    "an odd window": ({"sites": [{**SITE, "window": 1.5}]}, "window must be an int"),
    "another key": ({"sites": [SITE], "position": "keep"}, "unknown key 'position'"),
}


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("command", ["eval", "demo"])
def test_bad_sites_files_are_told_by_name_before_the_weights_are_read(
    name: str, command: str, folder: Path, corpus: Path, tmp_path: Path, no_weights: None
) -> None:
    content, message = FILES[name]
    file = tmp_path / "sites.json"
    file.write_text(json.dumps(content))
    options = ["--sites", file, "--out", tmp_path / "out", "--device", "cpu"]
    said = refused(command, "--model", folder, "--data", corpus, *options)
    assert message in said
    assert "sites.json" in said.replace(" ", "")


@pytest.mark.parametrize("content", [b"", b"{", b"\xff\xfe", b"[" * 100_000, bytes(10)])
def test_sites_files_that_are_no_json_are_told_by_name(
    content: bytes, folder: Path, corpus: Path, tmp_path: Path, no_weights: None
) -> None:
    (tmp_path / "sites.json").write_bytes(content)
    options = ["--sites", tmp_path / "sites.json", "--out", tmp_path / "out", "--device", "cpu"]
    assert "sites.json" in refused("eval", "--model", folder, "--data", corpus, *options).replace(" ", "")


def test_a_checkpoint_s_own_sites_file_is_told_too(
    folder: Path, corpus: Path, tmp_path: Path, no_weights: None
) -> None:
    checkpoint = shutil.copytree(folder, tmp_path / "checkpoint")
    (checkpoint / "affinity_pool.json").write_text(json.dumps({"sites": [{**SITE, "layer": 9}]}))
    for command in ("eval", "demo", "cost"):
        said = refused(command, "--model", checkpoint, "--data", corpus, "--out", tmp_path / "out", "--device", "cpu")
        assert "site at layer 9, but this model's decoder has layers 0 to 3" in said


values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3),
    max_leaves=6,
)
entries = st.fixed_dictionaries({"layer": st.integers(-1, 5) | values, "threshold": values, "window": values})
contents = st.fixed_dictionaries(
    {"sites": st.lists(entries | values, max_size=3)}, optional={"positions": values, "attention": values}
)


@settings(max_examples=max(300, settings.default.max_examples), deadline=None)
@given((contents | values).map(json.dumps).map(str.encode) | st.binary(max_size=60))
def test_any_sites_file_is_taken_or_named(tmp_path_factory: pytest.TempPathFactory, content: bytes) -> None:
    file = tmp_path_factory.getbasetemp() / "any.json"
    file.write_bytes(content)
    try:
        pooling = load(file)
    except ValueError as error:
        assert "any.json" in str(error)  # noqa: PT017
        return
    assert pooling.positions in (None, "keep", "compact")
    assert pooling.attention in (None, "plain", "proportional")
    assert all(1 <= site.window <= 32 and (site.layer == "memory" or site.layer >= 0) for site in pooling.sites)


def test_a_model_that_attends_to_its_audio_is_told(folder: Path, corpus: Path, tmp_path: Path) -> None:
    checkpoint = shutil.copytree(folder, tmp_path / "checkpoint")
    transformers.MoonshineConfig().save_pretrained(checkpoint)
    said = refused("eval", "--model", checkpoint, "--data", corpus, "--out", tmp_path / "out", "--device", "cpu")
    assert "is a moonshine model: affinity_pool.patch pools it" in said


DAMAGES = {
    "model.safetensors": lambda content: content[: len(content) // 2],
    "tokenizer.json": lambda content: content[: len(content) // 2],
    "processor_config.json": lambda content: b"{",
    "config.json": lambda content: content.replace(b'"num_hidden_layers": 4', b'"num_hidden_layers": "x"'),
}


@pytest.mark.parametrize("name", DAMAGES)
def test_a_damaged_checkpoint_is_told(name: str, folder: Path, corpus: Path, tmp_path: Path) -> None:
    checkpoint = shutil.copytree(folder, tmp_path / "checkpoint")
    file = checkpoint / name
    if not file.exists():
        pytest.skip(f"this version of transformers writes no {name}")
    file.write_bytes(DAMAGES[name](file.read_bytes()))
    said = refused("eval", "--model", checkpoint, "--data", corpus, "--out", tmp_path / "out", "--device", "cpu")
    assert "cannot load the model" in said


def test_a_prompt_that_holds_a_placeholder_is_told(folder: Path, clips: Path, tmp_path: Path) -> None:
    options = ["--out", tmp_path / "out", "--device", "cpu", "--prompt", "<|AUDIO|>"]
    manifest = clips / "manifest.jsonl"
    assert "holds <|AUDIO|>" in refused("eval", "--model", folder, "--data", manifest, *options)
    options[1] = tmp_path / "demo"
    assert "holds <|AUDIO|>" in refused("demo", "--model", folder, "--audio", clips / "tone.wav", *options)


def test_layers_are_read_as_written() -> None:
    assert layers_of("0,7, 12-15", 16) == [0, 7, 12, 13, 14, 15]


def test_the_advice_names_an_extra_that_has_the_package() -> None:
    assert extra_that_has("soundfile") == "'affinity_pool[study]'"
    assert extra_that_has("transformers") == "'affinity_pool[study]'"
    assert extra_that_has("pocketsphinx") == "'affinity_pool[align]'"
    assert extra_that_has("peft") == "'affinity_pool[training]'"
    assert extra_that_has("deepspeed") == "deepspeed"


# The terminal.


def env(stdout: object, **environment: str) -> subprocess.CompletedProcess[str]:
    program = "from affinity_pool.cli.commands import main; main()"
    command = [sys.executable, "-c", program, "eval", "--data", "caf\u00e9 [bold] \u65e5.jsonl"]
    return subprocess.run(
        command, stdout=stdout, stderr=subprocess.PIPE, text=True, env={**os.environ, **environment}, check=False
    )


def test_output_of_ascii_alone(tmp_path: Path) -> None:
    with (tmp_path / "out").open("w") as out:
        done = env(out, PYTHONIOENCODING="ascii", PYTHONUTF8="0")
    said = " ".join((tmp_path / "out").read_text("ascii").split())
    assert done.returncode == 2, done.stderr
    assert "Traceback" not in done.stderr
    assert r"caf\xe9 [bold]" in said


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full here")
def test_output_to_a_full_device() -> None:
    with open("/dev/full", "w") as full:
        done = env(full)
    assert done.returncode == 1
    assert done.stderr.strip() == "Error: cannot write the output: No space left on device"


def test_output_to_a_closed_pipe() -> None:
    reader, writer = os.pipe()
    os.close(reader)
    done = env(writer)
    os.close(writer)
    assert done.returncode == 1
    assert done.stderr == ""
