"""Around every request: its id, keys, rate, size and time of its body, log and metrics.

Plain ASGI middleware: it sees the bytes before they are parsed, so a body that is too large or too slow costs nothing.
"""

import asyncio
import contextlib
import hmac
import json
import logging
import math
import re
import time
import uuid
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

from limits import RateLimitItem, RateLimitItemPerSecond
from limits.storage import MemoryStorage
from limits.strategies import MovingWindowRateLimiter
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

from oclear.service.settings import SEARCH_KEYS, WRITE_KEYS, Settings

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[Message, Receive, Send], Awaitable[None]]

OPEN_PATHS = ("/", "/health", "/page.css", "/page.js")
REQUEST_ID = re.compile(r"[\w.-]{1,64}")
BEARER = re.compile("^bearer ", re.IGNORECASE)
SECONDS = (0.005, 0.01, 0.02, 0.04, 0.08, 0.15, 0.3, 0.6, 1.2, 2.5, 5.0, 10.0)
SECONDS_TO_DISCARD = 2.0
SIZES = (1, 2, 4, 8, 16, 32, 64)

logger = logging.getLogger(__name__)


class Metrics:
    """What `/metrics` reports, in a registry of its own."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self.requests = Counter(
            "oclear_requests", "Requests by route and status.", ("route", "status"), registry=self.registry
        )
        self.seconds = Histogram(
            "oclear_request_seconds", "Time of requests.", ("route",), buckets=SECONDS, registry=self.registry
        )
        self.batch = Histogram(
            "oclear_batch_size", "Searches that were embedded together.", buckets=SIZES, registry=self.registry
        )
        self.waiting = Gauge("oclear_waiting_searches", "Searches that wait.", registry=self.registry)
        self.documents = Gauge("oclear_documents", "Documents that a search can find.", registry=self.registry)
        self.version = Gauge("oclear_index_version", "Version of the index that is searched.", registry=self.registry)


class Refused(Exception):
    """A request that is not let in: HTTP status, a code for programs, a sentence for people, seconds to wait."""

    def __init__(self, status: int, code: str, sentence: str, *, wait: float = 1.0) -> None:
        super().__init__(sentence)
        self.status, self.code, self.sentence, self.wait = status, code, sentence, max(1, math.ceil(wait))


def _rate_limits(rate: float) -> list[RateLimitItem]:
    """A number of requests a second, as a window: whole requests in one second, or one in some seconds."""
    if not rate:
        return []
    return [RateLimitItemPerSecond(round(rate)) if rate >= 1 else RateLimitItemPerSecond(1, round(1 / rate))]


class Guards:
    """The middleware.

    Args:
        app: what it protects. settings: limits and keys. metrics: counts every request.
        route_of: the route of a path, as metrics name it.
    """

    def __init__(self, app: App, settings: Settings, metrics: Metrics, route_of: Callable[[Message], str]) -> None:
        self.app, self.settings, self.metrics, self.route_of = app, settings, metrics, route_of
        self._rate = MovingWindowRateLimiter(MemoryStorage())
        self._allowed = _rate_limits(settings.rate)

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        started = time.perf_counter()
        headers = {name.decode("latin-1"): value.decode("latin-1") for name, value in scope["headers"]}
        given = headers.get("x-request-id", "")
        request_id = given if REQUEST_ID.fullmatch(given) else uuid.uuid4().hex
        scope.setdefault("state", {})["request_id"] = request_id
        status = 500

        async def send_with_id(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                message["headers"] = [*message.get("headers", []), (b"x-request-id", request_id.encode())]
            await send(message)

        try:
            self._check(scope, headers)
            body = await self._body(headers, receive)
            await self.app(scope, _replayed(body, receive), send_with_id)
        except Refused as refused:
            await _refuse(refused, request_id, send_with_id)
        except Exception:
            logger.exception("request %s failed", request_id)  # it has been answered by the handler of all errors
        finally:
            seconds = time.perf_counter() - started
            route = self.route_of(scope)
            self.metrics.requests.labels(route, str(status)).inc()
            self.metrics.seconds.labels(route).observe(seconds)
            line = {"request_id": request_id, "method": scope["method"], "path": scope["path"], "status": status}
            logger.info(json.dumps(line | {"milliseconds": round(1000 * seconds, 1)}))

    def _check(self, scope: Message, headers: dict[str, str]) -> None:
        writes = scope["path"].startswith("/documents") and scope["method"] not in ("GET", "HEAD", "OPTIONS")
        key = headers.get("x-api-key") or BEARER.sub("", headers.get("authorization", "")).strip()
        settings = self.settings
        may_write = _is_one_of(key, settings.write_keys)
        may_search = may_write or not settings.search_keys or _is_one_of(key, settings.search_keys)
        is_open = scope["path"] in OPEN_PATHS
        client = scope.get("client") or ("unknown", 0)
        # A wrong key counts for its address: keys cannot be tried faster than the rate.
        who = key if key and may_search and settings.search_keys else client[0]
        if not is_open and not all(self._rate.hit(rate, who) for rate in self._allowed):
            sentence = f"more than {settings.rate:g} requests a second: wait and try again"
            wait = max(self._rate.get_window_stats(rate, who).reset_time for rate in self._allowed) - time.time()
            raise Refused(429, "too_many_requests", sentence, wait=wait)
        if writes and not settings.write_keys:
            raise Refused(403, "read_only", f"documents cannot be changed here: start the service with {WRITE_KEYS}")
        if writes and not may_write:
            raise Refused(401, "key_needed", f"changes need a key of {WRITE_KEYS} in the header X-API-Key")
        if not is_open and not may_search:
            raise Refused(401, "key_needed", f"a key of {SEARCH_KEYS} is needed in the header X-API-Key")

    async def _body(self, headers: dict[str, str], receive: Receive) -> bytes:
        limit = self.settings.body_bytes
        length = headers.get("content-length", "0")
        if not length.isdigit() or int(length) > limit:
            await _discard(receive, most_bytes=2 * limit)
            raise Refused(413, "body_too_large", f"the body has {length[:20]} bytes; at most {limit:,} are read")
        parts, size = [], 0
        try:
            async with asyncio.timeout(self.settings.body_seconds):
                while True:
                    message = await receive()
                    if message["type"] == "http.disconnect":
                        raise Refused(400, "body_incomplete", "the connection ended before the body did")
                    size += len(message.get("body", b""))
                    if size > limit:
                        await _discard(receive, most_bytes=2 * limit)
                        raise Refused(413, "body_too_large", f"the body has over {limit:,} bytes, which is the limit")
                    parts.append(message.get("body", b""))
                    if not message.get("more_body", False):
                        return b"".join(parts)
        except TimeoutError as error:
            seconds = self.settings.body_seconds
            raise Refused(408, "body_too_slow", f"the body took over {seconds:g} s to arrive") from error


async def _discard(receive: Receive, *, most_bytes: int) -> None:
    """Read the rest of a body that is refused, up to a limit: a client that still sends would not read the answer."""
    size, more = 0, True
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(SECONDS_TO_DISCARD):
            while more and size <= most_bytes:
                message = await receive()
                size += len(message.get("body", b""))
                more = message["type"] == "http.request" and message.get("more_body", False)


def _is_one_of(key: str, keys: tuple[str, ...]) -> bool:
    """Whether a key is among some, in a time that does not tell how much of it is right."""
    return sum(hmac.compare_digest(key.encode(), one.encode()) for one in keys) > 0


def _replayed(body: bytes, receive: Receive) -> Receive:
    """A `receive` that gives the body first, and then what the connection says."""
    given = False

    async def replay() -> Message:
        nonlocal given
        if not given:
            given = True
            return {"type": "http.request", "body": body, "more_body": False}
        return await receive()

    return replay


async def _refuse(refused: Refused, request_id: str, send: Send) -> None:
    content = json.dumps(error_of(refused.code, refused.sentence, request_id)).encode()
    headers = [(b"content-type", b"application/json"), (b"content-length", str(len(content)).encode())]
    if refused.status in (408, 413):
        headers.append((b"connection", b"close"))  # what is left of the body is not read
    if refused.status in (429, 503):
        headers.append((b"retry-after", str(refused.wait).encode()))
    await send({"type": "http.response.start", "status": refused.status, "headers": headers})
    await send({"type": "http.response.body", "body": content})


def error_of(code: str, sentence: str, request_id: str) -> dict[str, Any]:
    """The body of every error."""
    return {"error": {"code": code, "message": sentence}, "request_id": request_id}
