"""The plug-in as vLLM finds it: the releases that it is for, and what it looks at when an engine starts."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from importlib.metadata import entry_points
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import stand_in_vllm

from affinity_pool.serving.vllm import register, versions
from affinity_pool.serving.vllm.architectures import ARCHITECTURES


@pytest.fixture
def vllm() -> Iterator[SimpleNamespace]:
    with stand_in_vllm.installed() as found:
        yield found


def test_it_is_found_by_its_entry_point_and_imports_no_vllm():
    (found,) = entry_points(group="vllm.general_plugins", name="affinity_pool")
    assert found.value == "affinity_pool.serving.vllm:register"
    program = """
import sys
import affinity_pool.serving.vllm, affinity_pool.serving.vllm.engine, affinity_pool.serving.vllm.models
raise SystemExit("vllm" in sys.modules or "transformers" in sys.modules)
"""
    assert subprocess.run([sys.executable, "-c", program]).returncode == 0


def test_every_architecture_is_registered_and_again_changes_nothing(vllm):
    register()
    config_map = vllm.modules["vllm.model_executor.models.config"]["MODELS_CONFIG_MAP"]
    first = dict(config_map)
    assert set(vllm.registry.registered) == set(ARCHITECTURES)
    assert set(first) == {*ARCHITECTURES, "WhisperForConditionalGeneration", "TransformersMultiModalForCausalLM"}
    assert vllm.registry.registered["UltravoxModel"] == "affinity_pool.serving.vllm.models:UltravoxModel-0.32.0"
    register()
    assert config_map == first
    assert vllm.logger.said == []


@pytest.mark.parametrize("version", ["0.30.1", "0.33.0", "0.310.0", "1.0.0", "dev", "0.32.1.dev3+g1", "0.32.0rc1"])
def test_another_release_keeps_its_own_classes_and_is_told_why(version):
    with stand_in_vllm.installed(version) as vllm:
        register()
    assert vllm.registry.registered == {}
    (said,) = vllm.logger.said
    assert said.startswith(f"warning: audio tokens are not pooled: this is vLLM {version}, affinity_pool was run with ")


@pytest.mark.parametrize("version", ["0.31.0", "0.32.0", "0.32.4+cpu"])
def test_the_releases_that_were_run(version):
    with stand_in_vllm.installed(version) as vllm:
        register()
    assert len(vllm.registry.registered) == len(ARCHITECTURES)


def test_a_seam_that_has_moved_keeps_its_own_classes_and_is_told_why(vllm, monkeypatch):
    processor = stand_in_vllm.BaseMultiModalProcessor
    monkeypatch.setattr(processor, "apply", lambda self, inputs, timing_ctx, more: None)
    register()
    monkeypatch.undo()
    monkeypatch.delattr(processor, "_get_mm_fields_config")
    register()
    assert vllm.registry.registered == {}
    moved, gone = vllm.logger.said
    assert "apply of vLLM 0.32.0 takes (self, inputs, timing_ctx, more), affinity_pool was made for (self, in" in moved
    assert "_get_mm_fields_config of vLLM 0.32.0 takes nothing: it is not there" in gone


@pytest.mark.parametrize("entry", versions.SEAM, ids=lambda entry: ".".join(entry[1:]))
def test_every_method_of_the_seam_is_looked_for(vllm, monkeypatch, entry):
    module, owner, name = entry
    assert versions.unfit() is None
    monkeypatch.delattr(vllm.modules[module][owner], name)
    assert f"{owner}.{name} of vLLM 0.32.0 takes nothing" in versions.unfit()


def test_models_that_need_more_than_the_seam_have_it(vllm):
    from affinity_pool.serving.vllm import models, special

    omni, voxtral = (
        getattr(models, f"{name}-0.32.0") for name in ("Qwen2_5OmniModel", "VoxtralForConditionalGeneration")
    )
    assert issubclass(omni, special.OmniModel)
    assert issubclass(voxtral._processor_factory.processor, special.ExpandedPromptProcessor)


def test_a_name_that_is_no_architecture_is_none(vllm):
    from affinity_pool.serving.vllm import models

    with pytest.raises(AttributeError, match="has no attribute 'WhisperModel-0'"):
        _ = getattr(models, "WhisperModel-0")


def engine_config(written: Any = None, **changed: Any) -> Any:
    """A vLLM configuration with one thing changed, by a dotted name with __ for the dots."""
    config = SimpleNamespace(
        model_config=SimpleNamespace(
            hf_config=SimpleNamespace(affinity_pool=written),
            multimodal_config=SimpleNamespace(mm_processor_kwargs=None, mm_encoder_only=False),
            max_model_len=1024,
        ),
        scheduler_config=SimpleNamespace(max_num_encoder_input_tokens=2048, max_num_seqs=8),
        lora_config=None,
        compilation_config=SimpleNamespace(cudagraph_mm_encoder=False),
        ec_transfer_config=None,
    )
    for name, value in changed.items():
        *path, last = name.split("__")
        at = config
        for part in path:
            at = getattr(at, part)
        setattr(at, last, value)
    return config


AROUND = {
    "lora_config": (SimpleNamespace(enable_tower_connector_lora=True), "LoRA on the audio tower"),
    "compilation_config__cudagraph_mm_encoder": (True, "CUDA graphs of the encoder"),
    "ec_transfer_config": (object(), "an encoder apart"),
    "model_config__multimodal_config__mm_encoder_only": (True, "an encoder apart"),
}


@pytest.mark.parametrize("name", AROUND)
def test_what_goes_around_the_seam_is_refused_when_the_engine_starts(vllm, name):
    from affinity_pool.serving.vllm import engine

    value, words = AROUND[name]
    with pytest.raises(ValueError, match=f"affinity_pool is in the model's config, but .*{words}"):
        engine.look_at(engine_config({"keep": 0.5}, **{name: value}))
    silent = engine_config(None, **{name: value})
    engine.look_at(silent)  # nobody has asked yet
    assert words in str(engine.of(silent.model_config).refusal)
    with pytest.raises(ValueError, match="affinity_pool is in the model's config, but "):
        engine.look_at(engine_config({"keep": {"min": 0.4}}, **{name: value}))


@pytest.mark.parametrize("written", [None, {"keep": 0.5}], ids=["alone", "beside the config"])
@pytest.mark.parametrize("kwargs", [{"affinity_pool": {"keep": 0.5}}, {"audio_kwargs": {"affinity_pool": 1}}], ids=str)
def test_a_default_in_the_engines_processor_kwargs_is_never_lost_in_silence(vllm, written, kwargs):
    from affinity_pool.serving.vllm import engine

    with pytest.raises(ValueError, match="where it would do nothing: a default for all requests belongs into the mod"):
        engine.look_at(engine_config(written, model_config__multimodal_config__mm_processor_kwargs=kwargs))


def test_an_engine_is_noted(vllm):
    from affinity_pool.serving.vllm import engine

    plain = engine_config(
        {"keep": {"min": 0.4, "default": 0.8}}, lora_config=SimpleNamespace(enable_tower_connector_lora=False)
    )
    engine.look_at(plain)
    noted = engine.of(plain.model_config)
    assert vars(plain.model_config.hf_config) == {"affinity_pool": {"keep": {"min": 0.4, "default": 0.8}}}  # JSON still
    assert (noted.settings.default, noted.settings.least, noted.encoder_budget, noted.refusal) == (0.8, 0.4, 2048, None)
    assert vllm.logger.said == ["info: audio tokens are pooled: 0.8 of them are left, requests may ask for 0.4 to 1"]
    one_at_a_time = engine_config(scheduler_config__max_num_seqs=1)
    engine.look_at(one_at_a_time)
    assert engine.of(one_at_a_time.model_config).encoder_budget == 1024


def test_a_model_that_is_not_pooled_does_not_start_with_the_key(vllm):
    """Nor one that is, served by another implementation (--model-impl transformers)."""
    register()
    name = "TransformersMultiModalForCausalLM"
    check = vllm.modules["vllm.model_executor.models.config"]["MODELS_CONFIG_MAP"][name]
    check.verify_and_update_config(engine_config(None, model_config__architecture=name))
    with pytest.raises(ValueError, match=f"vLLM serves it as {name}, which is not pooled: only Qwen2Audio"):
        check.verify_and_update_config(engine_config({"keep": 0.5}, model_config__architecture=name))


def test_settings_without_sense_stop_the_engine_before_it_loads(vllm):
    register()
    check = vllm.modules["vllm.model_executor.models.config"]["MODELS_CONFIG_MAP"]["UltravoxModel"]
    with pytest.raises(ValueError, match="affinity_pool: keep is the share"):
        check.verify_and_update_config(engine_config({"keep": 7}))


def test_a_check_that_the_architecture_has_of_its_own_is_made_too(vllm):
    made = []

    class Own(stand_in_vllm.VerifyAndUpdateConfig):
        @classmethod
        def verify_and_update_config(cls, vllm_config: Any) -> None:
            made.append(vllm_config)

    config_map = vllm.modules["vllm.model_executor.models.config"]["MODELS_CONFIG_MAP"]
    config_map["UltravoxModel"] = Own
    register()
    config = engine_config({"keep": 0.5})
    config_map["UltravoxModel"].verify_and_update_config(config)
    assert made == [config]
    from affinity_pool.serving.vllm import engine

    assert engine.of(config.model_config).settings.default == 0.5


def test_an_engine_that_was_never_looked_at_is_told(vllm):
    from affinity_pool.serving.vllm import engine

    with pytest.raises(RuntimeError, match="vLLM did not ask affinity_pool about the configuration of this engine"):
        engine.of(SimpleNamespace())


def test_the_page_names_every_model_and_every_release_that_was_run():
    page = (Path(__file__).parents[2] / "docs" / "serving.md").read_text(encoding="utf-8")
    rows = [line for line in page.splitlines() if line.startswith("| ") and "0.3" in line]
    for name in ARCHITECTURES:
        (row,) = [row for row in rows if f"`{name}`" in row]
        assert all(release in row for release in versions.RUN)
