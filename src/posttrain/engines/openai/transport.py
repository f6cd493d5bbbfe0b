"""Requests to one server: how many at once, what is tried again, and what its refusals mean."""

from __future__ import annotations

import asyncio
import json
import re
import time
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Coroutine, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import aclosing
from email.utils import parsedate_to_datetime
from typing import Any, TypeVar

import httpx2

from ...core.errors import ContextOverflowError, PosttrainError, ServerError
from ...core.seeds import rng
from .settings import Server

__all__ = ["MAX_WAIT", "RefusedError", "Transport", "run"]

MAX_WAIT = 120.0  # seconds; a server that wants a longer pause is given up
_PASSING = {408, 409, 425, 429, 500, 502, 503, 504, 520, 522, 524, 529}
_OVERFLOW = re.compile(
    r"context.{0,20}(length|size|window)|maximum context|max_model_len|too many (input )?tokens|prompt is too long"
    r"|exceed\w*.{0,30}context|(input|prompt).{0,30}(longer|exceeds).{0,40}(tokens|length)",
    re.IGNORECASE,
)
T = TypeVar("T")


class RefusedError(ServerError):
    """The server does not answer this request; `status` says how."""

    def __init__(self, sentence: str, status: int) -> None:
        super().__init__(sentence)
        self.status = status


class _AgainError(Exception):
    """A failure that may pass: what to say if it does not, and how long the server wants to be left alone."""

    def __init__(self, error: PosttrainError, after: float | None = None) -> None:
        super().__init__()
        self.error = error
        self.after = after


