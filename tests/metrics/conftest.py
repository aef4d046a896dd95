"""A service that something has happened to."""

from collections.abc import Iterator
from dataclasses import replace
from functools import partial

import pytest
import requests

from app.config import Settings
from sandbox.exchange import Exchange
from sandbox.mailbox import Mailbox
from tests.metrics.support import Scrape, scrape, watched
from tests.support import Caller, wait_until

BTC = 1


def is_settled(user: Caller, alert_id: str) -> bool:
    notification = user.alert(alert_id)["notification"]
    return notification is not None and notification["state"] in {"sent", "failed"}


@pytest.fixture
def lived(settings: Settings, exchange: Exchange, mailbox: Mailbox) -> Iterator[Scrape]:
    """What a service tells after an alert fired, was refused once, and another one stayed armed."""
    settings = replace(settings, bybit_url=exchange.url, coinmarketcap_api_key="a-key", crypto_api_key="a-key")
    exchange.plan.monthly_credits, exchange.plan.minute_requests = 10**9, 10**6  # else polls would be spread out
    with watched(settings) as (url, metrics):
        user = Caller(url).sign_up("alice@example.com")
        exchange.market.set_price(BTC, 100_000.0)
        user.create(150_000)
        mailbox.refuse("alice@example.com", "550 5.1.1 no", times=1)
        for target in (101_000, 102_000):
            alert = user.create(target)
            exchange.market.set_price(BTC, target + 1.0)
            wait_until(partial(is_settled, user, alert["alert_id"]))
        path = f"{url}/api/market/aggregated_data"
        wait_until(lambda: requests.get(path, headers={"X-API-Key": "a-key"}, timeout=30).status_code == 200)
        requests.get(path, headers={"X-API-Key": "a-key"}, timeout=30)
        wait_until(lambda: scrape(metrics).value("alerts_armed") == 1)
        wait_until(lambda: scrape(metrics).value("upstream_credits_left") is not None)
        yield scrape(metrics)
        user.close()
