"""What works and what doesn't."""

import asyncio
from collections.abc import Sequence
from datetime import datetime, timedelta
from typing import Literal

from pydantic import BaseModel, Field
from pymongo.errors import PyMongoError

from app.alerting.poll_holes import longest_gap
from app.config import Settings
from app.database import coverage, feeds, notifications
from app.database.client import Document, ping
from app.logs import without_addresses
from app.market.bybit import SOURCE as BYBIT
from app.market.coinmarketcap import SOURCE
from app.services import Beating, Running, Services

POLLS_UNTIL_DEAD = 3
LATE_CANDLES_AFTER = timedelta(minutes=10)
LONGEST_JOB_SECONDS = 120.0
"""A job may take this long (MongoDB away, CoinMarketCap hanging) before its thread counts as dead."""
READY_SECONDS = 2.0
"""How long /health/ready waits for MongoDB: those who probe it usually wait five seconds in all."""


class PriceFeed(BaseModel):
    """CoinMarketCap as last seen."""

    poll_seconds: float = Field(description="How often it is polled: `POLL_SECONDS`, or what the key's plan carries")
    budget: str | None = Field(description="Why it is polled less often than `POLL_SECONDS` says; else null")
    last_good_at: datetime | None
    last_good_age_seconds: float | None
    last_error_at: datetime | None
    last_error: str | None


class Upstream(BaseModel):
    """Everything that was asked of CoinMarketCap or Bybit, by all copies of this service together."""

    last_success_at: datetime | None
    last_error_at: datetime | None
    last_error: str | None
    calls_today: int = Field(description="Since midnight UTC")
    credits_today: int = Field(description="Since midnight UTC, as its answers state them; Bybit costs none")
    credits_left: int | None = Field(description="Of a CoinMarketCap key this month, read every 15 minutes; else null")


class CandleFeed(BaseModel):
    """Bybit's candles: how many coins are followed by them, and how many of these are over ten minutes late."""

    followed: int | None
    late: int | None


class MailQueue(BaseModel):
    """The outbox, and where mails go: `smtp` to a mail server, `file` to data/outbox/ as SMTP_HOST is not set."""

    transport: Literal["smtp", "file"]
    queue_length: int | None
    oldest_age_seconds: float | None
    error: str | None = Field(description="What keeps one of them waiting")


class Liveness(BaseModel):
    """Whether the process works, whatever the database and everybody else does."""

    status: Literal["ok", "down"]
    threads: dict[str, Literal["ok", "down"]] = Field(description="Every background thread by its name")


class Readiness(BaseModel):
    """Whether requests can be served now."""

    status: Literal["ok", "down"]
    database: Literal["ok", "down"]


class Health(BaseModel):
    """`ok`; `degraded`: requests are served, yet prices or mails are late; `down`: requests can't be served."""

    status: Literal["ok", "degraded", "down"]
    database: Literal["ok", "down"]
    scheduler: Literal["ok", "down"]
    scheduler_heartbeat_age_seconds: float = Field(description="Since the scheduler thread last went round")
    prices: PriceFeed
    candles: CandleFeed
    mail: MailQueue
    upstreams: dict[str, Upstream] = Field(description="`bybit` and `coinmarketcap`; empty while the database is down")


def check_liveness(settings: Settings, scheduler: Beating, threads: Sequence[Running]) -> Liveness:
    """Look at the threads: each must run, and the scheduler's must go round. Asks nobody."""
    works = {thread.name: thread.is_alive() for thread in threads}
    works[scheduler.name] = _is_polling(settings, scheduler)
    return Liveness(
        status="ok" if all(works.values()) else "down",
        threads={name: "ok" if working else "down" for name, working in works.items()},
    )


async def check_readiness(services: Services) -> Readiness:
    """Ask the database, and wait no longer for it than a probe does."""
    try:
        async with asyncio.timeout(READY_SECONDS):
            await ping(services.database)
    except (PyMongoError, TimeoutError):
        return Readiness(status="down", database="down")
    return Readiness(status="ok", database="ok")


