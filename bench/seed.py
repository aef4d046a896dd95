"""Alerts by the million, made inside mongod: 500 coins, 100 alerts a user."""

from datetime import UTC, datetime, timedelta
from typing import Any

from bson import ObjectId
from pymongo import MongoClient

from app.database.client import Document, SyncDB, create_indexes
from app.database.coins import ensure_always_known
from app.observations import Observation

COINS = 500
ALERTS_PER_USER = 100
USER_PREFIX = "a" * 17
FIRST_USER = 1_000_000
EMAIL = "somebody@example.com"
SOURCE = "coinmarketcap"


def connect_patiently(url: str) -> MongoClient[Document]:
    """The service's client gives up after seconds, which a million documents take longer than."""
    return MongoClient(url, w="majority", tz_aware=True)


def price_of(coin_id: int) -> float:
    """From 100,000 USD downwards."""
    return float(f"{100_000 / coin_id**1.5:.6g}")


def symbol_of(coin_id: int) -> str:
    """Its ticker."""
    return "BTC" if coin_id == 1 else f"C{coin_id}"


def user_id(number: int) -> ObjectId:
    """The user with this number, from 0."""
    return ObjectId(f"{USER_PREFIX}{FIRST_USER + number}")


def observe(at: datetime, coins: int = COINS) -> list[Observation]:
    """What a poll over all the coins sees while every price stands still."""
    return [
        Observation.of_instant(coin_id=coin_id, at=at, price=price_of(coin_id), source=SOURCE)
        for coin_id in range(1, coins + 1)
    ]


def seed(database: SyncDB, count: int, *, near: bool = False) -> None:
    """Fill an empty database with `count` armed alerts, indexes and coins.

    `near`: each alert fires on the coin's present price. Otherwise none does, the closest being 5 % away.
    """
    coins = [{"coin_id": coin_id, "price": price_of(coin_id)} for coin_id in range(1, COINS + 1)]
    number = {"$add": [{"$multiply": [{"$subtract": ["$coin_id", 1]}, count // COINS]}, "$n"]}
    pipeline: list[Document] = [
        {"$documents": coins},
        {"$set": {"n": {"$range": [0, count // COINS]}}},
        {"$unwind": "$n"},
        {"$set": {"k": number, "share": {"$divide": ["$n", count // COINS]}, "up": {"$eq": [{"$mod": ["$n", 2]}, 0]}}},
        {"$replaceWith": _alert(near=near)},
        {"$out": "alerts"},
    ]
    database.aggregate(pipeline)
    create_indexes(database)
    _store_coins(database)


def _alert(*, near: bool) -> Document:
    above, below = ((0.95, -0.4), (1.05, 0.4)) if near else ((1.05, 0.9), (0.95, -0.9))
    direction = {"$cond": ["$up", "above", "below"]}
    first_created = datetime.now(UTC) - timedelta(hours=1)
    names = {"$cond": [{"$eq": ["$coin_id", 1]}, "BTC", {"$concat": ["C", {"$toString": "$coin_id"}]}]}
    owner = {"$toLong": {"$floor": {"$divide": ["$k", ALERTS_PER_USER]}}}
    digits = {"$toString": {"$add": [FIRST_USER, owner]}}
    empty = ("triggered_at", "triggered_price", "triggered_source", "fired_at", "deleted_at", "notification")
    return {
        "user_id": {"$toObjectId": {"$concat": [USER_PREFIX, digits]}},
        "email": {"$literal": EMAIL},
        "status": "created",
        "symbol": names,
        "coin_id": "$coin_id",
        "direction": direction,
        "directions": [direction],
        "touch": {"$literal": True},
        "target": {"$multiply": ["$price", {"$cond": ["$up", _line(*above), _line(*below)]}]},
        "currentPrice": "$price",
        "created_at": {"$add": [first_created, "$k"]},
        **{name: {"$literal": None} for name in empty},
    }


def _line(start: float, slope: float) -> Any:
    return {"$add": [start, {"$multiply": [slope, "$share"]}]}


def _store_coins(database: SyncDB) -> None:
    now = datetime.now(UTC)
    database.coins.delete_many({})
    database.coins.insert_many(
        {
            "_id": coin_id,
            "symbol": symbol_of(coin_id),
            "ticker": symbol_of(coin_id),
            "name": f"Coin {coin_id}",
            "rank": coin_id,
            "active": True,
            "price": price_of(coin_id),
            "price_seen_at": now - timedelta(seconds=30),
        }
        for coin_id in range(1, COINS + 1)
    )
    ensure_always_known(database)
