"""CoinMarketCap and Bybit on one local port, with prices and failures that the caller sets.

`python -m sandbox.exchange --port 9100 [--replay BTC=file.csv] [--walk]` runs it as a process of its own.
"""

import argparse
import asyncio
import json
import signal
import threading
import time
from collections import defaultdict, deque
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Self

from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response
from starlette.routing import Route

from sandbox import bybit, error_bodies
from sandbox.candles import read_candles
from sandbox.coinmarketcap import CoinMarketCap
from sandbox.coins import Clock, Market, by_rank, utc_now
from sandbox.control import control_routes
from sandbox.default_market import default_market
from sandbox.faults import JSON, Fault, Faults
from sandbox.plan import Plan
from sandbox.server import BrokenResponse, Server

REMEMBERED_REQUESTS = 100_000
BYBIT_WINDOW_SECONDS = 5.0


@dataclass(frozen=True)
class Asked:
    """A request that came in; header names are lower case, `at` is the market's time."""

    path: str
    params: dict[str, str]
    headers: dict[str, str]
    at: datetime


class Exchange:
    """Both upstreams, from `start()` to `stop()` or as a context manager.

    `now` is the clock of the default market; a `market` of one's own brings its own. `api_key` None lets any
    key pass. `bybit_limit` is how many requests an address may send to Bybit in five seconds (600 in reality).
    """

    def __init__(
        self,
        port: int = 0,
        now: Clock = utc_now,
        *,
        market: Market | None = None,
        api_key: str | None = None,
        plan: Plan | None = None,
        bybit_limit: int | None = None,
        host: str = "127.0.0.1",
    ) -> None:
        self.market = market or default_market(now)
        self.faults = Faults()
        self.plan = plan or Plan()
        self.bybit_limit = bybit_limit
        self._coinmarketcap = CoinMarketCap(self.market, api_key, self.plan)
        self._asked: deque[Asked] = deque(maxlen=REMEMBERED_REQUESTS)
        self._bybit_visits: defaultdict[str, deque[float]] = defaultdict(deque)
        self._stopping = asyncio.Event()
        routes = [*control_routes(self), Route("/{path:path}", self._answer, methods=["GET"])]
        self._server = Server(Starlette(routes=routes), host, port, self._stopping)
        self.url = f"http://{host}:{self._server.port}"

    def start(self) -> Self:
        """Answer requests from now on."""
        self._server.start()
        return self

    def stop(self) -> None:
        """Close every connection, also those of answers that hang."""
        self._server.stop()

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(self, *_: object) -> None:
        self.stop()

    @property
    def requests(self) -> list[Asked]:
        """What upstreams were asked, oldest first; of more than 100,000 the oldest are forgotten."""
        return list(self._asked)

    def asked(self, path: str) -> list[Asked]:
        """The requests whose path contains `path`."""
        return [request for request in self.requests if path in request.path]

    def forget_requests(self) -> None:
        """Empty `requests`."""
        self._asked.clear()

    async def _answer(self, request: Request) -> Response:
        path, params, headers = request.url.path, dict(request.query_params), dict(request.headers)
        self._asked.append(Asked(path, params, headers, self.market.now()))
        fault = self.faults.take(path)
        if fault is not None and fault.replaces_answer:
            body = (fault.body or "").encode()
            return BrokenResponse(fault, body, fault.status or 200, fault.content_type, self._stopping)
        if path.startswith("/v5/") and self._bybit_is_tired(request.client.host if request.client else ""):
            return PlainTextResponse(error_bodies.BYBIT_TOO_FREQUENT, 403)
        status, answer = self._true_answer(path, params, headers.get("x-cmc_pro_api_key"))
        return self._sent(fault or Fault(), status, answer)

    def _true_answer(self, path: str, params: dict[str, str], key: str | None) -> tuple[int, Any]:
        with self.market.moment() as now:
            if path.startswith("/v5/"):
                return bybit.answer(self.market, path, params, now)
            return self._coinmarketcap.answer(path, params, key, now)

    def _sent(self, fault: Fault, status: int, answer: Any) -> Response:
        if fault.rewrite is not None:
            answer = fault.rewrite(answer)
        body = json.dumps(answer).encode()
        if fault == Fault():
            return Response(body, status, media_type=JSON)
        return BrokenResponse(fault, body, status, JSON, self._stopping)

    def _bybit_is_tired(self, address: str) -> bool:
        if self.bybit_limit is None:
            return False
        visits, moment = self._bybit_visits[address], time.monotonic()
        visits.append(moment)
        while visits[0] <= moment - BYBIT_WINDOW_SECONDS:
            visits.popleft()
        return len(visits) > self.bybit_limit


def main() -> None:
    """Run until interrupted."""
    options = _options()
    exchange = Exchange(options.port)
    coins = by_rank(exchange.market.coins.values())
    if options.walk:
        for coin in coins:
            exchange.market.walk(coin.id, seed=coin.id)
    best = {coin.symbol: coin.id for coin in reversed(coins)}
    for symbol, path in (replay.split("=", 1) for replay in options.replay):
        exchange.market.replay(best[symbol], read_candles(path), options.speed)
    stopped = threading.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: stopped.set())
    with exchange:
        print(f"CoinMarketCap and Bybit at {exchange.url}", flush=True)
        stopped.wait()


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m sandbox.exchange", description=__doc__)
    parser.add_argument("--port", type=int, default=9100)
    parser.add_argument("--walk", action="store_true", help="let every price walk at random")
    parser.add_argument("--replay", action="append", default=[], metavar="BTC=FILE.CSV", help="follow recorded candles")
    parser.add_argument("--speed", type=float, default=60.0, help="how much faster than recorded (60)")
    return parser.parse_args()


if __name__ == "__main__":
    main()
