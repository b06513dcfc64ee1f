"""The one public port: passes what a site's node asks of the SuperLink's fleet, and nothing else.

The SuperLink answers its fleet, its control plane and its task plane on one port; whoever reaches the second can start
runs and let keys in. So it listens where only the server's own processes reach it, and this stands before it. What
passes is a list of exact request targets, compared byte by byte as they came: nothing is decoded, joined or
normalised, so that no spelling of another path can pass. Everything else is 404 without a word. What passes carries a
signature of its node that was not used before (`signatures.py`); one that is unsigned the SuperLink refuses.
"""

from __future__ import annotations

import asyncio
import logging
import ssl
import time
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import httpx
import uvicorn
from starlette.requests import ClientDisconnect, Request
from starlette.responses import PlainTextResponse, Response, StreamingResponse
from starlette.types import Receive, Scope, Send

from popmi_core.errors import SetupError
from server.connections import BoundedServer, ConnectionLimits, PromptH11
from server.control.refusals import Refusals
from server.control.signatures import (
    KEY_HEADER,
    SIGNATURE_HEADER,
    TIME_HEADER,
    Signatures,
    UnusableKey,
    key_of,
    pair_of,
)

log = logging.getLogger("popmi.gateway")
# What a node with a key of its own asks (flwr 1.41). Registering by itself is left out: the operator does that.
FLEET = (
    "activate-node", "deactivate-node", "send-node-heartbeat", "pull-messages", "push-messages", "get-run", "get-fab",
    "push-object", "pull-object", "confirm-message-received",
)  # fmt: skip
PASSED = {f"/v1/fleet/{name}".encode(): f"/v1/fleet/{name}" for name in FLEET}
HEALTH = b"/health"
TAKEN_ALONG = (
    "content-type", "content-length", "accept", KEY_HEADER, TIME_HEADER, SIGNATURE_HEADER,
    "flwr-package-name", "flwr-package-version", "flwr-component-name",
)  # fmt: skip
"""Headers that pass: what a node sends (flwr 1.41). Not all of Flower's: others belong to runners and server apps."""
BROUGHT_BACK = ("content-type", "content-length", "content-encoding")
BODY_LIMIT = 16_000_000
"""Bytes in a request: Flower sends arrays in pieces of 5 MB (5,242,880 bytes), and little else."""
HEADER_LIMIT = 16_384
CONNECTIONS = 1_000
PIECE_SECONDS = 30.0
"""Seconds within which the next piece of a request must come."""
BODY_SECONDS = 600.0
"""Seconds for a whole request: 16 MB at 0.25 Mbit/s."""
ANSWER_SECONDS = 120.0
RETRY_SECONDS = 5
BUSY_SECONDS = 60
NOT_TAKEN = (400, 401, 412, 413, 415, 422)
"""Answers of a SuperLink that did not come as far as to believe the signature, or made nothing of the request."""
REFUSED = (*NOT_TAKEN, 403)
SIGN_ANEW = 503
"""Answer to a signature that was used before: a node asks again after it, with a new one; after most others it ends."""
SIGN_ANEW_SECONDS = 1
NEVER_ARRIVED = (httpx.ConnectError, httpx.ConnectTimeout, httpx.PoolTimeout)


class _TooLarge(Exception):
    pass


class _TooSlow(Exception):
    pass


