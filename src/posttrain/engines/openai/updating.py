"""New weights for a server, from a folder that both it and this process read.

Ways (`update` of a server's settings):

    model_name  the folder is the model's name in requests; the first one makes the server load it (`transformers serve`)
    sglang      POST /update_weights_from_disk, which also empties the prefix cache, and says whether it has succeeded
    vllm        POST /collective_rpc: the workers' `reload_weights`; then /reset_prefix_cache: what earlier weights made of a
                prompt is worth nothing any more. Both are there in vLLM's development mode only.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ...core.errors import ConfigError, ServerError
from .probe import CHAT
from .settings import Update
from .transport import RefusedError, Transport

__all__ = ["take"]

_MEND: Mapping[str, str] = {
    "model_name": "it must load any folder that a request names as its model (`transformers serve` without a model does)",
    "sglang": "update=sglang is for an SGLang server of the model that is trained",
    "vllm": "update=vllm is for a vLLM server of the model that is trained, started with VLLM_SERVER_DEV_MODE=1",
}


async def take(transport: Transport, way: Update, folder: Path, *, more: Mapping[str, Any]) -> None:
    """Have the server take the weights in a folder, and return when it has; `more` is added to requests to a model.

    Raises:
        ConfigError: the settings say no way.
        ServerError: the server cannot be reached, or does not take them: one sentence with what it said.
    """
    where = f"{transport.root}: the server did not take the weights in {folder}"
    mend = f"{_MEND.get(way, '')}, and see that folder under the same path"
    try:
        if way == "model_name":
            await _named(transport, folder, where, mend, more)
        elif way == "sglang":
            answer = await transport.tell("/update_weights_from_disk", {"model_path": str(folder)}, seed=0)
            if not isinstance(answer, dict) or answer.get("success") is not True:
                raise ServerError(f"{where} ({_said(answer)}): {mend}")
        elif way == "vllm":
            body = {"method": "reload_weights", "kwargs": {"weights_path": str(folder)}}
            await transport.tell("/collective_rpc", body, seed=0)
            answer = await transport.tell("/reset_prefix_cache", {}, seed=0)
            if isinstance(answer, dict) and answer.get("success") is False:  # older ones answer nothing
                raise ServerError(f"{where}: its prefix cache is in use by other requests: let nobody else ask this server")
        else:
            raise ConfigError(
                "model 'openai': how does the server take new weights? Write update=model_name, update=sglang or update=vllm"
            )
    except RefusedError as refused:
        raise ServerError(f"{where} ({refused}): {mend}") from None


async def _named(transport: Transport, folder: Path, where: str, mend: str, more: Mapping[str, Any]) -> None:
    """Ask the folder for one token, so that it is loaded, and make sure that it was it that answered."""
    asked = [{"role": "user", "content": "1"}]
    body = {"model": str(folder), "messages": asked, "max_tokens": 1, **more}
    answer = await transport.post(CHAT, body, seed=0, retries=2)
    served = str(answer.get("model") or "") if isinstance(answer, dict) else ""
    if served and folder.name not in served:
        raise ServerError(f"{where} (it answers as '{served}', whatever model is asked for): {mend}")


def _said(answer: Any) -> str:
    told = answer.get("message") if isinstance(answer, dict) else answer
    return " ".join(str(told or "it did not say why").split())[:300]
