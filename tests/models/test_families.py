"""Small random models of every family hold the main claims, and what the table says of them is what their code does."""

from __future__ import annotations

import re
from typing import Any

import pytest
import torch
import transformers
from random_families import CASES, random_model, random_rows, sites_that_merge_half
from random_speech import AUDIO, LAYERS, batch, tokens

from affinity_pool.models import FAMILIES, Family, Site, patch
from affinity_pool.models.families import HOP, UNFIT, family_of


@pytest.fixture(params=CASES)
def case(request: pytest.FixtureRequest) -> tuple[Any, list[dict[str, torch.Tensor]]]:
    """A model and three rows it takes."""
    return random_model(request.param), random_rows(request.param)


@pytest.mark.parametrize(
    "sites", [[Site(0, 1.5), Site(2, 1.5)], [Site(0, keep=1.0), Site(2, keep=1.0)]], ids=["thresholds", "shares"]
)
def test_sites_at_which_nothing_merges_change_no_bit(case, sites):
    model, rows = case
    inputs = batch(rows)
    logits, generated = model(**inputs).logits, tokens(model, inputs)
    with patch(model, sites):
        assert torch.equal(model(**inputs).logits, logits)
        assert torch.equal(tokens(model, inputs), generated)


@pytest.mark.parametrize("shares", [False, True], ids=["thresholds", "shares"])
@pytest.mark.parametrize("positions", ["keep", "compact"])
def test_batch_equals_single_and_cache_equals_no_cache(case, positions, shares):
    model, rows = case
    inputs = batch(rows)
    for row, alone in zip(tokens(model, inputs), rows, strict=True):
        if not torch.equal(row, tokens(model, alone)[0]):
            pytest.skip(
                f"{type(model).__name__} of transformers {transformers.__version__} is not batch-invariant itself"
            )
    halves = [Site(0, keep=0.6), Site(LAYERS // 2, keep=0.5)]
    sites = halves if shares else sites_that_merge_half(model, inputs, positions)
    with patch(model, sites, positions=positions) as handle:
        together = tokens(model, inputs)
        assert all(site.audio_kept < 0.75 for site in handle.stats.sites)
        assert torch.equal(together, tokens(model, inputs, use_cache=False))
        for row, alone in zip(together, rows, strict=True):
            assert torch.equal(row, tokens(model, alone)[0])


def test_the_encoder_of_the_table_is_the_one_that_runs(case):
    model, rows = case
    calls = []
    hook = family_of(model).encoder(model).register_forward_hook(lambda *_: calls.append(1))
    try:
        model(**rows[0])
    finally:
        hook.remove()
    assert calls == [1]


def embeddings(model: Any, frames: int) -> int:
    """Audio embeddings the model makes of so many mel frames."""
    kind = model.config.model_type
    features = torch.zeros(1, 8, frames)
    mask = torch.ones(1, frames, dtype=torch.long)
    if kind.startswith("granite_speech"):
        made = model.get_audio_features(features.reshape(1, frames // 2, 16))
    elif kind == "phi4_multimodal":
        made = FAMILIES[kind].encoder(model)(features.transpose(1, 2), None)
    elif kind == "voxtral":
        made = getattr(model, "get_audio_features", getattr(model, "get_audio_embeds", None))(features)
    elif kind == "musicflamingo":
        made = model.get_audio_features(features, mask, input_ids=torch.full((1, frames // 4), AUDIO))
    else:
        made = model.get_audio_features(features, mask)
    if not isinstance(made, torch.Tensor):  # versions differ in what they wrap it in
        made = made.last_hidden_state if made.pooler_output is None else made.pooler_output
    return (made[0] if isinstance(made, tuple) else made).shape[-2]


LENGTHS: dict[str, Any] = {
    "voxtral": [120],
    "audioflamingo3": [120],
    "musicflamingo": [120],
    "qwen3_asr": [100, 200, 700],
    "glmasr": range(8, 121, 8),
    "granite_speech": range(8, 121, 8),
    "granite_speech_plus": range(8, 121, 8),
}
"""Mel frames that make whole windows, which is what a processor gives; the other encoders take any number."""


def test_a_token_stands_for_as_many_seconds_as_the_encoder_gives_it(case):
    model, _ = case
    kind = model.config.model_type
    seconds = FAMILIES[kind].token_seconds(model.config)
    for frames in LENGTHS.get(kind, range(4, 121)):
        assert embeddings(model, frames) * seconds == pytest.approx(frames * HOP, abs=0.99 * seconds)


def test_qwen2_audio_makes_a_token_of_forty_milliseconds(model):
    frames = torch.arange(4, 3001)
    _, made = FAMILIES["qwen2_audio"].encoder(model)._get_feat_extract_output_lengths(frames)
    seconds = FAMILIES["qwen2_audio"].token_seconds(model.config)
    torch.testing.assert_close(made * seconds, frames * HOP, rtol=0, atol=0.99 * seconds)


PUBLISHED = {
    "qwen2_audio": (0.04, lambda: transformers.Qwen2AudioConfig()),
    "voxtral": (0.08, lambda: transformers.VoxtralConfig()),
    "audioflamingo3": (0.04, lambda: transformers.AudioFlamingo3Config()),
    "musicflamingo": (0.04, lambda: transformers.MusicFlamingoConfig()),
    "glmasr": (0.08, lambda: transformers.GlmAsrConfig()),
    "qwen3_asr": (1 / 13, lambda: transformers.Qwen3ASRConfig()),
    "granite_speech": (0.1, lambda: transformers.GraniteSpeechConfig()),
    "granite_speech_plus": (0.1, lambda: transformers.GraniteSpeechPlusConfig()),
    "qwen2_5_omni_thinker": (0.04, lambda: transformers.Qwen2_5OmniThinkerConfig()),
    "phi4_multimodal": (0.08, lambda: transformers.Phi4MultimodalConfig()),
}


@pytest.mark.parametrize("kind", PUBLISHED)
def test_token_seconds_of_the_published_sizes(kind):
    seconds, config = PUBLISHED[kind]
    try:
        config = config()
    except AttributeError:
        pytest.skip(f"transformers {transformers.__version__} has no {kind}")
    assert FAMILIES[kind].token_seconds(config) == pytest.approx(seconds)


# What the phases of single families need.


def test_renumbering_follows_the_three_axes_of_multimodal_positions():
    """An image's grid before the clip, which merges into one token: what follows moves up by the tokens gone."""
    model = random_model("Qwen2_5OmniThinkerForConditionalGeneration")
    row = random_rows("Qwen2_5OmniThinkerForConditionalGeneration")[2] | {"use_cache": False}
    ids = torch.cat([torch.arange(20, 25)[None], row["input_ids"]], 1)  # five tokens more: "ab" is now seven
    row |= {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    grid = torch.tensor([[0, 1, 1, 1, 1], [0, 1, 1, 2, 2], [0, 1, 2, 1, 2]])
    after = torch.arange(3, 3 + ids.shape[1] - 5).expand(3, -1)
    positions = torch.cat([grid, after], 1)[:, None]
    decoder = FAMILIES["qwen2_5_omni_thinker"].decoder(model)
    caught = []
    hook = decoder.layers[0].register_forward_pre_hook(lambda layer, args: caught.append(args[0]))
    model(**row, position_ids=positions)
    hook.remove()
    audio = ids[0] == AUDIO
    (start,) = audio.nonzero()[0].tolist()
    merged = caught[0][:, audio].mean(1, keepdim=True)
    hidden = torch.cat([caught[0][:, :start], merged, caught[0][:, start + int(audio.sum()) :]], 1)
    expected = positions[..., : hidden.shape[1]]  # a clip of one token, and text behind it
    logits = model.get_output_embeddings()(decoder(inputs_embeds=hidden, position_ids=expected).last_hidden_state)
    with patch(model, [Site(0, -1.0, 1)], positions="compact"):
        torch.testing.assert_close(model(**row, position_ids=positions).logits, logits, rtol=1e-3, atol=1e-3)


def test_a_window_that_cuts_is_refused_and_a_wider_one_than_the_model_is_not():
    model = random_model("Phi4MultimodalForCausalLM")
    assert model.config.sliding_window == model.config.max_position_embeddings
    with patch(model, [Site(0, -1.0)]) as handle:
        cache = model(**random_rows("Phi4MultimodalForCausalLM")[0]).past_key_values
        assert handle.stats.kv_bytes_saved > 0
        cache.reset()
    model.config.sliding_window = 100
    try:
        with pytest.raises(NotImplementedError, match=r"last 100 tokens only \(config.sliding_window\).*to None"):
            patch(model)
    finally:
        model.config.sliding_window = model.config.max_position_embeddings


@pytest.mark.parametrize("kind", UNFIT)
def test_models_that_do_not_fit_are_refused_with_the_reason(kind):
    class Model(torch.nn.Module):
        config = transformers.PretrainedConfig()

    Model.config.model_type = kind
    with pytest.raises(
        NotImplementedError, match=re.escape(f"Model (model_type '{kind}') cannot be pooled: {UNFIT[kind]}")
    ):
        patch(Model())


def test_a_family_can_be_added_from_outside(model, speech, monkeypatch):
    def decoder(model: Any) -> Any:
        return next(module for module in model.modules() if type(module).__name__ == "Qwen2Model")

    monkeypatch.setitem(FAMILIES, "qwen2_audio", Family("input_features", decoder, lambda config: AUDIO))
    with patch(model, [Site(0, 0.7, 1)]) as handle:
        model(**speech)
        assert handle.stats.kv_bytes_saved > 0
