"""HTTP load: so many connections, each sending its next request when the last one is answered.

`python -m bench.load` is the process that does it, apart from whoever measures; `put_load()` starts it.
"""

import asyncio
import itertools
import json
import pickle
import re
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, cast
from urllib.parse import urlsplit

import uvloop

from bench.report import percentile

BUFFER_BYTES = 256 * 1024
LENGTH = re.compile(rb"content-length: *(\d+)", re.IGNORECASE)


@dataclass(frozen=True)
class Plan:
    """`requests` are whole requests as bytes; with `seconds` they are repeated that long, else each is sent once."""

    url: str
    requests: Sequence[bytes]
    connections: int = 16
    seconds: float | None = None
    pause: float = 0.0


@dataclass
class Outcome:
    """What came of it; latencies in seconds."""

    seconds: float
    statuses: dict[int, int]
    received: int
    latencies: list[float] = field(repr=False)

    @property
    def rate(self) -> float:
        """Answers in a second."""
        return sum(self.statuses.values()) / self.seconds

    @property
    def p99(self) -> float:
        """In seconds."""
        return percentile(self.latencies, 0.99)


def request(method: str, path: str, headers: dict[str, str] | None = None, body: Any = None) -> bytes:
    """One HTTP/1.1 request for a kept connection."""
    content = b"" if body is None else json.dumps(body).encode()
    lines = {"Host": "bench", **(headers or {})}
    if body is not None:
        lines |= {"Content-Type": "application/json", "Content-Length": str(len(content))}
    head = "".join(f"{name}: {value}\r\n" for name, value in lines.items())
    return f"{method} {path} HTTP/1.1\r\n{head}\r\n".encode() + content


def put_load(plan: Plan, *, expect: int) -> Outcome:
    """Run the plan in a process of its own. Raises RuntimeError for any answer of another status than `expect`."""
    command = [sys.executable, "-m", "bench.load"]
    limit = 120 + (plan.seconds or 0)
    done = subprocess.run(command, input=pickle.dumps(plan), stdout=subprocess.PIPE, timeout=limit, check=True)
    outcome = cast(Outcome, pickle.loads(done.stdout))
    if set(outcome.statuses) != {expect}:
        raise RuntimeError(f"{plan.url} answered {outcome.statuses}, expected only {expect}")
    return outcome


class _Connection(asyncio.BufferedProtocol):
    """One connection: sends, counts what comes, sends again. Bodies are read into one buffer and never looked at."""

    def __init__(self, run: "Run") -> None:
        self._run = run
        self._buffer = memoryview(bytearray(BUFFER_BYTES))
        self._head = b""
        self._left = 0
        self._status = 0
        self._sent = 0.0
        self._transport: asyncio.Transport

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)
        self._send()

    def get_buffer(self, sizehint: int) -> memoryview:
        return self._buffer

    def buffer_updated(self, nbytes: int) -> None:
        self._run.received += nbytes
        if self._left:
            self._left -= nbytes
        else:
            self._head += self._buffer[:nbytes]
            end = self._head.find(b"\r\n\r\n")
            if end < 0:
                return
            self._read_head(self._head[:end], len(self._head) - end - 4)
        if self._left <= 0:
            self._answered()

    def connection_lost(self, exc: Exception | None) -> None:
        self._run.ended(lost=self._sent != 0.0)

    def _read_head(self, head: bytes, after: int) -> None:
        self._status = int(head[9:12])
        length = LENGTH.search(head)
        self._left = (int(length[1]) if length and self._status != 304 else 0) - after
        self._head = b""

    def _answered(self) -> None:
        self._run.answered(self._status, time.perf_counter() - self._sent)
        if self._run.plan.pause:
            asyncio.get_running_loop().call_later(self._run.plan.pause, self._send)
        else:
            self._send()

    def _send(self) -> None:
        request = self._run.next_request()
        if request is None:
            self._sent = 0.0
            self._transport.close()
            return
        self._sent = time.perf_counter()
        self._transport.write(request)


class Run:
    """What the connections share."""

    def __init__(self, plan: Plan) -> None:
        self.plan = plan
        self.received = 0
        self.lost = 0
        self._requests: Iterator[bytes] = itertools.cycle(plan.requests) if plan.seconds else iter(plan.requests)
        self._statuses: Counter[int] = Counter()
        self._latencies: list[float] = []
        self._open = plan.connections
        self._over = asyncio.Event()
        self._until = 0.0

    async def run(self) -> Outcome:
        parts = urlsplit(self.plan.url)
        loop = asyncio.get_running_loop()
        started = time.perf_counter()
        self._until = started + (self.plan.seconds or 3600.0)
        for _ in range(self.plan.connections):
            await loop.create_connection(lambda: _Connection(self), parts.hostname or "", parts.port or 80)
        await self._over.wait()
        if self.lost:
            self._statuses[0] = self.lost
        return Outcome(time.perf_counter() - started, dict(self._statuses), self.received, self._latencies)

    def next_request(self) -> bytes | None:
        if time.perf_counter() >= self._until:
            return None
        return next(self._requests, None)

    def answered(self, status: int, latency: float) -> None:
        self._statuses[status] += 1
        self._latencies.append(latency)

    def ended(self, *, lost: bool) -> None:
        self.lost += lost
        self._open -= 1
        if not self._open:
            self._over.set()


def main() -> None:
    """Read a plan from stdin, write its outcome to stdout."""
    import bench.load as shared  # the classes must not be those of __main__: they travel to another process

    plan = pickle.loads(sys.stdin.buffer.read())
    outcome = uvloop.run(shared.Run(plan).run())
    sys.stdout.buffer.write(pickle.dumps(outcome))
    sys.stdout.buffer.flush()


if __name__ == "__main__":
    main()