class Transport:
    """One server. Works from any event loop, one at a time: connections belong to the loop that opened them."""

    def __init__(self, server: Server) -> None:
        self.url = server.base
        self.root = self.url.removesuffix("/v1")
        self._server = server
        self._key = server.key
        self._loop: asyncio.AbstractEventLoop | None = None

    async def get(self, path: str) -> Any:
        """Return the JSON at a path; little patience, since it is what is asked first."""
        return await self._patiently(lambda client: self._once(client, "GET", path, None), seed=0, retries=1)

    async def post(self, path: str, body: Mapping[str, Any], *, seed: int, retries: int | None = None) -> Any:
        """Send a JSON body and return the JSON answered."""
        return await self._patiently(lambda client: self._once(client, "POST", path, body), seed=seed, retries=retries)

    async def tell(self, path: str, body: Mapping[str, Any], *, seed: int) -> Any:
        """Send a JSON body to a path at the server's root, beside the API; None when the answer is empty."""
        return await self._patiently(
            lambda client: self._once(client, "POST", path, body, base=self.root), seed=seed, retries=2
        )

    async def stream(self, path: str, body: Mapping[str, Any], *, seed: int) -> AsyncIterator[Any]:
        """Send a JSON body and yield the JSON of each event; closing the iterator closes the connection.

        It is tried again only as long as nothing has been yielded.
        """
        client = await self._connected()
        async with self._gate:
            first, events = await self._patiently_holding(lambda: self._opened(client, path, body), seed)
            try:
                yield first
                while True:
                    event = await self._event(events)
                    if event is None:
                        return
                    yield event
            except _AgainError as broken:
                raise broken.error from None
            finally:
                await events.aclose()

    async def _patiently(self, once: Callable[[httpx2.AsyncClient], Awaitable[T]], seed: int, retries: int | None) -> T:
        client = await self._connected()

        async def gated() -> T:
            async with self._gate:  # not held while waiting to try again
                return await once(client)

        return await self._patiently_holding(gated, seed, retries)

    async def _patiently_holding(self, once: Callable[[], Awaitable[T]], seed: int, retries: int | None = None) -> T:
        """Try again after `min(30, 2^(attempt - 1))` seconds times a factor in [1/2, 1) that follows from the seed.

        A pause that the server asks for (`Retry-After`) comes on top.
        """
        tries = self._server.retries if retries is None else retries
        for attempt in range(tries + 1):
            try:
                return await once()
            except _AgainError as failed:
                if attempt == tries or (failed.after or 0) > MAX_WAIT:
                    raise failed.error from None
                pause = min(30.0, 0.5 * 2**attempt) * rng(seed, "retry", attempt).uniform(0.5, 1)
                await asyncio.sleep(pause + (failed.after or 0))
        raise AssertionError("unreachable")

    async def _connected(self) -> httpx2.AsyncClient:
        loop = asyncio.get_running_loop()
        if self._loop is not loop:
            self._loop = loop
            self._gate = asyncio.Semaphore(self._server.concurrency)
            self._keeper = self._keep()
            self._client = await anext(self._keeper)
        return self._client

    async def _keep(self) -> AsyncGenerator[httpx2.AsyncClient, None]:
        """Hold the connections; the event loop closes its asynchronous generators, and so them, before it ends."""
        headers = {"Authorization": f"Bearer {self._key}"} if self._key else {}
        at_once = self._server.concurrency
        client = httpx2.AsyncClient(
            headers=headers,
            timeout=httpx2.Timeout(self._server.timeout, connect=min(10.0, self._server.timeout), pool=None),
            limits=httpx2.Limits(max_connections=at_once, max_keepalive_connections=at_once),
        )
        try:
            yield client
        finally:
            await client.aclose()

    async def _once(
        self, client: httpx2.AsyncClient, method: str, path: str, body: Mapping[str, Any] | None, base: str | None = None
    ) -> Any:
        try:
            reply = await client.request(method, (base or self.url) + path, json=body)
        except httpx2.HTTPError as error:
            raise _AgainError(self._unreachable(error)) from None
        self._refuse(reply.status_code, reply.headers, reply.text)
        if base is not None and not reply.content:
            return None
        try:
            found = reply.json()
        except (json.JSONDecodeError, UnicodeDecodeError):
            raise _AgainError(
                ServerError(
                    f"{self.url}{path} answered with something that is not JSON ({self._said(reply.text)!r}): is this the "
                    "base URL of an OpenAI-compatible server? It usually ends with /v1"
                )
            ) from None
        if isinstance(found, dict) and found.get("error"):  # some gateways put a failure into a 200
            code = found["error"].get("code") if isinstance(found["error"], dict) else None
            self._refuse(code if isinstance(code, int) and code >= 400 else 500, reply.headers, reply.text)
        return found

    async def _opened(
        self, client: httpx2.AsyncClient, path: str, body: Mapping[str, Any]
    ) -> tuple[Any, AsyncGenerator[Any, None]]:
        events = self._events(client, path, body)
        try:
            first = await self._event(events)
        except BaseException:
            await events.aclose()
            raise
        if first is None:
            raise _AgainError(ServerError(f"{self.url}{path}: the stream ended before it said anything"))
        return first, events

    async def _event(self, events: AsyncGenerator[Any, None]) -> Any:
        try:
            return await anext(events, None)
        except (httpx2.HTTPError, httpx2.StreamError) as error:
            raise _AgainError(self._unreachable(error)) from None

    async def _events(self, client: httpx2.AsyncClient, path: str, body: Mapping[str, Any]) -> AsyncGenerator[Any, None]:
        async with client.stream("POST", self.url + path, json=body) as reply:
            if reply.status_code >= 400:
                self._refuse(reply.status_code, reply.headers, (await reply.aread()).decode(errors="replace"))
            async with aclosing(httpx2.EventSource(reply).__aiter__()) as told:  # type: ignore[type-var]
                async for event in told:
                    if event.data.strip() == "[DONE]":
                        return
                    try:
                        found = json.loads(event.data)
                    except json.JSONDecodeError:
                        raise _AgainError(
                            ServerError(f"{self.url}{path}: the stream holds what is not JSON ({self._said(event.data)!r})")
                        ) from None
                    if isinstance(found, dict) and found.get("error"):
                        self._refuse(500, reply.headers, event.data)
                    yield found

    def _unreachable(self, error: Exception) -> ServerError:
        if isinstance(error, httpx2.ConnectError | httpx2.ConnectTimeout | httpx2.UnsupportedProtocol | httpx2.ProxyError):
            return ServerError(
                f"no server answers at {self.url} ({self._said(str(error)) or type(error).__name__}): is it running, and is "
                "the address right?"
            )
        if isinstance(error, httpx2.TimeoutException):
            return ServerError(
                f"{self.url} did not answer within {self._server.timeout:g} s: raise timeout or lower concurrency"
            )
        said = self._said(str(error)) or type(error).__name__
        return ServerError(f"{self.url} broke the connection off ({said}): look into the server's log")

    def _refuse(self, status: int, headers: Mapping[str, str], text: str) -> None:
        """Raise what a status means: `_AgainError` when it may pass, a sentence otherwise; nothing below 400."""
        if status < 400:
            return
        said, code = self._said(text), _code(text)
        if status in (401, 403):
            name = self._server.key_env
            mend = (
                f"the key in {name} is not accepted"
                if self._key
                else f"it wants a key: set {name}, or name a variable in key_env"
            )
            raise ServerError(f"{self.url} refuses access ({status}): {mend}")
        if status == 429 and code == "insufficient_quota":
            raise ServerError(f"{self.url}: the account's quota is used up (429): {said}")
        if status == 429:
            after = _retry_after(headers)
            wants = f"; it wants a pause of {after:.0f} s" if after is not None else ""
            raise _AgainError(
                ServerError(f"{self.url} limits the rate (429){wants}: lower concurrency, or run the same command later"),
                after,
            )
        if status in _PASSING:
            failed = RefusedError(f"{self.url} failed ({status}): {said} (the server's log says more)", status)
            raise _AgainError(failed, _retry_after(headers))
        if status < 500 and (code in ("context_length_exceeded", "exceed_context_size_error") or _OVERFLOW.search(said)):
            raise ContextOverflowError(f"the prompt does not fit the model's context at {self.url}: {said}")
        raise RefusedError(f"{self.url} refused the request ({status}): {said}", status)

    def _said(self, text: str) -> str:
        """Return the server's own words, on one line, short, and without the key should they repeat it."""
        try:
            found = json.loads(text)
        except ValueError:
            found = text
        for key in ("error", "message", "detail"):
            if isinstance(found, dict) and found.get(key):
                found = found[key]
        words = " ".join((found if isinstance(found, str) else json.dumps(found)).split())
        if self._key:
            words = words.replace(self._key, "***")
        return words if len(words) <= 300 else words[:300] + "…"


def run(coroutine: Coroutine[Any, Any, T]) -> T:
    """Run a coroutine to its end, also where an event loop runs already."""
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return asyncio.run(coroutine)
    with ThreadPoolExecutor(1) as thread:
        return thread.submit(asyncio.run, coroutine).result()


def _code(text: str) -> str | None:
    try:
        error = json.loads(text)["error"]
        return str(error.get("code") or error.get("type"))
    except (ValueError, KeyError, TypeError, AttributeError):
        return None


def _retry_after(headers: Mapping[str, str]) -> float | None:
    """Return the seconds that `Retry-After` asks for, given in seconds or as a date."""
    value = headers.get("retry-after", "").strip()
    if not value:
        return None
    try:
        return max(0.0, float(value))
    except ValueError:
        pass
    try:
        return max(0.0, parsedate_to_datetime(value).timestamp() - time.time())
    except ValueError:
        return None
