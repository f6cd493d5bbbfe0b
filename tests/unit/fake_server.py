"""A loopback server that speaks the OpenAI protocol: a toy model of words, features to switch off, failures to inject."""

from __future__ import annotations

import json
import re
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler
from typing import Any

from http_server import http_server

Failure = Callable[["Handler"], None]
KNOWN = {"model", "messages", "max_tokens", "temperature", "top_p", "top_k", "min_p", "repetition_penalty", "seed",
         "stop", "logprobs", "top_logprobs", "n", "stream", "stream_options",
         "add_generation_prompt", "continue_final_message"}  # fmt: skip


def words(text: str) -> list[str]:
    return re.findall(r"\s*\S+|\s+$", text)


@dataclass
class Fake:
    """What the server knows and does; `requests` are the bodies of the chat requests, in order of arrival."""

    reply: Callable[[dict[str, Any], int], str] = lambda body, choice: "one two three four five six"
    models: list[str] = field(default_factory=lambda: ["toy"])
    key: str | None = None
    refused: frozenset[str] = frozenset()  # fields answered with 400
    logprobs: bool = True
    stops: str = "named"  # kept, named, hidden
    prefix: str | None = "flags"  # flags, nature, None
    trims: bool = False
    ids: bool = False
    context: int = 10_000
    most: int = 100  # choices in one answer
    usage: bool = True
    failures: list[Failure] = field(default_factory=list)  # one a request, then none
    pause: float = 0.0
    requests: list[dict[str, Any]] = field(default_factory=list)
    headers: list[dict[str, str]] = field(default_factory=list)
    at_once: int = 0
    most_at_once: int = 0
    broken_off: threading.Event = field(default_factory=threading.Event)
    lock: threading.Lock = field(default_factory=threading.Lock)
    url: str = ""

    def prompt_tokens(self, body: dict[str, Any]) -> int:
        count = 0
        for at, message in enumerate(body["messages"]):
            last = at == len(body["messages"]) - 1 and message["role"] == "assistant"
            continued = int(
                last and (self.prefix == "nature" or (self.prefix == "flags" and bool(body.get("continue_final_message"))))
            )
            text = message["content"].rstrip() if self.trims else message["content"]
            count += len(words(text)) + 2 - 2 * continued  # marks around each turn
        return count + 2  # the opened turn

    def choice(self, body: dict[str, Any], index: int) -> dict[str, Any]:
        said = words(self.reply(body, index))
        finish = "stop"
        if len(said) >= body["max_tokens"]:
            said, finish = said[: body["max_tokens"]], "length"
        text, reason, tokens = "".join(said), None, len(said) + (finish == "stop")
        for stop in body.get("stop") or []:
            at = text.find(stop)
            if at >= 0:
                text, finish, reason = text[: at + len(stop) * (self.stops == "kept")], "stop", stop
        made: dict[str, Any] = {"index": index, "message": {"role": "assistant", "content": text}, "finish_reason": finish}
        if self.stops == "named":
            made["stop_reason"] = reason
        if body.get("logprobs") and self.logprobs:
            made["logprobs"] = {"content": [self.entry(word, n, body) for n, word in enumerate(said)]}
            if finish == "stop" and reason is None:
                made["logprobs"]["content"].append(self.entry("<|end|>", 99, body))
        return made | {"_tokens": tokens}

    def entry(self, word: str, n: int, body: dict[str, Any]) -> dict[str, Any]:
        one = {"token": word, "logprob": -0.5 - n, "bytes": list(word.encode())} | ({"id": n} if self.ids else {})
        return one | {
            "top_logprobs": [{**one, "token": f"{word}{k}", "bytes": None} for k in range(body.get("top_logprobs", 0))]
        }


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    fake: Fake

    def log_message(self, *_: Any) -> None:
        pass

    def send(self, status: int, body: Any, **headers: str) -> None:
        data = body if isinstance(body, bytes) else json.dumps(body).encode()
        self.send_response(status)
        for name, value in ({"content-type": "application/json", "content-length": str(len(data))} | headers).items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        self.wfile.write(data)

    def refused(self) -> bool:
        if self.fake.key is not None and self.headers.get("authorization") != f"Bearer {self.fake.key}":
            self.send(401, {"error": {"message": f"Incorrect API key: {self.headers.get('authorization')}"}})
            return True
        return False

    def do_GET(self) -> None:
        if not self.refused():
            rows = [{"id": name, "object": "model"} for name in self.fake.models]
            self.send(200, {"object": "list", "data": rows}) if self.path == "/v1/models" else self.send(404, b"not here")

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["content-length"])))
        fake = self.fake
        with fake.lock:
            fake.requests.append(body)
            fake.headers.append({name.lower(): value for name, value in self.headers.items()})
            fake.at_once += 1
            fake.most_at_once = max(fake.most_at_once, fake.at_once)
            failure = fake.failures.pop(0) if fake.failures else None
        try:
            time.sleep(fake.pause)
            if not self.refused():
                failure(self) if failure else self.answer(body)
        finally:
            with fake.lock:
                fake.at_once -= 1

    def answer(self, body: dict[str, Any]) -> None:
        fake = self.fake
        odd = (set(body) - KNOWN) | (set(body) & fake.refused)
        if self.path != "/v1/chat/completions":
            return self.send(404, b"not here")
        if body["model"] not in fake.models:
            return self.send(404, {"error": {"message": f"The model `{body['model']}` does not exist.", "code": 404}})
        if odd:
            return self.send(400, {"error": {"message": f"Unknown parameter: {min(odd)}"}})
        prompt = fake.prompt_tokens(body)
        if prompt + body["max_tokens"] > fake.context:
            return self.send(400, {"error": {"message": f"This model's maximum context length is {fake.context} tokens."}})
        choices = [fake.choice(body, index) for index in range(min(body.get("n", 1), fake.most))]
        generated = sum(choice.pop("_tokens") for choice in choices)
        usage = {"prompt_tokens": prompt, "completion_tokens": generated, "total_tokens": prompt + generated}
        if body.get("stream"):
            return self.stream(choices[0], usage if body.get("stream_options") else None)
        return self.send(200, {"model": "toy-2026", "choices": choices} | ({"usage": usage} if fake.usage else {}))

    def stream(self, choice: dict[str, Any], usage: dict[str, int] | None, cut: int | None = None) -> None:
        self.send_response(200)
        self.send_header("content-type", "text/event-stream")
        self.send_header("connection", "close")
        self.end_headers()
        self.close_connection = True
        entries = (choice.get("logprobs") or {}).get("content")
        said = words(choice["message"]["content"])
        try:
            for at, word in enumerate(said):
                if at == cut:
                    return
                part = {"logprobs": {"content": entries[at : at + 1]}} if entries else {}
                self.event({"choices": [{"index": 0, "delta": {"content": word}, **part}]})
                time.sleep(self.fake.pause)
            last = {"logprobs": {"content": entries[len(said) :]}} if entries else {}
            reasons = {name: choice.get(name) for name in ("finish_reason", "stop_reason")}
            self.event({"choices": [{"index": 0, "delta": {}, **reasons, **last}]})
            if usage:
                self.event({"choices": [], "usage": usage})
            self.wfile.write(b"data: [DONE]\n\n")
        except OSError:
            self.fake.broken_off.set()

    def event(self, value: Any) -> None:
        self.wfile.write(f"data: {json.dumps(value)}\n\n".encode())
        self.wfile.flush()


@contextmanager
def serving(**changes: Any) -> Iterator[Fake]:
    fake = Fake(**changes)
    with http_server(Handler, fake=fake) as fake.url:
        yield fake
