"""An ASGI application served by uvicorn in a thread of its own, and answers that break on the way out."""

import asyncio
import socket
import threading
from typing import Any

import uvicorn
from starlette.responses import Response
from starlette.types import ASGIApp, Receive, Scope, Send
from uvicorn.config import Config
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol
from uvicorn.server import ServerState

from sandbox.faults import Fault

BACKLOG = 4096  # a thousand clients may knock at once


class _Protocol(HttpToolsProtocol):
    """Hands each request its connection, so that an answer can drop it."""

    def __init__(
        self,
        config: Config,
        server_state: ServerState,
        app_state: dict[str, Any],
        _loop: asyncio.AbstractEventLoop | None = None,
    ) -> None:
        super().__init__(config, server_state, app_state, _loop)
        self.app_state = {**app_state, "connection": self}


class _Server(uvicorn.Server):
    """Says that it stops before it waits for the answers that are under way."""

    def __init__(self, config: Config, stopping: asyncio.Event) -> None:
        super().__init__(config)
        self._stopping = stopping

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        self._stopping.set()
        await super().shutdown(sockets)


class Server:
    """Listens on `host` from `start()` to `stop()`; a port of 0 takes a free one."""

    def __init__(self, app: ASGIApp, host: str, port: int, stopping: asyncio.Event) -> None:
        config = Config(app, http=_Protocol, ws="none", lifespan="off", log_config=None, access_log=False)
        self._server = _Server(config, stopping)
        self._socket = socket.create_server((host, port), backlog=BACKLOG)
        config.backlog = BACKLOG
        self.port: int = self._socket.getsockname()[1]
        self._thread = threading.Thread(
            target=self._server.run, kwargs={"sockets": [self._socket]}, name="sandbox exchange", daemon=True
        )

    def start(self) -> None:
        """Requests may come at once: they wait in the socket's queue until the thread is up."""
        self._thread.start()

    def stop(self) -> None:
        """Returns when every connection is closed; answers that hang are dropped."""
        self._server.should_exit = True
        self._thread.join()
        self._socket.close()


class BrokenResponse(Response):
    """An answer that a fault delays, shortens, drips or drops."""

    def __init__(self, fault: Fault, body: bytes, status: int, content_type: str, stopping: asyncio.Event) -> None:
        kept = body[: int(len(body) * fault.keep_share)]
        super().__init__(kept, status, dict(fault.headers), content_type)
        if fault.promise_all:
            self.headers["Content-Length"] = str(len(body))
        self._fault = fault
        self._stopping = stopping

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer, as far as the fault allows."""
        if await self._pause(self._fault.delay_seconds) or self._fault.close:
            return await _hang_up(scope, receive)
        await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
        for piece in self._pieces():
            await send({"type": "http.response.body", "body": piece, "more_body": True})
            if await self._pause(self._fault.drip_seconds or 0.0):
                return await _hang_up(scope, receive)
        if self._fault.promise_all:
            return await _hang_up(scope, receive)
        return await send({"type": "http.response.body", "body": b""})

    def _pieces(self) -> list[bytes]:
        if self._fault.drip_seconds is None:
            return [bytes(self.body)]
        return [bytes([byte]) for byte in bytes(self.body)]

    async def _pause(self, seconds: float) -> bool:
        """Whether the server was told to stop meanwhile."""
        try:
            await asyncio.wait_for(self._stopping.wait(), seconds)
        except TimeoutError:
            return False
        return True


async def _hang_up(scope: Scope, receive: Receive) -> None:
    scope["state"]["connection"].transport.close()
    while (await receive())["type"] != "http.disconnect":
        pass
