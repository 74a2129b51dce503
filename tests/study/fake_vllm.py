"""What the serving experiment asks of vLLM, without a model: in this process, or ``python fake_vllm.py PORT``."""

from __future__ import annotations

import base64
import io
import json
import sys
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import soundfile

ANSWER = ["five", " nine", " two"]
PARTS = {"queue": 0.0, "prefill": 0.002, "decode": 0.001}
"""Seconds of a request that it tells of."""


class FakeVllm(ThreadingHTTPServer):
    """Remembers the requests, and how many there were at once."""

    daemon_threads = True

    def __init__(self, port: int = 0) -> None:
        super().__init__(("127.0.0.1", port), Handler)
        self.url = f"http://127.0.0.1:{self.server_address[1]}"
        self.seen: list[dict[str, Any]] = []
        self.most_at_once = 0
        self.pools = True
        self.tells = True
        """Of times, blocks and versions."""
        self.breaks_off = False
        self._now = 0
        self._lock = threading.Lock()

    def begin(self, request: dict[str, Any]) -> None:
        with self._lock:
            self.seen.append(request)
            self._now += 1
            self.most_at_once = max(self.most_at_once, self._now)

    def end(self) -> None:
        with self._lock:
            self._now -= 1

    def metrics(self) -> str:
        lines = ['vllm:cache_config_info{block_size="32",engine="0",num_gpu_blocks="512"} 1.0']
        for part, seconds in PARTS.items():
            for end, value in (("sum", seconds * len(self.seen)), ("count", len(self.seen))):
                lines.append(f'vllm:request_{part}_time_seconds_{end}{{engine="0",model_name="fake"}} {value}')
        return "# HELP nothing\n" + "\n".join(lines) + "\n"


class Handler(BaseHTTPRequestHandler):
    server: FakeVllm

    def log_message(self, *_: object) -> None: ...

    def do_GET(self) -> None:
        known = {
            "/health": "",
            "/v1/models": json.dumps({"object": "list", "data": [{"id": "fake", "object": "model"}]}),
        }
        if self.server.tells:
            known |= {"/version": '{"version": "0.0.1"}', "/metrics": self.server.metrics()}
        found = known.get(self.path)
        self._send(404 if found is None else 200, found or "")

    def do_POST(self) -> None:
        request = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        keep = request["mm_processor_kwargs"]["affinity_pool"]["keep"]
        if keep < 0.1:
            self._send(400, json.dumps({"error": {"message": "affinity_pool: keep must be in 0.1..1 on this server"}}))
            return
        self.server.begin(request)
        try:
            self._stream(request, keep if self.server.pools else 1.0)
        finally:
            self.server.end()

    def _stream(self, request: dict[str, Any], keep: float) -> None:
        self.send_response(200)
        self.send_header("Content-Type", "text/event-stream")
        self.end_headers()
        self._chunk({"role": "assistant", "content": ""})
        time.sleep(0.002)
        words = [" one"] * request["max_tokens"] if request.get("ignore_eos") else ANSWER[: 2 if keep < 1 else 3]
        for word in words:
            self._chunk({"content": word})
            if self.server.breaks_off:
                self.wfile.write(b"data: {")
                self.close_connection = True
                return
        samples, rate = soundfile.read(io.BytesIO(recording(request)))
        prompt = 20 + round(25 * len(samples) / rate * keep)
        if request["stream_options"]["include_usage"]:
            usage = {"prompt_tokens": prompt, "completion_tokens": len(words), "total_tokens": prompt + len(words)}
            self._event({"id": "1", "object": "chat.completion.chunk", "choices": [], "usage": usage})
        self.wfile.write(b"data: [DONE]\n\n")

    def _chunk(self, delta: dict[str, str]) -> None:
        choices = [{"index": 0, "delta": delta, "finish_reason": None}]
        self._event({"id": "1", "object": "chat.completion.chunk", "choices": choices})

    def _event(self, data: dict[str, Any]) -> None:
        self.wfile.write(f"data: {json.dumps(data)}\n\n".encode())

    def _send(self, code: int, body: str) -> None:
        self.send_response(code)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body.encode())))
        self.end_headers()
        self.wfile.write(body.encode())


def recording(request: dict[str, Any]) -> bytes:
    """The WAV file in a request."""
    (clip,) = (part for part in request["messages"][0]["content"] if part["type"] == "input_audio")
    return base64.b64decode(clip["input_audio"]["data"])


if __name__ == "__main__":
    print("the fake is up", flush=True)
    FakeVllm(int(sys.argv[1])).serve_forever()
