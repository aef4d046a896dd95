"""The market side against the sandbox, both on the test's own clock."""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from functools import partial
from typing import Any

import pytest

from sandbox.exchange import Exchange
from tests.market.support import KEY, MarketCaller, market_service
from tests.support import ManualClock, make_settings

Serve = Callable[..., AbstractContextManager[MarketCaller]]


@pytest.fixture
def exchange(clock: ManualClock) -> Iterator[Exchange]:
    """Both upstreams; their time is the service's."""
    with Exchange(now=clock.now) as running:
        yield running


@pytest.fixture
def serve(mongo_url: str, database_name: str, exchange: Exchange, clock: ManualClock) -> Serve:
    """Runs a service whose upstreams are the sandbox; several at once are copies of one service."""
    defaults: dict[str, Any] = {
        "mongo_url": mongo_url,
        "mongo_db": database_name,
        "bybit_url": exchange.url,
        "coinmarketcap_url": exchange.url,
        "crypto_api_key": KEY,
    }

    def settled(**changes: Any) -> AbstractContextManager[MarketCaller]:
        patience = changes.pop("patience", None)
        return market_service(
            make_settings(**defaults | changes), clock, **({"patience": patience} if patience else {})
        )

    return partial(settled)


@pytest.fixture
def market(serve: Serve) -> Iterator[MarketCaller]:
    """One running service, and somebody with its key."""
    with serve() as caller:
        yield caller
