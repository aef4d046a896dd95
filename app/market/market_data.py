"""The market side put together: both upstreams' clients, the snapshot and the candles."""

import asyncio
from collections.abc import AsyncIterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from dataclasses import dataclass

from app.clock import Clock
from app.config import Settings
from app.database.client import AsyncDB
from app.market import bybit, coinmarketcap, http
from app.market.bybit import Bybit
from app.market.coinmarketcap import CoinMarketCap
from app.market.credits import Credits
from app.market.klines import Klines
from app.market.meter import Meter
from app.market.refresh import Refresher
from app.market.snapshot import Snapshots
from app.market.usage import UsageRecorder
from app.metrics import Metrics

CANDLE_THREADS = 16


@dataclass(frozen=True, slots=True)
class Meters:
    """One per upstream, and what a key's plan carries: shared by every client in this process."""

    bybit: Meter
    coinmarketcap: Meter
    credits: Credits


@dataclass(frozen=True, slots=True)
class MarketData:
    """What the market routes, and everybody else who needs Bybit, use."""

    bybit: Bybit
    snapshots: Snapshots
    klines: Klines
    usage: UsageRecorder


def make_meters(clock: Clock, metrics: Metrics | None = None) -> Meters:
    """Make meters that have counted nothing yet."""
    meter = Meter(coinmarketcap.SOURCE, clock, metrics)
    return Meters(Meter(bybit.SOURCE, clock, metrics), meter, Credits(clock=clock, meter=meter))


@asynccontextmanager
async def open_market(
    settings: Settings, *, clock: Clock, database: AsyncDB, meters: Meters, patience: http.Patience = http.PATIENCE
) -> AsyncIterator[MarketData]:
    """Open the market side; on the way out its calls under way are given up and its connections closed."""
    bybit_client = Bybit(base_url=settings.bybit_url, clock=clock, meter=meters.bybit, patience=patience)
    cap_client = CoinMarketCap(
        base_url=settings.coinmarketcap_url,
        api_key=settings.coinmarketcap_api_key,
        clock=clock,
        meter=meters.coinmarketcap,
        patience=patience,
    )
    snapshot_pool = ThreadPoolExecutor(1, "market-snapshot")
    part_pool = ThreadPoolExecutor(1, "market-parts")
    candle_pool = ThreadPoolExecutor(CANDLE_THREADS, "market-candles")
    usage = UsageRecorder(database=database, meters=(meters.bybit, meters.coinmarketcap), clock=clock)
    snapshots = Snapshots(
        database=database,
        refresher=Refresher(bybit=bybit_client, coinmarketcap=cap_client, credits_of_key=meters.credits, clock=clock),
        clock=clock,
        lifetime_seconds=settings.market_cache_seconds,
        pool=snapshot_pool,
        part_pool=part_pool,
        noted=usage.record,
    )
    recording = asyncio.create_task(usage.record_regularly(), name="usage of the upstreams")
    try:
        await snapshots.start()
        yield MarketData(bybit_client, snapshots, Klines(bybit=bybit_client, clock=clock, pool=candle_pool), usage)
    finally:
        recording.cancel()
        await asyncio.wait({recording})
        await snapshots.close()
        await usage.record()
        for pool in (snapshot_pool, part_pool, candle_pool):
            pool.shutdown(wait=False, cancel_futures=True)
        bybit_client.close()
        cap_client.close()
