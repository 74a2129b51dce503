"""The study on a random Whisper: what is told of it, what is measured, and what is refused."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from commands import invoke
from torch.utils.flop_counter import FlopCounterMode

from affinity_pool.models import Site
from affinity_pool.models.settings import Pooling
from affinity_pool.study.data import open_data
from affinity_pool.study.efficiency.flops import attending_flops
from affinity_pool.study.errors import InputError
from affinity_pool.study.experiments.cost.architectures import config_of
from affinity_pool.study.subject.encoder_decoder import Whisper
from affinity_pool.study.subject.lslm import load


@pytest.fixture(scope="module")
def model(whisper: Path) -> Whisper:
    found = load(str(whisper), "cpu")
    assert isinstance(found, Whisper)
    return found


def ran(command: str, whisper: Path, out: Path, *options: object) -> dict:
    code, said = invoke(command, "--model", whisper, "--out", out, "--device", "cpu", *options)
    assert code == 0, said
    return json.loads((out / "summary.json").read_text())


def refused(*arguments: object) -> str:
    """What a command says that ends with an error."""
    code, said = invoke(*arguments)
    assert code != 0, said
    return " ".join(said.replace("│", " ").split())


def test_its_tokens_are_of_the_window_and_those_heard_of_the_recording(model: Whisper, corpus: Path) -> None:
    audio = [utterance.load(model.rate) for utterance in open_data(corpus)[2:5]]
    inputs = model.batch(audio, ["transcribe"] * 3)
    assert model.longest == 2.0
    assert model.audio_positions(inputs).sum(1).tolist() == [100, 100, 100]
    assert model.heard_positions(inputs, [one.seconds for one in audio]).sum(1).tolist() == [95, 65, 50]
    assert model.text_tokens(inputs).tolist() == [2, 2, 2]
    seen: list[torch.Tensor] = []
    hook = model.decoder.register_forward_pre_hook(
        lambda _, args, kwargs: seen.append(kwargs["input_ids"]), with_kwargs=True
    )
    model.generate(inputs, longest=1)
    hook.remove()
    assert seen[0].tolist() == [[1, 7]] * 3
    assert model.pooled_depth is None
    assert model.pooling(model.sites) == Pooling((Site("memory", 0.96, 1),), "keep", "proportional")


def test_operations_are_those_that_torch_counts(model: Whisper, corpus: Path) -> None:
    inputs = model.inputs(open_data(corpus)[0].load(model.rate), "transcribe")
    model.model.set_attn_implementation("eager")
    prompt = torch.tensor([[1, 2]])
    try:
        for pooling in (None, Pooling((Site("memory", keep=0.3),))):
            with torch.no_grad(), FlopCounterMode(display=False) as counter:
                if pooling is None:
                    model.model(**inputs, decoder_input_ids=prompt)
                else:
                    with model.patched(pooling):
                        model.model(**inputs, decoder_input_ids=prompt)
            tokens = 100 if pooling is None else 30
            counted = attending_flops(model.config, 2, tokens, mel_frames=200)
            both_logits = 2 * model.config.d_model * model.config.vocab_size  # torch computes those of both tokens
            assert counted.total + both_logits == counter.get_total_flops()
    finally:
        model.model.set_attn_implementation("sdpa")
    assert replace(counted, encoder=0.0) == model.prefill_flops(2, 100, {"memory": 30})
    with pytest.raises(ValueError, match="cannot count the operations of moonshine"):
        attending_flops(type("Config", (), {"model_type": "moonshine"})(), 2, 100)


def test_eval_tells_what_is_left_of_speech_and_of_all(whisper: Path, corpus: Path, tmp_path: Path) -> None:
    options = "--data", corpus, "--task", "transcribe", "--batch", 3, "--longest", 6
    sites = "--sites", "memory:0.9:1", "--sites", "memory:keep=0.2"
    summary = ran("eval", whisper, tmp_path, *options, *sites, "--attention", "plain,proportional")
    found = {condition["name"]: condition for condition in summary["conditions"]}
    assert "affinity at memory:keep=0.2, proportional" in found
    assert "speed-up at memory:0.9:1" not in found
    for name, condition in found.items():
        assert condition["audio_tokens"] == 400
        assert condition["heard_tokens"] == sum((40, 95, 65, 80))
        if name == "unpooled":
            assert condition["layers"] == []
            assert condition["heard_retention"] == condition["relative_flops"] == 1
        else:
            assert condition["layers"] == ["memory"]
            assert 0 < condition["retention"][0] < 1
            assert condition["relative_flops"] < 1
    kept = found["affinity at memory:keep=0.2"]
    assert kept["retention"] == [0.2]
    for name in ("random-drop", "uniform-drop", "uniform-merge", "interpolate", "bipartite-merge"):
        assert found[f"{name} at memory:keep=0.2"]["retention"] == [0.2]
    uniform = found["uniform-merge at memory:keep=0.2"]
    assert uniform["heard_retention"] == pytest.approx(0.2, abs=0.01)  # speech and padding alike
    again = ran("eval", whisper, tmp_path, *options, *sites, "--attention", "plain,proportional")
    assert again["conditions"] == summary["conditions"]
    page = (tmp_path / "index.html").read_text()
    assert "of the recordings&#39; own tokens" in page


def test_groups_of_the_recording_itself_are_counted(model: Whisper, corpus: Path) -> None:
    from affinity_pool.study.runs.conditions import _heard

    heard = torch.arange(10) < 6
    assert _heard(heard, None) == [6]
    assert _heard(heard, torch.tensor([0, 0, 1, 1, 2, 2, 2, 2, 3, 3])) == [6, 3]
    assert _heard(heard, torch.tensor([0, -1, -1, 1, -1, -1, 2, 2, 3, 3])) == [6, 2]


def test_the_demo_shows_both_transcripts_and_a_picture(whisper: Path, corpus: Path, tmp_path: Path) -> None:
    audio = corpus.parent / "1.wav"
    summary = ran("demo", whisper, tmp_path, "--audio", audio, "--text", "one two", "--runs", 6)
    assert summary["config"]["sites"] == [{"layer": "memory", "threshold": 0.96, "window": 1}]
    assert summary["config"]["attention"] == "proportional"
    (clip,) = summary["clips"]
    assert clip["audio_tokens"][0] == 100
    assert clip["heard_tokens"][0] == 95
    assert 0 < clip["heard_tokens"][1] <= clip["audio_tokens"][1]
    assert clip["kv_bytes"]["pooled"] == clip["kv_bytes"]["unpooled"] * clip["audio_tokens"][1] // 100
    assert (tmp_path / "groups.png").stat().st_size > 10_000


def test_dynamics_are_of_the_encoders_layers(whisper: Path, model: Whisper, corpus: Path, tmp_path: Path) -> None:
    summary = ran("dynamics", whisper, tmp_path, "--data", corpus, "--task", "transcribe")
    assert [layer["layer"] for layer in summary["layers"]] == [0, 1, 2, 3]
    seen: list[torch.Tensor] = []
    inputs = model.inputs(open_data(corpus)[0].load(model.rate), "transcribe")
    with model.hidden_states(seen.append):
        model.generate(inputs, longest=1)
    own = model.model.get_encoder()(inputs["input_features"], output_hidden_states=True)
    assert torch.equal(seen[0], own.hidden_states[0])
    assert torch.equal(seen[-1], own.last_hidden_state)


def test_cost_measures_batches(whisper: Path, clips: Path, tmp_path: Path) -> None:
    options = "--rounds", 6, "--new-tokens", 3, "--batch", "1,2", "--idle"
    sites = "--sites", "memory:keep=0.2", "--attention", "proportional"
    summary = ran(
        "cost", whisper, tmp_path, "--data", clips / "manifest.jsonl", "--prompt", "transcribe", *sites, *options
    )
    assert [result["name"] for result in summary["results"]] == ["one recording", "batch 2"]
    for result in summary["results"]:
        assert result["tokens"] == [100, 20]
        assert result["kv_bytes"][0] == 5 * result["kv_bytes"][1]
        assert "pooling, memory" in result["parts"]["pooled"]
        assert "pooling, memory" not in result["parts"]["unpooled"]
        assert result["flops"]["ratio"] < 1
    assert summary["method"]["attention"] == "proportional"


def test_cost_of_a_config_keeps_a_share(whisper: Path, tmp_path: Path) -> None:
    options = "--rounds", 6, "--new-tokens", 2, "--device", "cpu", "--out", tmp_path
    code, said = invoke("cost", "--random-weights", whisper, *options)
    assert code == 0, said
    (case,) = json.loads((tmp_path / "summary.json").read_text())["results"]
    assert case["tokens"] == [100, 20]
    assert config_of("whisper-large-v3-turbo").decoder_layers == 4


def test_an_answer_has_exactly_as_many_tokens_as_asked_for(model: Whisper, corpus: Path) -> None:
    inputs = model.inputs(open_data(corpus)[0].load(model.rate), "transcribe")
    assert model.generate(inputs, 7, exactly=True).shape == (1, 7)
    seen: list[torch.Tensor] = []
    model.generate(inputs, 3, seen.append)
    assert [logits.shape for logits in seen] == [(1, model.config.vocab_size)]


# What cannot work.


def test_more_tokens_than_there_is_room_for(model: Whisper, corpus: Path) -> None:
    inputs = model.inputs(open_data(corpus)[0].load(model.rate), "transcribe")
    with pytest.raises(InputError, match="500 new tokens are more than the 60"):
        model.generate(inputs, 500, exactly=True)


def test_positions_of_what_has_none(whisper: Path, corpus: Path, tmp_path: Path) -> None:
    file = tmp_path / "sites.json"
    file.write_text(json.dumps({"sites": [{"layer": "memory", "keep": 0.5}], "positions": "compact"}))
    options = "--data", corpus, "--out", tmp_path / "out", "--device", "cpu"
    assert "positions='compact'" in refused("eval", "--model", whisper, "--sites", file, *options)


@pytest.mark.parametrize("command", ["probe", "oracle", "calibrate"])
def test_what_is_about_layers_that_audio_passes(command: str, whisper: Path, corpus: Path, tmp_path: Path) -> None:
    budget = ["--flops", "0.8"] if command == "calibrate" else []
    out = "--out", tmp_path / "out", "--device", "cpu"
    said = refused(command, "--model", whisper, "--data", corpus, *out, *budget)
    assert f"{command} is about the decoder layers that audio tokens pass" in said


def test_other_questions_than_what_is_said(model: Whisper, whisper: Path, corpus: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="can only be asked to transcribe here"):
        model.check_prompt("translate to French")
    options = "--model", whisper, "--data", corpus, "--out", tmp_path / "out", "--device", "cpu"
    assert "not one recording could be used" in refused("eval", *options, "--task", "first", "--sites", "memory")


def test_sites_that_it_does_not_have(whisper: Path, corpus: Path, clips: Path, tmp_path: Path) -> None:
    options = "--data", corpus, "--out", tmp_path / "out", "--device", "cpu"
    for sites in ("aggressive", "0:0.9:1", "memory:0.9:1,0:0.9:1"):
        assert "an encoder-decoder model has one site" in refused(
            "eval", "--model", whisper, "--sites", sites, *options
        )
    options = "--data", clips / "manifest.jsonl", "--out", tmp_path / "out", "--device", "cpu"
    said = refused("cost", "--model", whisper, "--lengths", "1", *options)
    assert "Whisper has as many for" in said


def test_models_of_their_own_tokens_are_not_measured_by_batch(folder: Path, clips: Path, tmp_path: Path) -> None:
    options = "--data", clips / "manifest.jsonl", "--out", tmp_path / "out", "--device", "cpu"
    assert "--batch needs --random-weights" in refused("cost", "--model", folder, "--batch", "2", *options)
