"""Queries on `leases`, one document per duty that one copy of the service does for all: `{_id, holder, until}`.

A lease saves work; it guards nothing. Two copies that both believe to hold one still fire and mail each alert once, for
those writes are conditional.
"""

from datetime import datetime, timedelta

from bson import ObjectId
from pymongo.errors import DuplicateKeyError

from app.database.client import SyncDB

DRIFT = timedelta(minutes=5)
"""How far apart the clocks of two copies may be."""


def hold(database: SyncDB, duty: str, *, holder: ObjectId, now: datetime, length: timedelta) -> bool:
    """Take or renew the lease until `now + length`; False while another holder's has not run out.

    One that would run for longer than anybody takes it was written by a clock that was ahead: it counts as run out.
    """
    absurd = {"until": {"$gt": now + length + DRIFT}}
    free_or_mine = {"_id": duty, "$or": [{"holder": holder}, {"until": {"$lte": now}}, absurd]}
    held = {"$set": {"holder": holder, "until": now + length}}
    try:
        database.leases.update_one(free_or_mine, held, upsert=True)
    except DuplicateKeyError:
        return False
    return True


def clear(database: SyncDB) -> None:
    """Drop all leases: for a database that no other copy can have."""
    database.leases.delete_many({})


def release(database: SyncDB, duty: str, *, holder: ObjectId) -> None:
    """Give the lease back, if it is still the holder's."""
    database.leases.delete_one({"_id": duty, "holder": holder})
