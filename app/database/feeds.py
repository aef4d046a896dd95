"""Queries on `feeds`, one document per upstream.

`{_id, last_good_at?, last_error_at?, last_error?, mapped_at?, poll_seconds?, budget?}` tells how polling prices goes;
`budget` says why it is slower than it should be, None otherwise. What every call to the
upstream cost and how it went, polling included, is in `{usage?: {day, calls, credits}, answered_at?, failed_at?,
failure?, credits_left?}`; `day` is a UTC date such as "2026-01-31".
"""

from datetime import datetime
from typing import Any

from app.database.client import AsyncDB, Document, SyncDB


async def feed(database: AsyncDB, *, source: str) -> Document:
    """Return what is known of an upstream; empty before its first answer."""
    return await database.feeds.find_one({"_id": source}) or {}


async def add_usage(
    database: AsyncDB, *, source: str, day: str, calls: int, credits_used: int, changes: Document
) -> None:
    """Add to what was used on `day`, which begins at nothing, and set the fields in `changes`."""
    same_day = {"$eq": ["$usage.day", day]}
    usage = {
        "day": day,
        "calls": {"$add": [{"$cond": [same_day, "$usage.calls", 0]}, calls]},
        "credits": {"$add": [{"$cond": [same_day, "$usage.credits", 0]}, credits_used]},
    }
    literal = {name: {"$literal": value} for name, value in changes.items()}
    await database.feeds.update_one({"_id": source}, [{"$set": {"usage": usage, **literal}}], upsert=True)


def mapped_at(database: SyncDB, *, source: str) -> datetime | None:
    """Return when the upstream's map of coins was last stored."""
    known = database.feeds.find_one({"_id": source}, {"mapped_at": 1})
    return known.get("mapped_at") if known else None


def record(database: SyncDB, *, source: str, **changes: Any) -> None:
    """Set fields of an upstream's document."""
    database.feeds.update_one({"_id": source}, {"$set": changes}, upsert=True)