async def check_health(services: Services) -> Health:
    """Look at every part once. Raises nothing for a part that is down."""
    try:
        prices, candles, mail = await _prices(services), await _candles(services), await _mail(services)
        upstreams = {source: await _upstream(services, source) for source in (BYBIT, SOURCE)}
        database: Literal["ok", "down"] = "ok"
    except PyMongoError:
        prices, candles = _price_feed(services, {}), CandleFeed(followed=None, late=None)
        mail = MailQueue(transport=_transport(services), queue_length=None, oldest_age_seconds=None, error=None)
        upstreams = {}
        database = "down"
    alive = _is_polling(services.settings, services.scheduler)
    return Health(
        status=_overall(services, database == "ok" and alive, prices, candles, mail),
        database=database,
        scheduler="ok" if alive else "down",
        scheduler_heartbeat_age_seconds=round(services.scheduler.heartbeat_age, 3),
        prices=prices,
        candles=candles,
        mail=mail,
        upstreams=upstreams,
    )


def _overall(
    services: Services, serving: bool, prices: PriceFeed, candles: CandleFeed, mail: MailQueue
) -> Literal["ok", "degraded", "down"]:
    if not serving:
        return "down"
    limit = services.settings.stale_after_seconds
    slow_limit = max(limit, longest_gap(prices.poll_seconds).total_seconds())
    old_price = prices.last_good_age_seconds is None or prices.last_good_age_seconds > slow_limit
    old_mail = mail.oldest_age_seconds is not None and mail.oldest_age_seconds > limit
    # One coin may be late for good, when its pair was delisted: that is no state of the service.
    late_candles = 2 * (candles.late or 0) > (candles.followed or 0)
    return "degraded" if old_price or late_candles or old_mail else "ok"


def _is_polling(settings: Settings, scheduler: Beating) -> bool:
    patience = max(LONGEST_JOB_SECONDS, POLLS_UNTIL_DEAD * settings.poll_seconds)
    return scheduler.is_alive() and scheduler.heartbeat_age < patience


async def _prices(services: Services) -> PriceFeed:
    return _price_feed(services, await feeds.feed(services.database, source=SOURCE))


async def _candles(services: Services) -> CandleFeed:
    followed, late = await coverage.count_followed(
        services.database, late_before=services.clock.now() - LATE_CANDLES_AFTER
    )
    return CandleFeed(followed=followed, late=late)


def _price_feed(services: Services, known: Document) -> PriceFeed:
    last_good_at = known.get("last_good_at")
    return PriceFeed(
        poll_seconds=known.get("poll_seconds", services.settings.poll_seconds),
        budget=known.get("budget"),
        last_good_at=last_good_at,
        last_good_age_seconds=_age(services, last_good_at),
        last_error_at=known.get("last_error_at"),
        last_error=known.get("last_error"),
    )


async def _upstream(services: Services, source: str) -> Upstream:
    known = await services.market.usage.today(source)
    return Upstream(
        last_success_at=known.get("answered_at"),
        last_error_at=known.get("failed_at"),
        last_error=known.get("failure"),
        calls_today=known["usage"]["calls"],
        credits_today=known["usage"]["credits"],
        credits_left=known.get("credits_left"),
    )


async def _mail(services: Services) -> MailQueue:
    queue = await notifications.queue_state(services.database)
    return MailQueue(
        transport=_transport(services),
        queue_length=queue.length,
        oldest_age_seconds=_age(services, queue.oldest_fired_at),
        error=queue.error and without_addresses(queue.error),
    )


def _transport(services: Services) -> Literal["smtp", "file"]:
    return "smtp" if services.settings.smtp_host else "file"


def _age(services: Services, moment: datetime | None) -> float | None:
    return None if moment is None else round((services.clock.now() - moment).total_seconds(), 3)
