"""Sites as users write them are the sites they get, and the sites that results tell of."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from affinity_pool.models import Site
from affinity_pool.models.settings import FILE, PRESETS, preset, sites_json
from affinity_pool.study.errors import InputError
from affinity_pool.study.sites import format_sites, parse_sites, rule_name, site_name

SPECS = {
    "0:0.9:1,7:0.85:3": (Site(0, 0.9, 1), Site(7, 0.85, 3)),
    "0:keep=0.5,7:0.85:3": (Site(0, keep=0.5), Site(7, 0.85, 3)),
    "0:0.9:1,7:keep=0.1896": (Site(0, 0.9, 1), Site(7, keep=0.1896)),
    "3:keep=1.0": (Site(3, keep=1.0),),
    f"3:keep={1 / 3}": (Site(3, keep=1 / 3),),
    "7:0.8500001:3": (Site(7, 0.8500001, 3),),
}


@pytest.mark.parametrize("spec", SPECS)
def test_sites_read_as_they_are_written(spec: str) -> None:
    choice = parse_sites(spec, 8)
    assert choice.pooling.sites == SPECS[spec]
    assert choice.name == spec == format_sites(choice.pooling.sites)


@pytest.mark.parametrize("spec", SPECS)
def test_sites_in_a_file_are_those_that_results_hold(spec: str, tmp_path: Path) -> None:
    (tmp_path / FILE).write_text(json.dumps({"sites": sites_json(SPECS[spec])}))
    choice = parse_sites(str(tmp_path), 8)
    assert (choice.pooling.sites, choice.name) == (SPECS[spec], spec)
    assert tuple(Site(**entry) for entry in sites_json(choice.pooling.sites)) == SPECS[spec]


def test_the_name_tells_the_attention_unless_it_is_plain(tmp_path: Path) -> None:
    assert parse_sites("0:0.9:1", 8).pooling.attention == "plain"
    choice = parse_sites("0:0.9:1", 8, "proportional")
    assert (choice.name, choice.pooling.attention) == ("0:0.9:1, proportional", "proportional")
    (tmp_path / FILE).write_text(json.dumps({"sites": [{"layer": 0, "keep": 0.5}], "attention": "proportional"}))
    assert parse_sites(str(tmp_path), 8) == parse_sites("0:keep=0.5", 8, "proportional")
    assert parse_sites(str(tmp_path), 8, "plain") == parse_sites("0:keep=0.5", 8)


@pytest.mark.parametrize("spec", ["memory:0.96:1", "memory:keep=0.2"])
def test_what_a_decoder_attends_to_is_a_site(spec: str) -> None:
    assert parse_sites(spec, None).name == spec
    (site,) = parse_sites(spec, None).pooling.sites
    assert site.layer == "memory"
    assert site_name(site) == "memory"
    assert parse_sites("memory", None).name == "memory (memory:0.96:1), proportional"
    with pytest.raises(InputError, match="an encoder-decoder model has one site"):
        parse_sites(f"{spec},0:0.9:1", None)


def test_a_decoder_of_ones_own_tokens_has_no_memory(tmp_path: Path) -> None:
    (tmp_path / FILE).write_text(json.dumps({"sites": [{"layer": "memory", "keep": 0.5}]}))
    with pytest.raises(InputError, match="'memory', but this model has no encoder that its decoder attends to"):
        parse_sites(str(tmp_path), 8)


@pytest.mark.parametrize("spec", ["0:keep=.5,7:0.850:3", " 0 : keep=0.50, 7:0.85: 3", "7:0.85:3,0:keep=5e-1"])
def test_the_same_sites_have_one_name(spec: str) -> None:
    assert parse_sites(spec, 8).name == "0:keep=0.5,7:0.85:3"


def test_a_preset_is_named_with_its_sites() -> None:
    for name in PRESETS:
        assert parse_sites(name, 8).name == f"{name} ({format_sites(preset(name, 8))})"
    assert parse_sites("aggressive-counted", 8).name == "aggressive-counted (0:keep=0.7864,7:keep=0.1896)"


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("0:keep=half", "'0:keep=half' is not LAYER:THRESHOLD:WINDOW or LAYER:keep=SHARE"),
        ("0:keep=0.5:3", "'0:keep=0.5:3' is not LAYER:THRESHOLD:WINDOW or LAYER:keep=SHARE"),
        ("0:keep=", "is not LAYER:THRESHOLD:WINDOW or LAYER:keep=SHARE"),
        ("0:share=0.5", "is not LAYER:THRESHOLD:WINDOW or LAYER:keep=SHARE"),
        ("0:keep", "is not LAYER:THRESHOLD:WINDOW or LAYER:keep=SHARE, as in 7:0.85:3, 7:keep=0.5, memory:0.96:1$"),
        ("0:keep=0.5,", "'' is not LAYER:THRESHOLD:WINDOW"),
        ("0:0.9:1:2", "'0:0.9:1:2' is not LAYER:THRESHOLD:WINDOW"),
        ("0:0.9", "is not LAYER:THRESHOLD:WINDOW or LAYER:keep=SHARE"),
        ("0:keep=0", r"keep must be a share of rows in \(0, 1\], got 0.0"),
        ("0:keep=1.5", r"keep must be a share of rows in \(0, 1\], got 1.5"),
        ("0:keep=nan", "keep must be a share"),
        ("9:keep=0.5", "layers 0 to 7"),
    ],
)
def test_sites_that_cannot_be_are_told(spec: str, message: str) -> None:
    with pytest.raises(InputError, match=message):
        parse_sites(spec, 8)


def test_a_rule_is_named_in_words() -> None:
    assert rule_name(Site(0, 0.9, 1)) == "cosine ≥ 0.9, window 1"
    assert rule_name(Site(0, keep=0.7864)) == "0.7864 is kept"


def test_of_a_range_the_end_that_leaves_the_fewest_tokens(tmp_path):
    """As evaluation mode has it: a model that was trained with ranges carries them in its file."""
    entries = [{"layer": 0, "threshold": [0.85, 1.0], "window": 1}, {"layer": 7, "keep": [0.25, 1.0]}]
    (tmp_path / FILE).write_text(json.dumps({"sites": entries}))
    assert parse_sites(str(tmp_path), 8).name == "0:0.85:1,7:keep=0.25"
