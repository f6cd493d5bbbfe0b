"""Which server, which model, how many requests at once: the part behind `openai:` in a model reference."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Annotated, Any, Literal
from urllib.parse import urlsplit

from pydantic import Field

from ...core.errors import ConfigError
from ...core.specs import instantiate, parse

__all__ = ["Server", "Update", "read_server"]

Update = Literal["", "model_name", "sglang", "vllm"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Server:
    """A server and a model on it.

    Args:
        model: the model's name there; may be left out where the server lists one only.
        url: its base, usually ending with `/v1`; default: the environment variable OPENAI_BASE_URL.
        key_env: the environment variable that holds the key; the key itself is never written anywhere.
        concurrency: requests under way at once.
        timeout: seconds to wait for an answer.
        retries: how often a request is sent again after a failure that may pass.
        together: ask for all samples of a call in one request (`n`): cheaper at servers that charge the prompt with every
            request, but sample i then depends on how many are asked for.
        shape: a model folder (its config.json is enough) or alias that says the model's sizes, without which FLOPs are
            unknown; with its tokenizer and template, prompts are counted before they are sent, which makes budgets exact.
        version: anything; part of the fingerprint. Change it when the weights behind the name have changed.
        extra: a JSON object added to every request, as in '{"chat_template_kwargs": {"enable_thinking": false}}'.
        update: how it takes new weights from a folder, for rollouts: `model_name` (the folder is the model's name in
            requests), `sglang` or `vllm` (their own endpoints); "": it cannot.
    """

    model: str | None = None
    url: str | None = None
    key_env: str = "OPENAI_API_KEY"
    concurrency: Annotated[int, Field(ge=1)] = 64
    timeout: Annotated[float, Field(gt=0)] = 600.0
    retries: Annotated[int, Field(ge=0)] = 5
    together: bool = False
    shape: str | None = None
    version: str | int = ""
    extra: str = ""
    update: Update = ""

    @property
    def base(self) -> str:
        """The URL that paths are appended to; raises `ConfigError` when there is none, or one that cannot be used."""
        url = (self.url or os.environ.get("OPENAI_BASE_URL", "")).strip().rstrip("/")
        if not url:
            raise ConfigError(
                "model 'openai': where is the server? Set OPENAI_BASE_URL or write openai:model=NAME,url=http://localhost:8000/v1"
            )
        try:
            parts = urlsplit(url)
            usable = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
        except ValueError:
            usable = False
        if not usable:
            raise ConfigError("model 'openai': the server's URL must look like http://localhost:8000/v1 or https://host/v1")
        if parts.username or parts.password or parts.query or parts.fragment:
            raise ConfigError(
                "model 'openai': the server's URL must hold no user, password or query, since it is written into results; "
                "put the key into the environment variable that key_env names"
            )
        return url

    @property
    def key(self) -> str | None:
        """The key from the environment, or None; raises `ConfigError` when a variable was named and is not set."""
        if not re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]*", self.key_env):
            raise ConfigError("model 'openai': key_env takes the name of an environment variable, never the key itself")
        key = os.environ.get(self.key_env, "").strip()
        if not key and self.key_env != "OPENAI_API_KEY":
            raise ConfigError(f"model 'openai': the environment variable {self.key_env} (key_env) is not set")
        if not key.isascii() or not key.isprintable():
            raise ConfigError(f"model 'openai': the environment variable {self.key_env} holds characters that no key has")
        return key or None

    @property
    def more(self) -> Mapping[str, Any]:
        """What `extra` adds to every request."""
        if not self.extra:
            return {}
        try:
            found = json.loads(self.extra)
        except json.JSONDecodeError as error:
            raise ConfigError(f"model 'openai': extra is not valid JSON: {error}") from None
        if not isinstance(found, dict):
            raise ConfigError("model 'openai': extra must be a JSON object")
        return found


def read_server(ref: str) -> Server:
    """Read `openai`, `openai:NAME`, `openai:NAME,url=…` or `openai:model=NAME,url=…`; a NAME may hold colons and slashes."""
    rest = ref.partition(":")[2]
    first, _, others = rest.partition(",")
    known = {f.name for f in fields(Server)}
    params: dict[str, Any] = {}
    if first and first.partition("=")[0].strip() not in known and not re.match(r"\w+=", first):
        params["model"] = first.strip()
        rest = others
    given = parse(f"openai:{rest}").params if rest else {}
    if "model" in given and "model" in params:
        raise ConfigError(f"model '{ref}': the model is named twice")
    server: Server = instantiate(Server, {**params, **given}, where="model 'openai'")
    server.base, server.key, server.more  # noqa: B018  # mistakes are found before anything is sent
    return server
