"""Queries that fire alerts. One conditional write per alert settles everything (invariants 1 and 2).

The write that turns an alert from `created` to `triggered` also puts its notification into the outbox, in the same
document: there is no moment at which a fired alert has none, and nothing to repair after a crash.
"""

from collections.abc import Collection, Iterable, Sequence
from datetime import datetime
from typing import Any

import pymongo
from pymongo import ASCENDING, UpdateMany

from app.database.client import BULK_TIMEOUT_SECONDS, LIVE, Document, SyncDB
from app.observations import Observation
from app.spans import MINUTE, SETTLING, floor_to_minute


def watched_coins(database: SyncDB) -> set[int]:
    """Return the ids of all coins that have a live alert, read off the index alone."""
    return set(database.alerts.distinct("coin_id", LIVE))


def settle(database: SyncDB, observations: Iterable[Observation], *, candles_due: Collection[int] = ()) -> None:
    """Give alerts that were made without a price their `currentPrice` and, unless it was stated, their direction.

    The first price seen after the alert's creation decides: a target at or over it means `above`.
    """
    waiting = set(database.alerts.distinct("coin_id", {"unsettled": True}))
    updates = [_settlement(seen, _eligible(seen, candles_due)) for seen in observations if seen.coin_id in waiting]
    if updates:
        database.alerts.bulk_write(updates, ordered=True)


def first_live_since(database: SyncDB, *, coin_id: int) -> datetime | None:
    """Return when the oldest live alert of the coin that wants candles was created, None if there is none."""
    wanting = {**LIVE, "coin_id": coin_id, "touch": True}
    oldest = database.alerts.find_one(wanting, {"created_at": 1}, sort=[("created_at", ASCENDING)], hint="armed")
    return oldest["created_at"] if oldest else None


def is_any_created(database: SyncDB, *, coin_id: int, after: datetime, until: datetime) -> bool:
    """Whether the coin has a live alert that was created after the one moment and not after the other."""
    between = {**LIVE, "coin_id": coin_id, "created_at": {"$gt": after, "$lte": until}}
    return database.alerts.find_one(between, {"_id": 1}, hint="armed") is not None


def is_any_touched(database: SyncDB, *, coin_id: int, low: float, high: float, before: datetime) -> bool:
    """Whether prices from `low` to `high` reach a live alert of the coin that wants candles and is older than `before`.

    One without a direction yet is reached by any price.
    """
    old_enough = {**LIVE, "coin_id": coin_id, "touch": True, "created_at": {"$lt": before}}
    # Those without a direction first: one that gets its direction between two looks is then found by the later one.
    for reached in (
        {"direction": None},
        {"direction": "above", "target": {"$lte": high}},
        {"direction": "below", "target": {"$gte": low}},
    ):
        if database.alerts.find_one(old_enough | reached, {"_id": 1}, hint="armed"):
            return True
    return False


def fire(
    database: SyncDB, observations: Sequence[Observation], *, now: datetime, candles_due: Collection[int] = ()
) -> int:
    """Fire every live alert that the observations touched, in their order; returns how many fired.

    Costs an index range per observation and direction, however many alerts are live. Running it again fires nothing
    twice.
    """
    updates = [
        _firing(seen, reached, _eligible(seen, candles_due), now=now)
        for seen in observations
        for reached in _reached(seen)
    ]
    if not updates:
        return 0
    with pymongo.timeout(BULK_TIMEOUT_SECONDS):
        return database.alerts.bulk_write(updates, ordered=True).modified_count


def _reached(seen: Observation) -> tuple[tuple[str, Document, float], ...]:
    """Per direction: which targets the observation touched, and the price that touched them."""
    return ("above", {"$lte": seen.high}, seen.high), ("below", {"$gte": seen.low}, seen.low)


def _firing(
    seen: Observation, reached: tuple[str, Document, float], eligible: Document, *, now: datetime
) -> UpdateMany:
    direction, targets, price = reached
    touched: Document = {
        **LIVE,
        "coin_id": seen.coin_id,
        "direction": direction,
        "target": targets,
        "created_at": {"$lte": seen.start},
        **eligible,
    }
    firing: Document = {
        "status": "triggered",
        "triggered_at": seen.start,
        "triggered_until": seen.end,
        "triggered_price": price,
        "triggered_source": seen.source,
        "triggered_pair": seen.pair,
        "fired_at": now,
        "notification": {"state": "pending", "attempts": 0, "due_at": now, "sent_at": None, "error": None},
    }
    return UpdateMany(touched, {"$set": firing}, hint="armed")


def _eligible(seen: Observation, candles_due: Collection[int]) -> Document:
    """A candle is for alerts with `touch` only; the others go by the polled price alone.

    A poll that candles come before is for alerts that these can't concern: without `touch`, or set after the last one
    that is closed began.
    """
    if seen.pair:
        return {"touch": True}
    if seen.coin_id in candles_due:
        latest_candle = floor_to_minute(seen.start - SETTLING) - MINUTE
        return {"$or": [{"touch": False}, {"created_at": {"$gt": latest_candle}}]}
    return {}


def _settlement(seen: Observation, eligible: Document) -> UpdateMany:
    by_price: Any = {"$cond": [{"$gte": ["$target", seen.first]}, "above", "below"]}
    waiting: Document = {"unsettled": True, **LIVE, "coin_id": seen.coin_id, "created_at": {"$lte": seen.start}}
    return UpdateMany(
        waiting | eligible,
        [
            {"$set": {"direction": {"$ifNull": ["$direction", by_price]}, "currentPrice": seen.first}},
            {"$set": {"directions": ["$direction"]}},
            {"$unset": "unsettled"},
        ],
    )
