"""The market routes served on a real socket, without the threads of the alert side, and a caller with the key."""

from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from typing import Any

import requests
from fastapi import FastAPI

from app.alerting.creation import AlertCreator
from app.auth.security import PasswordHasher
from app.clock import Clock
from app.config import Settings
from app.database.client import connect, connect_async
from app.job_scheduler import SchedulerThread
from app.main import State, install_middleware
from app.market import http
from app.market.market_data import MarketData, make_meters, open_market
from app.metrics import Metrics
from app.routers import market, service
from app.routers.error_handlers import install_error_handlers
from app.services import Services
from app.ticker import connect_coinmarketcap
from sandbox.exchange import Exchange
from tests.support import make_ticker, serving, wait_until

KEY = "a-market-key-of-tests"
SNAPSHOT = "/api/market/aggregated_data"
CANDLES = "/api/market/klines"
BYBIT_PATHS = ("/v5/market/instruments-info", "/v5/market/tickers")
LISTINGS_PATH = "/v3/cryptocurrency/listings/latest"
IMPATIENT = http.Patience(connect=5.0, read=1.0, total=2.0)
"""For tests of upstreams that hang."""


class MarketCaller:
    """Somebody with the key."""

    def __init__(self, base_url: str, data: MarketData) -> None:
        self.base_url = base_url
        self.data = data
        self._session = requests.Session()

    def close(self) -> None:
        self._session.close()

    def get(self, path: str, headers: dict[str, str] | None = None, **params: Any) -> requests.Response:
        sent = {"X-API-Key": KEY} | (headers or {})
        return self._session.get(self.base_url + path, params=params, headers=sent, timeout=30)

    def snapshot(self, **params: Any) -> dict[str, Any]:
        answer = self.get(SNAPSHOT, **params)
        assert answer.status_code == 200, answer.text
        pairs: dict[str, Any] = answer.json()
        return pairs

    def candles(self, **params: Any) -> list[list[str]]:
        answer = self.get(CANDLES, **params)
        assert answer.status_code == 200, answer.text
        rows: list[list[str]] = answer.json()
        return rows

    def settle(self) -> None:
        """Wait until no refresh is under way."""
        wait_until(lambda: not self.data.snapshots.is_refreshing)

    def until_refreshed(self, etag: str) -> requests.Response:
        """Ask until there is another snapshot than the one with that tag."""
        answer: requests.Response = wait_until(lambda: self._newer(etag))
        return answer

    def _newer(self, etag: str) -> requests.Response | None:
        answer = self.get(SNAPSHOT)
        return answer if answer.headers.get("ETag") != etag else None


@contextmanager
def market_service(settings: Settings, clock: Clock, patience: http.Patience = http.PATIENCE) -> Iterator[MarketCaller]:
    """Serve the market routes and /health on a free port."""
    opened: list[MarketData] = []

    @asynccontextmanager
    async def lifespan(_app: FastAPI) -> AsyncIterator[State]:
        client = connect_async(settings.mongo_url)
        database = client[settings.mongo_db]
        meters = make_meters(clock)
        passwords = PasswordHasher(settings.bcrypt_rounds)
        async with open_market(settings, clock=clock, database=database, meters=meters, patience=patience) as data:
            opened.append(data)
            yield {
                "services": Services(
                    settings=settings,
                    clock=clock,
                    database=database,
                    passwords=passwords,
                    scheduler=_idle_scheduler(settings, clock),
                    threads=(),
                    market=data,
                    creator=AlertCreator(database=database, settings=settings, clock=clock),
                )
            }
        passwords.close()
        await client.close()

    app = FastAPI(lifespan=lifespan, redirect_slashes=False)
    install_middleware(app, Metrics())
    install_error_handlers(app)
    for module in (service, market):
        app.include_router(module.router)
    with serving(app) as base_url:
        caller = MarketCaller(base_url, opened[0])
        try:
            yield caller
        finally:
            caller.close()


def _idle_scheduler(settings: Settings, clock: Clock) -> SchedulerThread:
    """/health looks at one; it never runs here, so that every upstream call is the market side's."""
    with connect(settings.mongo_url) as client:
        ticker = make_ticker(settings, client[settings.mongo_db], connect_coinmarketcap(settings, clock), clock)
    return SchedulerThread(ticker=ticker, poll_seconds=60, on_fired=lambda: None)


def upstream_calls(exchange: Exchange) -> dict[str, int]:
    """How often each endpoint of the snapshot was asked."""
    return {path: len(exchange.asked(path)) for path in (*BYBIT_PATHS, LISTINGS_PATH)}


ONE_EACH = dict.fromkeys((*BYBIT_PATHS, LISTINGS_PATH), 1)
