"""A run's folder: nobody's files are overwritten, what was written is read back, and what has changed is noticed."""

from __future__ import annotations

import errno
import json
import os
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from commands import invoke as command
from hypothesis import given, settings
from hypothesis import strategies as st

from affinity_pool.study.data import digests, open_data
from affinity_pool.study.errors import InputError
from affinity_pool.study.runs import folders
from affinity_pool.study.runs.batches import Plan, run
from affinity_pool.study.runs.conditions import UNPOOLED, Answering
from affinity_pool.study.runs.resume import OneProcess, Resumable, as_line
from affinity_pool.study.subject.lslm import Lslm, load


@pytest.fixture(scope="module")
def lslm(folder: Path) -> Lslm:
    return load(str(folder), "cpu")


@pytest.fixture
def small(corpus: Path, tmp_path: Path) -> Path:
    """A manifest of two recordings of its own."""
    for name in ("0.wav", "3.wav"):
        shutil.copy(corpus.parent / name, tmp_path)
    lines = [{"audio": "0.wav", "text": "one two"}, {"audio": "3.wav", "text": "one\u2028two \u0085 é"}]
    (tmp_path / "m.jsonl").write_text("\n".join(json.dumps(line, ensure_ascii=False) for line in lines), "utf-8")
    return tmp_path / "m.jsonl"


def records(lslm: Lslm, data: Path, out: Path) -> Sequence[Any]:
    return run(lslm, open_data(data), Plan("test", "m", {}, 1), out, Answering(lslm, [UNPOOLED], longest=2)).rows


# What was written is read back.


def test_line_separators_in_texts_do_not_cut_lines(lslm: Lslm, small: Path, tmp_path: Path) -> None:
    found = records(lslm, small, tmp_path / "out")
    assert [record["reference"] for record in found] == ["one two", "one\u2028two \u0085 é"]
    assert records(lslm, small, tmp_path / "out") == found


DAMAGES = {
    "cut inside a character": b'{"batch": 0, "records": [{"utterance": "\xe5\x85',
    "cut in a number": b'{"batch": 0, "records": [{"utterance": "0", "seconds": 1.',
    "empty": b"",
    "zeros": bytes(4096),
    "no records": b'{"batch": 0}\n',
    "of a batch that is not there": b'{"batch": 7, "records": [{"utterance": "0"}]}\n',
    "of other recordings": b'{"batch": 0, "records": [{"utterance": "x"}]}\n',
    "a list": b"[1, 2]\nnull\n3\n",
    "deep": b"[" * 100_000 + b"\n",
    "numbers as records": b'{"batch": 0, "records": [1]}\n{"batch": true, "records": []}\n',
    "a record less": b'{"batch": 0, "records": [{"utterance": "0"}], "crc": 5}\n',
    "a text as a number": b'{"batch": "0", "records": {}}\n',
}


@pytest.mark.parametrize("damage", DAMAGES.values(), ids=DAMAGES)
def test_parts_that_are_not_what_was_written_are_done_again(
    lslm: Lslm, small: Path, tmp_path: Path, damage: bytes
) -> None:
    out = tmp_path / "out"
    found = records(lslm, small, out)
    (out / "parts" / "0.jsonl").write_bytes(damage)
    assert records(lslm, small, out) == found
    assert records(lslm, small, out) == found


@pytest.mark.parametrize("content", [None, b"", b"{", b"\xff\xfe", b"[]", b"{}", bytes(100)])
@pytest.mark.parametrize("name", ["run.json", "provenance.json"])
def test_a_run_whose_head_is_lost_goes_on_or_begins_again(
    lslm: Lslm, small: Path, tmp_path: Path, name: str, content: bytes | None
) -> None:
    out = tmp_path / "out"
    found = records(lslm, small, out)
    (out / name).unlink()
    if content is not None:
        (out / name).write_bytes(content)
    assert records(lslm, small, out) == found
    about = json.loads((out / "provenance.json").read_text())
    assert about["versions"]
    assert ("note" in about) == (name == "provenance.json")


