"""A server for rollouts that samples from real tiny models: it takes weights from folders, tells ids or not, may refuse."""

from __future__ import annotations

import contextlib
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import Any

from http_server import http_server

from posttrain.core.types import Completion, Message, Prompt, Sampling
from posttrain.engines.local.replies import drawn
from posttrain.models.load import LoadedModel, load


@dataclass
class PolicyServer:
    """What it knows; `asked` are (weights, messages, seed) of every sampling request, `took` the folders of updates."""

    update: str = "vllm"
    start: Path | None = None  # weights that it has before any update
    ids: bool = True
    logprobs: bool = True
    deaf: bool = False  # takes updates, and goes on with what it has
    refuses: dict[str, tuple[int, Any]] = field(default_factory=dict)  # path: status and answer
    url: str = ""
    took: list[str] = field(default_factory=list)
    asked: list[tuple[str, str, int]] = field(default_factory=list)
    held: dict[str, LoadedModel] = field(default_factory=dict)
    lock: threading.Lock = field(default_factory=threading.Lock)

    def ref(self, **more: Any) -> str:
        settings = {"url": self.url, "update": self.update, **more}
        return "openai:" + ",".join(f"{name}={value}" for name, value in settings.items())

    def take(self, folder: str) -> None:
        if not self.deaf:
            self.start = Path(folder)
        self.took.append(folder)
        self.loaded(folder)

    def loaded(self, folder: str) -> LoadedModel:
        """The model in a folder, as it was when first asked for: a name that is used again would bring old weights."""
        if folder not in self.held:
            self.held[folder] = load(Path(folder), dtype="float32")
        return self.held[folder]

    def answer(self, path: str, body: dict[str, Any]) -> tuple[int, Any]:
        if path in self.refuses:
            return self.refuses[path]
        if path == "/update_weights_from_disk" and self.update == "sglang":
            self.take(body["model_path"])
            return 200, {"success": True, "message": "Succeeded to update model weights."}
        if path == "/collective_rpc" and self.update == "vllm":
            assert body["method"] == "reload_weights"
            self.take(body["kwargs"]["weights_path"])
            return 200, {"results": [None]}
        if path == "/reset_prefix_cache" and self.update == "vllm":
            return 200, None
        return self.chat(body) if path == "/v1/chat/completions" else (404, {"detail": "Not Found"})

    def chat(self, body: dict[str, Any]) -> tuple[int, Any]:
        if not self.logprobs and "logprobs" in body:
            return 400, {"error": {"message": "logprobs: unsupported"}}
        name = body["model"]
        if self.update != "model_name" or self.deaf:
            name = str(self.start)
        if not Path(name).is_dir() and name not in self.held:
            return 404, {"error": {"message": f"no model {name}"}}
        if self.update == "model_name" and name not in self.took:
            self.took.append(name)
        loaded = self.loaded(name)
        messages = tuple(Message(role=m["role"], content=m["content"]) for m in body["messages"])
        sampling = Sampling(temperature=body.get("temperature", 1.0), max_tokens=body["max_tokens"])
        if sampling.temperature and "seed" in body:  # not one of the requests that find out what it can do
            self.asked.append((Path(name).name, messages[-1].content, body["seed"]))
        found, cost = drawn(
            loaded.model, loaded.tokenizer, [(Prompt(messages=messages), (0,))], sampling, seed=body.get("seed", 0),
            shape=loaded.shape,
        )  # fmt: skip
        return 200, {
            "model": name,
            "choices": [self.choice(found[0][0], loaded.tokenizer, body)],
            "usage": {"prompt_tokens": cost.usage.prompt, "completion_tokens": cost.usage.generated},
        }

    def choice(self, said: Completion, tokenizer: Any, body: dict[str, Any]) -> dict[str, Any]:
        ids = [*said.tokens, *([] if said.end_token is None else [said.end_token])]
        logps = [*(said.logprobs or ()), *([] if said.end_token is None else [said.end_logprob])]
        made: dict[str, Any] = {
            "index": 0, "message": {"role": "assistant", "content": said.text}, "finish_reason": said.finish,
            "stop_reason": None,
        }  # fmt: skip
        if self.ids and body.get("return_token_ids"):
            made["token_ids"] = ids
        if body.get("logprobs"):
            texts = [tokenizer.decode([i]) for i in ids]
            rows = zip(texts, logps, strict=True)
            made["logprobs"] = {"content": [{"token": t, "logprob": p, "bytes": list(t.encode())} for t, p in rows]}
        return made


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    server_of: PolicyServer

    def log_message(self, *_: Any) -> None:
        pass

    def send(self, status: int, body: Any) -> None:
        data = b"" if body is None else json.dumps(body).encode()
        self.send_response(status)
        self.send_header("content-type", "application/json")
        self.send_header("content-length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def do_GET(self) -> None:
        self.send(200, {"data": [{"id": "policy"}]}) if self.path == "/v1/models" else self.send(404, {})

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["content-length"])))
        if body.get("stream"):
            self.send(400, {"error": {"message": "no streams"}})
            return
        with self.server_of.lock:
            answer = self.server_of.answer(self.path, body)
        with contextlib.suppress(OSError):  # who asked was killed
            self.send(*answer)


@contextmanager
def policy_server(**changes: Any) -> Iterator[PolicyServer]:
    made = PolicyServer(**changes)
    with http_server(Handler, server_of=made) as made.url:
        yield made
