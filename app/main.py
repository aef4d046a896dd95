"""The application: `create_app()` builds it, its lifespan owns every connection and thread."""

import asyncio
import logging
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager, closing
from dataclasses import dataclass
from typing import TypedDict

from fastapi import FastAPI

from app.alerting.candles_first import CandlesFirst
from app.alerting.catch_up import CatchUp
from app.alerting.creation import AlertCreator
from app.alerting.delivery import Delivery
from app.alerting.mailer import connect_mailer
from app.alerting.outbox import Outbox
from app.auth.security import PasswordHasher
from app.clock import Clock
from app.config import FALLBACK_MAIL_FROM, Settings, load_settings
from app.database import client, coins, migrations
from app.exposition import sharing_figures
from app.job_scheduler import CandleThread, SchedulerThread, Senders, SenderThread
from app.market.bybit import Bybit
from app.market.coinmarketcap import CoinMarketCap
from app.market.market_data import Meters, make_meters, open_market
from app.metrics import Metrics
from app.routers import alerts, market, service, users
from app.routers.body_limit import BodyLimit
from app.routers.bookkeeping import Bookkeeping, RequestIds
from app.routers.cors import Cors
from app.routers.error_handlers import install_error_handlers
from app.routers.market_fast_path import MarketFastPath
from app.services import Services
from app.ticker import Ticker, connect_coinmarketcap

logger = logging.getLogger(__name__)

MOST_BODY_BYTES = 64 * 1024
FIRST_PRICES_SECONDS = 1.0
"""How long a start waits for the first poll, so that coins and prices are usually known to the first caller."""


class State(TypedDict):
    """What each request's `state` holds."""

    services: Services


def create_app(settings: Settings | None = None, clock: Clock | None = None, metrics: Metrics | None = None) -> FastAPI:
    """Build the application. Settings left out are read when it starts, not now."""
    counted = metrics or Metrics()

    @asynccontextmanager
    async def lifespan(_app: FastAPI) -> AsyncIterator[State]:
        async with _running(settings or load_settings(), clock or Clock(), counted) as services:
            yield {"services": services}

    app = FastAPI(
        title="CryptoTicker",
        description="Watches crypto prices and mails you when a coin reaches your price.",
        version="0.1.0",
        lifespan=lifespan,
        redirect_slashes=False,
    )
    install_middleware(app, counted)
    install_error_handlers(app)
    for module in (service, users, alerts, market):
        app.include_router(module.router)
    return app


def install_middleware(app: FastAPI, metrics: Metrics) -> None:
    """Put around `app` what every request goes through; the last one is the outermost."""
    ids = RequestIds()
    app.add_middleware(BodyLimit, most_bytes=MOST_BODY_BYTES)
    app.add_middleware(Cors)
    app.add_middleware(Bookkeeping, metrics=metrics, ids=ids)
    app.add_middleware(MarketFastPath, metrics=metrics, ids=ids)


@dataclass(frozen=True)
class _Background:
    """What all background threads are made of."""

    settings: Settings
    clock: Clock
    metrics: Metrics
    database: client.SyncDB
    candles_first: CandlesFirst


@asynccontextmanager
async def _running(settings: Settings, clock: Clock, metrics: Metrics) -> AsyncIterator[Services]:
    """Open the connections, start the threads; undo both in reverse."""
    if settings.smtp_host and settings.mail_from == FALLBACK_MAIL_FROM:
        logger.warning("MAIL_FROM is not set: mails come from %s, which most mail servers refuse", FALLBACK_MAIL_FROM)
    async with AsyncExitStack() as stack:
        async_client = await stack.enter_async_context(client.connect_async(settings.mongo_url))
        sync_client = stack.enter_context(client.connect(settings.mongo_url))
        meters = make_meters(clock, metrics)
        coinmarketcap = stack.enter_context(closing(connect_coinmarketcap(settings, clock, meters.coinmarketcap)))
        passwords = stack.enter_context(closing(PasswordHasher(settings.bcrypt_rounds)))
        database, sync_database = async_client[settings.mongo_db], sync_client[settings.mongo_db]
        await asyncio.to_thread(_prepare, sync_database, clock)
        candles_first = CandlesFirst(database=sync_database, clock=clock)
        background = _Background(settings, clock, metrics, sync_database, candles_first)
        senders = _make_senders(background)
        ticker = _make_ticker(background, coinmarketcap, meters)
        scheduler = SchedulerThread(ticker=ticker, poll_seconds=settings.poll_seconds, on_fired=senders.wake)
        await stack.enter_async_context(_polling_and_sending(scheduler, senders))
        market_data = await stack.enter_async_context(
            open_market(settings, clock=clock, database=database, meters=meters)
        )
        catch_up = _make_catch_up(background, market_data.bybit)
        candles = await stack.enter_async_context(_following_candles(catch_up, senders.wake))
        stack.enter_context(sharing_figures(metrics, database=sync_database, clock=clock, scheduler=scheduler))
        yield Services(
            settings=settings,
            clock=clock,
            database=database,
            passwords=passwords,
            scheduler=scheduler,
            threads=(scheduler, *senders.threads, candles),
            market=market_data,
            creator=AlertCreator(database=database, settings=settings, clock=clock),
        )


def _make_senders(background: _Background) -> Senders:
    settings, database, clock = background.settings, background.database, background.clock
    outbox = Outbox(database=database, clock=clock)
    threads = []
    for number in range(1, settings.smtp_connections + 1):
        mailer = connect_mailer(settings)
        delivery = Delivery(
            database=database,
            outbox=outbox,
            mailer=mailer,
            mail_from=settings.mail_from,
            clock=clock,
            metrics=background.metrics,
        )
        threads.append(SenderThread(delivery=delivery, mailer=mailer, number=number))
    return Senders(outbox=outbox, threads=threads)


def _make_ticker(background: _Background, coinmarketcap: CoinMarketCap, meters: Meters) -> Ticker:
    return Ticker(
        settings=background.settings,
        database=background.database,
        client=coinmarketcap,
        credits_of_key=meters.credits,
        clock=background.clock,
        candles_first=background.candles_first,
        metrics=background.metrics,
    )


def _make_catch_up(background: _Background, bybit: Bybit) -> CatchUp:
    return CatchUp(
        settings=background.settings,
        database=background.database,
        bybit=bybit,
        clock=background.clock,
        candles_first=background.candles_first,
        metrics=background.metrics,
    )


@asynccontextmanager
async def _polling_and_sending(scheduler: SchedulerThread, senders: Senders) -> AsyncIterator[None]:
    senders.start()
    scheduler.start()
    try:
        await asyncio.to_thread(scheduler.first_run_done.wait, FIRST_PRICES_SECONDS)
        yield
    finally:
        await asyncio.gather(asyncio.to_thread(scheduler.stop), asyncio.to_thread(senders.stop))


@asynccontextmanager
async def _following_candles(catch_up: CatchUp, on_fired: Callable[[], None]) -> AsyncIterator[CandleThread]:
    thread = CandleThread(catch_up=catch_up, on_fired=on_fired)
    thread.start()
    try:
        yield thread
    finally:
        thread.stopping.set()
        catch_up.close()
        await asyncio.to_thread(thread.stop)


def _prepare(database: client.SyncDB, clock: Clock) -> None:
    migrations.migrate(database, clock)
    coins.ensure_always_known(database)
