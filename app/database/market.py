"""Queries on `market`: the last snapshot (`_id: aggregated`) and the right to refresh it (`_id: refresh`).

`{_id: aggregated, format, made_at, capped_at, pairs (JSON, gzip)}` and `{_id: refresh, holder, lease_until, failure?}`.
"""

from datetime import datetime

from pymongo.errors import DuplicateKeyError

from app.database.client import AsyncDB, Document

AGGREGATED = "aggregated"
REFRESH = "refresh"
FORMAT = 1
"""Of the stored snapshot; one of another format counts as none."""


async def load_snapshot(database: AsyncDB, *, newer_than: datetime | None) -> Document | None:
    """Return the stored snapshot if there is one, and a newer one than that."""
    wanted: Document = {"_id": AGGREGATED, "format": FORMAT}
    if newer_than is not None:
        wanted["made_at"] = {"$gt": newer_than}
    return await database.market.find_one(wanted)


async def store_snapshot(database: AsyncDB, *, made_at: datetime, capped_at: datetime | None, pairs: bytes) -> None:
    """Keep the snapshot unless a newer one is kept already."""
    fields = {"format": FORMAT, "made_at": made_at, "capped_at": capped_at, "pairs": pairs}
    older = {"_id": AGGREGATED, "$or": [{"made_at": {"$lt": made_at}}, {"format": {"$ne": FORMAT}}]}
    try:
        await database.market.update_one(older, {"$set": fields}, upsert=True)
    except DuplicateKeyError:
        return


async def claim_refresh(database: AsyncDB, *, holder: str, now: datetime, until: datetime) -> bool:
    """Claim the right to refresh until `until`; of several who try at once exactly one gets it."""
    free = {"_id": REFRESH, "$or": [{"lease_until": {"$lte": now}}, {"holder": holder}]}
    taken = {"$set": {"holder": holder, "lease_until": until}, "$unset": {"failure": ""}}
    try:
        await database.market.update_one(free, taken, upsert=True)
    except DuplicateKeyError:
        return False
    return True


async def release_refresh(database: AsyncDB, *, holder: str, until: datetime, failure: str | None = None) -> None:
    """Give the right back at `until`: now, or after a failure when the upstream may be asked again."""
    fields: Document = {"lease_until": until}
    if failure is not None:
        fields["failure"] = failure
    await database.market.update_one({"_id": REFRESH, "holder": holder}, {"$set": fields})


async def failed_refresh(database: AsyncDB, *, now: datetime) -> Document | None:
    """Return the lease if a failure, of whichever copy of the service, keeps all of them waiting."""
    return await database.market.find_one({"_id": REFRESH, "failure": {"$exists": True}, "lease_until": {"$gt": now}})
