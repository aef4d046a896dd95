"""Queries on how far each watched coin has been observed by candles, and what could not be.

`watermarks`: `{_id: coin id, watermark, pair?}`; all that lies before `watermark` (UTC, a whole minute) and after the
coin's oldest live alert was observed or is listed as a hole. `pair` is there once it was found to be this coin's.
`holes`: `{coin_id, start, end, reason}`.
"""

from collections.abc import Collection
from datetime import datetime

from app.database.client import Document, SyncDB


def watermarks(database: SyncDB) -> dict[int, Document]:
    """Return every coin's document by its id."""
    return {known["_id"]: known for known in database.watermarks.find()}


def forget_all_but(database: SyncDB, coin_ids: Collection[int]) -> None:
    """Drop coins that nobody watches any more: should they be watched again, that is a new beginning."""
    database.watermarks.delete_many({"_id": {"$nin": list(coin_ids)}})


def begin(database: SyncDB, *, coin_id: int, at: datetime) -> Document:
    """Start to watch a coin from `at` on; one that is watched already is returned as it is."""
    database.watermarks.update_one({"_id": coin_id}, {"$setOnInsert": {"watermark": at}}, upsert=True)
    known = database.watermarks.find_one({"_id": coin_id})
    return known or {"_id": coin_id, "watermark": at}


def use_pair(database: SyncDB, *, coin_id: int, pair: str) -> None:
    """Remember which Bybit pair is the coin's."""
    database.watermarks.update_one({"_id": coin_id}, {"$set": {"pair": pair}})


def advance(database: SyncDB, *, coin_id: int, to: datetime) -> None:
    """Move the watermark forward; it never moves back."""
    database.watermarks.update_one({"_id": coin_id}, {"$max": {"watermark": to}})


def record_hole(database: SyncDB, *, coin_id: int, start: datetime, end: datetime, reason: str) -> None:
    """List a span that can't be observed. Listing it twice is listing it once."""
    hole = {"coin_id": coin_id, "start": start, "end": end}
    database.holes.update_one(hole, {"$set": {"reason": reason}}, upsert=True)