class Gateway:
    """The application.

    Args:
        upstream: Client whose base address is the SuperLink's.
        refusals: Counter of refused requests.
        counted: Told the status of every refused request.
        signatures: Memory of those that were used.
        heard: Told the fingerprint of every key whose request the SuperLink answered well, and the time it had signed.
        body_limit: Bytes a request may hold.
        piece_seconds: Seconds within which the next piece of a request must come.
    """

    def __init__(
        self,
        upstream: httpx.AsyncClient,
        *,
        refusals: Refusals | None = None,
        signatures: Signatures | None = None,
        counted: Callable[[int], None] | None = None,
        heard: Callable[[str, str], None] | None = None,
        body_limit: int = BODY_LIMIT,
        piece_seconds: float = PIECE_SECONDS,
    ) -> None:
        self.upstream, self.refusals, self.counted = upstream, refusals or Refusals(), counted
        self.signatures, self.heard = signatures or Signatures(), heard
        self.body_limit, self.piece_seconds = body_limit, piece_seconds

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request (ASGI)."""
        if scope["type"] == "http":
            request = Request(scope, receive)
            await (await self._answer(request))(scope, receive, send)

    async def _answer(self, request: Request) -> Response:
        target: bytes = request.scope.get("raw_path") or b""
        if request.method in ("GET", "HEAD") and target == HEALTH and not request.scope["query_string"]:
            return PlainTextResponse("ok")
        told = _told(request)
        address, key = request.client.host if request.client else "", told.get(KEY_HEADER, "")
        if self.refusals.blocked(address, key):
            return _empty(429, retry=BUSY_SECONDS)
        path = PASSED.get(target) if request.method == "POST" and not request.scope["query_string"] else None
        answer = _empty(404) if path is None else await self._once(request, path, told, address)
        if path is None or answer.status_code in REFUSED:
            self.refusals.refused(address)
            if self.counted is not None:
                self.counted(answer.status_code)
            log.warning("refused from %s: %d %s %r", address, answer.status_code, request.method, target[:200])
        elif answer.status_code == 200:
            self.refusals.let_in(address, key)
        return answer

    async def _once(self, request: Request, path: str, told: dict[str, str], address: str) -> Response:
        try:
            pair = pair_of(told)
        except UnusableKey:
            return _empty(401)
        if pair is None:
            return (await self._pass(request, path, told))[0]
        if not self.signatures.begin(pair):
            self.refusals.refused(address)
            why = f"a signature of key {key_of(pair)} was used before, or it signs too often"
            log.warning("refused from %s: %s: POST %s", address, why, path)
            return _empty(SIGN_ANEW, retry=SIGN_ANEW_SECONDS)
        taken = True
        try:
            answer, taken = await self._pass(request, path, told)
        finally:
            self.signatures.end(pair, taken=taken)
        if self.heard is not None and answer.status_code == 200:
            self.heard(key_of(pair), told[TIME_HEADER])
        return answer

    async def _pass(self, request: Request, path: str, told: dict[str, str]) -> tuple[Response, bool]:
        """Return the answer, and whether the SuperLink took the request or may have."""
        stated = request.headers.get("content-length", "0")
        if not stated.isdigit() or int(stated) > self.body_limit:
            return _empty(413), False
        # The SuperLink's answer is passed on as it is, so it must not be packed for us.
        asked = self.upstream.build_request(
            "POST", path, headers={**told, "accept-encoding": "identity"}, content=self._body(request)
        )
        try:
            answer = await self.upstream.send(asked, stream=True)
        except _TooLarge:
            return _empty(413), False
        except (_TooSlow, ClientDisconnect):
            return _empty(408), False
        except httpx.HTTPError as error:
            log.warning("the SuperLink does not answer (%s)", type(error).__name__)
            return _empty(503, retry=RETRY_SECONDS), not isinstance(error, NEVER_ARRIVED)
        passed = StreamingResponse(_pieces(answer), answer.status_code, _named(answer.headers))
        return passed, answer.status_code not in NOT_TAKEN

    async def _body(self, request: Request) -> AsyncIterator[bytes]:
        pieces, got = request.stream(), 0
        until = time.monotonic() + BODY_SECONDS
        while True:
            try:
                patience = min(self.piece_seconds, until - time.monotonic())
                piece = await asyncio.wait_for(anext(pieces), patience)
            except StopAsyncIteration:
                return
            except TimeoutError as error:
                raise _TooSlow from error
            got += len(piece)
            if got > self.body_limit:
                raise _TooLarge
            yield piece


def _told(request: Request) -> dict[str, str]:
    told = {name: value for name, value in request.headers.items() if name in TAKEN_ALONG}
    if "transfer-encoding" in request.headers:
        # A length beside it means nothing, and two readers could read it differently.
        told.pop("content-length", None)
    return told


async def _pieces(answer: httpx.Response) -> AsyncIterator[bytes]:
    try:
        async for piece in answer.aiter_raw():
            yield piece
    finally:
        await answer.aclose()


def _named(headers: httpx.Headers) -> dict[str, str]:
    return {name: headers[name] for name in BROUGHT_BACK if name in headers}


def _empty(status: int, *, retry: int | None = None) -> Response:
    return Response(status_code=status, headers={} if retry is None else {"retry-after": str(retry)})


def upstream_client(address: str, ca: Path) -> httpx.AsyncClient:
    """Return a client of the SuperLink at ``host:port``, checked by the study's authority."""
    return httpx.AsyncClient(
        base_url=f"https://{address}",
        verify=ssl.create_default_context(cafile=str(ca)),
        # Shorter than the SuperLink keeps an idle connection, so that none is used that it is just closing.
        # Few, because its pool looks at each of them for every request.
        limits=httpx.Limits(max_connections=CONNECTIONS, max_keepalive_connections=32, keepalive_expiry=2.0),
        timeout=httpx.Timeout(connect=5.0, read=ANSWER_SECONDS, write=PIECE_SECONDS, pool=10.0),
        trust_env=False,
        follow_redirects=False,
    )


def serve(
    gateway: Gateway,
    *,
    host: str,
    port: int,
    certificate: Path,
    key: Path,
    limits: ConnectionLimits | None = None,
    started: Callable[[], None] | None = None,
) -> None:
    """Serve until SIGTERM or Ctrl-C.

    Raises:
        SetupError: If the certificate cannot be used or the port cannot be taken.
    """
    try:
        config = uvicorn.Config(
            gateway,
            host=host,
            port=port,
            ssl_certfile=str(certificate),
            ssl_keyfile=str(key),
            # One parser, whatever else is installed: what it calls the request's target is what is compared.
            http=PromptH11,
            ws="none",
            lifespan="off",
            log_level="warning",
            access_log=False,
            server_header=False,
            proxy_headers=False,
            limit_concurrency=CONNECTIONS,
            timeout_keep_alive=30,
            timeout_graceful_shutdown=5,
            h11_max_incomplete_event_size=HEADER_LIMIT,
        )
        config.load()
        listener = config.bind_socket()
        # From here on callers wait rather than being turned away.
        listener.listen()
    except (OSError, SystemExit) as error:
        raise SetupError(
            f"the gateway cannot listen on {host} port {port}: taken, not allowed, or {certificate} is unusable "
            f"({error}). Choose another --port, or run `popmi server init` again."
        ) from error
    if started is not None:
        started()
    BoundedServer(config, limits or ConnectionLimits()).run(sockets=[listener])
