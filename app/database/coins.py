"""Queries on `coins`: `{_id, symbol, ticker, name, rank, active, price?, price_seen_at?}`.

`_id` is CoinMarketCap's id. `ticker` is the symbol in upper case, as people type it; several coins may share one.
`price` is the last good one, in USD.
"""

from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime

import pymongo
from pymongo import ASCENDING, DESCENDING, UpdateOne

from app.clock import DRIFT
from app.database.client import BULK_TIMEOUT_SECONDS, AsyncDB, Document, SyncDB
from app.observations import Observation

UNRANKED = 2**31 - 1
"""Stands for "no rank", so that such coins sort behind all others."""

ALWAYS_KNOWN: tuple[Document, ...] = (
    {"_id": 1, "symbol": "BTC", "ticker": "BTC", "name": "Bitcoin", "rank": 1, "active": True},
    {"_id": 1027, "symbol": "ETH", "ticker": "ETH", "name": "Ethereum", "rank": 2, "active": True},
)


@dataclass(frozen=True, slots=True)
class SeenPrice:
    """A price in USD and when it was seen (aware UTC)."""

    price: float
    at: datetime


# The web side reads.


async def find_by_tickers(database: AsyncDB, tickers: Sequence[str]) -> list[Document | None]:
    """Return for each upper-case ticker its best-ranked active coin, or None."""
    wanted = {"ticker": {"$in": tickers}, "active": True}
    best_last = await database.coins.find(wanted).sort("rank", DESCENDING).to_list()
    best = {coin["ticker"]: coin for coin in best_last}
    return [best.get(ticker) for ticker in tickers]


async def last_prices(database: AsyncDB, coin_ids: Sequence[int]) -> list[SeenPrice | None]:
    """Return the last good price of each coin, or None."""
    wanted = {"_id": {"$in": coin_ids}, "price": {"$exists": True}}
    found = await database.coins.find(wanted, ("price", "price_seen_at")).to_list()
    seen = {coin["_id"]: SeenPrice(coin["price"], coin["price_seen_at"]) for coin in found}
    return [seen.get(coin_id) for coin_id in coin_ids]


# The scheduler thread writes.


def ensure_always_known(database: SyncDB) -> None:
    """Make BTC and ETH resolvable, also where CoinMarketCap has never answered."""
    database.coins.bulk_write(
        [UpdateOne({"_id": coin["_id"]}, {"$setOnInsert": coin}, upsert=True) for coin in ALWAYS_KNOWN]
    )


def replace_map(database: SyncDB, coins: Iterable[Document], *, now: datetime) -> int:
    """Bring the stored coins in line with CoinMarketCap's whole map of active coins; returns how many it holds.

    Coins that are no longer in it become inactive: their ticker stops resolving, alerts on them stay.
    """
    updates = [
        UpdateOne({"_id": coin["_id"]}, {"$set": {**coin, "active": True, "mapped_at": now}}, upsert=True)
        for coin in coins
    ]
    with pymongo.timeout(BULK_TIMEOUT_SECONDS):
        database.coins.bulk_write(updates, ordered=False)
    always_known = [coin["_id"] for coin in ALWAYS_KNOWN]
    gone = {"active": True, "mapped_at": {"$ne": now}, "_id": {"$nin": always_known}}
    database.coins.update_many(gone, {"$set": {"active": False}})
    return len(updates)


def count_mapped(database: SyncDB) -> int:
    """Return how many active coins the last map held."""
    return database.coins.count_documents({"active": True, "mapped_at": {"$exists": True}})


def find_coin(database: SyncDB, *, coin_id: int) -> Document | None:
    """Return the coin with this id, or None."""
    return database.coins.find_one({"_id": coin_id})


def best_ranked(database: SyncDB, *, count: int) -> list[int]:
    """Return the ids of the `count` best-ranked active coins, best first."""
    coins = database.coins.find({"active": True}, {"_id": 1}).sort("rank", ASCENDING).limit(count)
    return [coin["_id"] for coin in coins]


def prices_seen(database: SyncDB, coin_ids: Collection[int]) -> dict[int, SeenPrice]:
    """Return the last price of each of these coins that ever had one."""
    priced = database.coins.find({"_id": {"$in": list(coin_ids)}, "price_seen_at": {"$exists": True}})
    return {coin["_id"]: SeenPrice(coin["price"], coin["price_seen_at"]) for coin in priced}


def store_prices(database: SyncDB, observations: Iterable[Observation], *, now: datetime) -> None:
    """Remember each coin's latest price; one that was seen earlier than what is known changes nothing.

    What was seen in the future, by a clock that was ahead, is replaced by anything.
    """
    older: list[Document] = [{"price_seen_at": None}, {"price_seen_at": {"$gt": now + DRIFT}}]
    updates = [
        UpdateOne(
            {"_id": seen.coin_id, "$or": [{"price_seen_at": {"$lte": seen.end}}, *older]},
            {"$set": {"price": seen.close, "price_seen_at": seen.end}},
        )
        for seen in observations
    ]
    if updates:
        database.coins.bulk_write(updates, ordered=False)