def test_parts_of_a_run_that_nobody_knows_are_not_taken_for_this_one_s(lslm: Lslm, small: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    found = records(lslm, small, out)
    part = out / "parts" / "1.jsonl"
    part.write_text(json.dumps({"batch": 0, "records": [{"utterance": "0", "answer": "of another run"}]}) + "\n")
    (out / "run.json").write_text("")
    assert records(lslm, small, out) == found


PART = as_line(0, [{"utterance": "0", "answer": "é\u2028", "seconds": 0.1}]).encode()[:-1]


@settings(max_examples=max(300, settings.default.max_examples), deadline=None)
@given(st.integers(0, len(PART)), st.integers(0, 9), st.binary(max_size=9), st.binary(max_size=9))
def test_a_damaged_line_is_no_batch_or_is_the_one_it_was(
    tmp_path_factory: pytest.TempPathFactory, at: int, length: int, put: bytes, behind: bytes
) -> None:
    parts = tmp_path_factory.getbasetemp() / "fuzzed" / "parts"
    parts.mkdir(parents=True, exist_ok=True)
    (parts / "0.jsonl").write_bytes(PART[:at] + put + PART[at + length :] + b"\n" + behind)
    found = Resumable(parts.parent, {}, {}, [["0"]], "utterance", "cpu", OneProcess()).done()
    assert found in ({}, {0: [{"utterance": "0", "answer": "é\u2028", "seconds": 0.1}]})


@settings(max_examples=60, deadline=None)
@given(st.recursive(st.none() | st.booleans() | st.floats(allow_nan=False) | st.text(), st.lists, max_leaves=5))
def test_any_text_survives(tmp_path_factory: pytest.TempPathFactory, value: Any) -> None:
    path = tmp_path_factory.mktemp("text") / "file.json"
    for text in (value, [value, "\ud83d", "\udce9.flac", "\u2028", "\0", "😀"]):
        folders.write_json(path, text)
        assert folders.read(path) == text
        folders.write(path, folders.dumps(text) + "\n" + folders.dumps(text)[:-1])
        assert list(folders.read_lines(path))[:1] == [text]


@settings(max_examples=300, deadline=None)
@given(st.binary(max_size=60) | st.text(max_size=60).map(lambda text: text.encode("utf-8", "surrogatepass")))
def test_no_bytes_end_in_a_traceback(tmp_path_factory: pytest.TempPathFactory, content: bytes) -> None:
    path = tmp_path_factory.getbasetemp() / "any.json"
    path.write_bytes(content)
    folders.read(path)
    list(folders.read_lines(path))


def test_writing_leaves_what_is_there_if_it_fails(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folders.write(tmp_path / "file", "before")

    def full(*_: Any) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(InputError, match=r"cannot write to .*file: No space left on device"):
        folders.write(tmp_path / "file", "after")
    assert (tmp_path / "file").read_text() == "before"
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_a_model_that_fails_is_not_taken_for_a_disk_that_does(lslm: Lslm, small: Path, tmp_path: Path) -> None:
    def fails(batch: Any) -> Any:
        raise OSError("of the model's own")

    with pytest.raises(OSError, match="of the model's own"):
        run(lslm, open_data(small), Plan("test", "m", {}, 1), tmp_path / "out", fails)


def test_a_disk_that_fills_up_in_a_run_is_told_and_the_run_goes_on_later(
    lslm: Lslm, small: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out"
    own = Path.open

    class Filling:
        """A part file on a disk that has room for one batch."""

        def __init__(self, file: Any) -> None:
            self.file, self.lines = file, 0

        def write(self, text: str) -> None:
            self.lines += bool(text.strip())
            if self.lines > 1:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            self.file.write(text)

        def __getattr__(self, name: str) -> Any:
            return getattr(self.file, name)

        def __enter__(self) -> Filling:
            return self

        def __exit__(self, *_: object) -> None:
            self.file.close()

    def opened(path: Path, *arguments: Any, **options: Any) -> Any:
        file = own(path, *arguments, **options)
        return Filling(file) if path.parent.name == "parts" and arguments[:1] == ("a",) else file

    monkeypatch.setattr(Path, "open", opened)
    with pytest.raises(InputError, match=r"0\.jsonl: No space left on device.*started again, the run goes on"):
        records(lslm, small, out)
    monkeypatch.undo()
    assert [record["utterance"] for record in records(lslm, small, out)] == ["0", "3"]


# Nobody's files are overwritten.


@pytest.mark.parametrize("name", ["eval", "demo", "cost", "calibrate"])
def test_a_folder_with_somebody_s_files_is_refused_before_the_model_loads(
    small: Path, tmp_path: Path, name: str
) -> None:
    out = tmp_path / "site"
    for file, content in (("index.html", "precious"), ("results.jsonl", '{"mine": 1}\n'), ("run.json", '{"a": 1}')):
        shutil.rmtree(out, ignore_errors=True)
        out.mkdir()
        (out / file).write_text(content)
        options = ["--flops", "0.9"] if name == "calibrate" else []
        code, output = command(name, "--model", tmp_path / "absent", "--data", small, "--out", out, *options)
        assert code == 2
        assert f"holds files that are not of a run, such as '{file}'" in output
        assert (out / file).read_text() == content
        assert len(list(out.iterdir())) == 1


def test_another_command_s_results_are_not_overwritten(folder: Path, small: Path, tmp_path: Path) -> None:
    common = ["--model", folder, "--data", small, "--out", tmp_path / "out", "--device", "cpu"]
    assert command("dynamics", *common)[0] == 0
    page = (tmp_path / "out" / "index.html").read_bytes()
    for name in ("eval", "demo", "cost", "probe"):
        code, output = command(name, *common)
        assert code == 2
        assert "holds what 'dynamics' has written" in output
    assert (tmp_path / "out" / "index.html").read_bytes() == page
    shutil.rmtree(tmp_path / "out")
    assert command("demo", *common, "--runs", 6)[0] == 0
    assert "holds what 'demo' has written" in command("eval", *common)[1]
    assert command("demo", *common, "--runs", 6)[0] == 0


def test_a_folder_that_is_empty_or_holds_leftovers_is_taken(lslm: Lslm, small: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    (out / "empty").mkdir(parents=True)
    (out / "run.json").touch()
    (out / f"{folders.ASIDE}x").write_text("half")
    assert records(lslm, small, out)


@pytest.mark.parametrize("where", ["file", "file/below"])
def test_a_folder_that_cannot_be_is_told_before_the_model_loads(small: Path, tmp_path: Path, where: str) -> None:
    (tmp_path / "file").touch()
    code, output = command("eval", "--model", tmp_path / "absent", "--data", small, "--out", f"{tmp_path}/{where}")
    assert code == 2
    assert "cannot write to" in output


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_a_folder_that_is_read_only_is_told(tmp_path: Path) -> None:
    (tmp_path / "out").mkdir(mode=0o500)
    with pytest.raises(InputError, match=r"cannot write to .*out: Permission denied"):
        folders.take(tmp_path / "out", "eval")


# What has changed is noticed.


def test_texts_corrected_in_place_are_another_run(lslm: Lslm, small: Path, tmp_path: Path) -> None:
    before = records(lslm, small, tmp_path / "out")
    small.write_text(small.read_text("utf-8").replace("one two", "two two"), "utf-8")
    with pytest.raises(InputError, match="same settings on other texts, tasks, languages or words"):
        records(lslm, small, tmp_path / "out")
    assert records(lslm, small, tmp_path / "new")[0]["reference"] != before[0]["reference"]


def test_recordings_replaced_under_their_names_are_another_run(lslm: Lslm, small: Path, tmp_path: Path) -> None:
    records(lslm, small, tmp_path / "out")
    about = (tmp_path / "0.wav").stat()
    content = bytearray((tmp_path / "0.wav").read_bytes())
    content[len(content) // 2] ^= 1
    (tmp_path / "0.wav").write_bytes(content)
    os.utime(tmp_path / "0.wav", ns=(about.st_atime_ns, about.st_mtime_ns))
    with pytest.raises(InputError, match="on other recordings: they have changed since"):
        records(lslm, small, tmp_path / "out")


def test_recordings_that_are_only_touched_are_the_same(lslm: Lslm, small: Path, tmp_path: Path) -> None:
    found = records(lslm, small, tmp_path / "out")
    os.utime(tmp_path / "0.wav")
    assert records(lslm, small, tmp_path / "out") == found


def test_weights_replaced_under_the_same_path_are_another_run(folder: Path, small: Path, tmp_path: Path) -> None:
    checkpoint = shutil.copytree(folder, tmp_path / "checkpoint")
    first = load(str(checkpoint), "cpu")
    records(first, small, tmp_path / "out")
    with torch.no_grad():
        first.model.get_output_embeddings().weight.zero_()
    first.model.save_pretrained(checkpoint)
    with pytest.raises(InputError, match="on other model files"):
        records(load(str(checkpoint), "cpu"), small, tmp_path / "out")


def test_a_large_file_counts_by_size_time_and_a_sample(tmp_path: Path) -> None:
    path = tmp_path / "weights"
    path.write_bytes(bytes(digests.SMALL + 10))
    before = digests.of_file(path)
    assert digests.of_file(path) == before
    about = path.stat()
    with path.open("r+b") as file:
        file.seek(-1, os.SEEK_END)
        file.write(b"x")
    os.utime(path, ns=(about.st_atime_ns, about.st_mtime_ns))
    assert digests.of_file(path) != before
    os.utime(path, ns=(0, 0))
    assert digests.of_file(path)[1] == 0


def test_word_times_changed_in_their_folder_are_another_run(folder: Path, small: Path, tmp_path: Path) -> None:
    grids = tmp_path / "grids"
    grids.mkdir()
    before = digests.of_word_times(str(grids))
    (grids / "0.TextGrid").write_text("x")
    assert digests.of_word_times(str(grids)) != before
    assert digests.of_word_times("manifest") == digests.of_word_times(None) == {}


def test_positions_changed_in_a_sites_file_are_another_run(folder: Path, small: Path, tmp_path: Path) -> None:
    sites = {"sites": [{"layer": 0, "threshold": 0.9, "window": 1}]}
    file = tmp_path / "sites.json"
    arguments = ["eval", "--model", folder, "--data", small, "--out", tmp_path / "out", "--device", "cpu"]
    arguments += ["--baselines", "none", "--longest", 2, "--sites", file]
    file.write_text(json.dumps({**sites, "positions": "keep"}))
    assert command(*arguments)[0] == 0
    file.write_text(json.dumps({**sites, "positions": "compact"}))
    code, output = command(*arguments)
    assert code == 2
    assert "other settings (positions)" in output
    file.write_text(json.dumps({**sites, "attention": "proportional"}))
    code, output = command(*arguments)
    assert code == 2
    assert "other settings (attention, conditions)" in output


def test_a_changed_judge_is_another_run(folder: Path, small: Path, tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.syspath_prepend(tmp_path)
    judge = tmp_path / "strict_judge.py"
    judge.write_text("def grade(question, reference, answer):\n    return 1\n")
    __import__("strict_judge")
    before = digests.of_judge("strict_judge:grade")
    judge.write_text("def grade(question, reference, answer):\n    return 0\n")
    assert digests.of_judge("strict_judge:grade") != before
