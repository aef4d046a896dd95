"""Queries on `feeds`, one document per upstream: `{_id, last_good_at?, last_error_at?, last_error?, mapped_at?}`."""

from datetime import datetime
from typing import Any

from app.database.client import AsyncDB, Document, SyncDB


async def feed(database: AsyncDB, *, source: str) -> Document:
    """Return what is known of an upstream; empty before its first answer."""
    return await database.feeds.find_one({"_id": source}) or {}


def mapped_at(database: SyncDB, *, source: str) -> datetime | None:
    """Return when the upstream's map of coins was last stored."""
    known = database.feeds.find_one({"_id": source}, {"mapped_at": 1})
    return known.get("mapped_at") if known else None


def record(database: SyncDB, *, source: str, **changes: Any) -> None:
    """Set fields of an upstream's document."""
    database.feeds.update_one({"_id": source}, {"$set": changes}, upsert=True)
