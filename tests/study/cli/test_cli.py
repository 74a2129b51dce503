"""The command line from end to end, on a random model, and on the bundled one where it is."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from commands import invoke as run

from affinity_pool.cli.application import console
from affinity_pool.study.subject.lslm import BUNDLED


def test_demo_writes_page_pictures_and_summary(folder: Path, clips: Path, tmp_path: Path) -> None:
    """Without --sites the folder's own affinity_pool.json counts."""
    code, output = run(
        "demo", "--model", folder, "--data", clips / "manifest.jsonl", "--out", tmp_path, "--runs", 6, "--device", "cpu"
    )
    assert code == 0, output
    assert "WER over 2 words" in output
    assert "left out, with words outside the model's vocabulary: chord" in output
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "groups-dark.png",
        "groups.png",
        "index.html",
        "summary.json",
    ]
    summary = json.loads((tmp_path / "summary.json").read_text())
    assert [site["layer"] for site in summary["config"]["sites"]] == [0, 2]
    assert summary["config"]["attention"] == "plain"
    assert [clip["name"] for clip in summary["clips"]] == ["tone"]
    total = summary["total"]
    before, middle, after = total["audio_tokens"]
    assert before >= middle >= after
    assert before > after
    assert total["relative_decoder_flops"] < 1
    assert total["kv_bytes"]["pooled"] < total["kv_bytes"]["unpooled"]
    assert len(total["ttft_seconds"]["pairs"]) == 6
    page = (tmp_path / "index.html").read_text()
    assert "prefers-color-scheme: dark" in page
    assert page.count("data:image/png;base64,") == 2
    assert "$" not in page.split("</style>")[1].split("data:image")[0]
    assert "http" not in page.replace("base64", "")[:2000]


@pytest.mark.parametrize(
    ("sites", "rules"),
    [
        ("aggressive", "input: cosine ≥ 0.8, window 1; layer 3: cosine ≥ 0.7, window 3"),
        ("aggressive-counted", "input: 0.7864 is kept; layer 3: 0.1896 is kept"),
    ],
)
def test_demo_on_a_users_file_needs_no_reference(
    sites: str, rules: str, folder: Path, clips: Path, tmp_path: Path
) -> None:
    code, output = run(
        "demo", "--model", folder, "--audio", clips / "chord.flac", "--out", tmp_path, "--runs", 6, "--device", "cpu",
        "--sites", sites, "--prompt", "first", "--normaliser", "whisper", "--attention", "proportional",
    )  # fmt: skip
    assert code == 0, output
    assert "No reference texts, so no WER" in output
    summary = json.loads((tmp_path / "summary.json").read_text())
    assert summary["wer"] is None
    assert summary["config"]["normaliser"] == "whisper"
    assert summary["config"]["attention"] == "proportional"
    page = (tmp_path / "index.html").read_text()
    assert rules in page
    assert "Attention is proportional" in page


def test_names_with_brackets_and_dollars_are_shown_as_they_are(
    folder: Path, clips: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(console, "width", 120)  # names wrap where times are long, as on a busy machine
    names = ["Interview [dQw4w9WgXcQ]", "a[b]c", "[bold] $x$"]
    files = [shutil.copy(clips / "tone.wav", tmp_path / f"{name}.wav") for name in names]
    options = [part for file in files for part in ("--audio", file)]
    code, output = run("demo", "--model", folder, *options, "--out", tmp_path / "out", "--runs", 6, "--device", "cpu")
    assert code == 0, output
    for name in names:
        assert output.count(name) == 2  # above its answers, and in the table


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--audio", "absent.wav"], "no such recording: absent.wav"),
        (["--audio", "a.wav", "--audio", "b.wav", "--text", "one"], "2 recordings but 1 reference texts"),
        (["--text", "one"], "--text is the reference of an --audio"),
        (["--data", "absent.jsonl"], "cannot read the manifest"),
        (["--audio", "{clips}/tone.wav", "--sites", "moderate"], "neither a preset"),
        (["--data", "{clips}/manifest.jsonl", "--prompt", "last"], "no recording for the task 'last', only for first"),
    ],
)
def test_bad_input_ends_in_a_sentence(
    folder: Path, clips: Path, tmp_path: Path, arguments: list[str], message: str
) -> None:
    filled = [argument.format(clips=clips) for argument in arguments]
    code, output = run("demo", "--model", folder, "--out", tmp_path, "--device", "cpu", *filled)
    assert code == 2
    assert message in output
    assert "Traceback" not in output


def test_an_unsupported_model_is_named(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"model_type": "bert", "architectures": ["BertModel"]}')
    code, output = run("demo", "--model", tmp_path)
    assert code == 2
    assert "is a bert model; supported are" in output


def test_env_lists_backends_and_versions() -> None:
    code, output = run("env")
    assert code == 0
    assert "reference" in output
    assert "torch" in output
    assert "cpu" in output


def test_help_imports_nothing_heavy() -> None:
    code = (
        "import sys; from affinity_pool.cli.commands import app\n"
        "heavy = {'transformers', 'matplotlib', 'jiwer', 'affinity_pool.study.subject', 'affinity_pool.study.runs'} &"
        " set(sys.modules)\n"
        "assert not heavy, heavy"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_a_missing_extra_is_named() -> None:
    code = "import sys; sys.modules['transformers'] = None; from affinity_pool.cli.commands import main; main()"
    done = subprocess.run([sys.executable, "-c", code, "demo"], capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert "this command needs transformers: pip install 'affinity_pool[study]'" in " ".join(done.stdout.split())


@pytest.mark.skipif(not (BUNDLED / "checkpoint" / "model.safetensors").is_file(), reason="bundled model not there")
@pytest.mark.parametrize("task", ["first", "spanish"])
def test_the_bundled_model_shows_other_tasks(tmp_path: Path, task: str) -> None:
    code, output = run("demo", "--prompt", task, "--runs", 6, "--out", tmp_path, "--device", "cpu")
    assert code == 0, output
    assert f"asked: {task}" in output
