"""Queries on how far each watched coin has been observed, and what could not be.

`watermarks`: `{_id: coin id, since, watermark, pair?}`; from `since`, when its oldest live alert was set, up to
`watermark` (both UTC, whole minutes) it was observed by candles, or what was not is listed as a hole. `pair` is there
once it was found to be this coin's. With the coin's last live alert the document becomes one of `followed`, `{coin_id,
start, end, pair}`.
`holes`: `{coin_id, source, start, end, reason}`, when a source said nothing of a coin.
"""

from collections.abc import Collection, Iterable
from dataclasses import dataclass
from datetime import datetime
from operator import itemgetter
from typing import Any

from pymongo import DESCENDING, UpdateOne

from app.database.client import AsyncDB, Document, SyncDB
from app.spans import Span

MOST_RECORDS = 1000
"""How many holes, and how many spans, one answer looks at."""


@dataclass(frozen=True, slots=True)
class Hole:
    """From `start` up to `end` (UTC) `source` did not observe the coin."""

    coin_id: int
    source: str
    start: datetime
    end: datetime
    reason: str


@dataclass(frozen=True, slots=True)
class Records:
    """What is written down of a coin in `span`: followed by candles in `followed`, less the `holes`."""

    span: Span
    pair: str | None
    watermark: datetime | None
    followed: list[Span]
    holes: list[Hole]


def watermarks(database: SyncDB) -> dict[int, Document]:
    """Return every coin's document by its id."""
    return {known["_id"]: known for known in database.watermarks.find()}


def behind(database: SyncDB, *, before: datetime) -> set[int]:
    """Return the ids of the coins with a pair of their own whose watermark lies before that moment."""
    late = {"watermark": {"$lt": before}, "pair": {"$exists": True}}
    return {known["_id"] for known in database.watermarks.find(late, {"_id": 1})}


async def count_followed(database: AsyncDB, *, late_before: datetime) -> tuple[int, int]:
    """Return how many coins are followed by candles, and of how many the watermark lies before that moment."""
    followed = {"pair": {"$exists": True}}
    late = {"watermark": {"$lt": late_before}, **followed}
    return await database.watermarks.count_documents(followed), await database.watermarks.count_documents(late)


def forget_all_but(database: SyncDB, coin_ids: Collection[int]) -> None:
    """Put coins that nobody watches any more away: should they be watched again, that is a new beginning."""
    for known in database.watermarks.find({"_id": {"$nin": list(coin_ids)}}):
        if known["since"] < known["watermark"]:
            followed = {"coin_id": known["_id"], "start": known["since"]}
            changes = {"end": known["watermark"], "pair": known.get("pair")}
            database.followed.update_one(followed, {"$set": changes}, upsert=True)
        database.watermarks.delete_one({"_id": known["_id"]})


def begin(database: SyncDB, *, coin_id: int, at: datetime) -> Document:
    """Start to watch a coin from `at` on; one that is watched already is returned as it is."""
    beginning = {"since": at, "watermark": at}
    database.watermarks.update_one({"_id": coin_id}, {"$setOnInsert": beginning}, upsert=True)
    known = database.watermarks.find_one({"_id": coin_id})
    return known or {"_id": coin_id, **beginning}


def use_pair(database: SyncDB, *, coin_id: int, pair: str) -> None:
    """Remember which Bybit pair is the coin's."""
    database.watermarks.update_one({"_id": coin_id}, {"$set": {"pair": pair}})


def advance(database: SyncDB, *, coin_id: int, to: datetime) -> None:
    """Move the watermark forward; it never moves back."""
    database.watermarks.update_one({"_id": coin_id}, {"$max": {"watermark": to}})


def record_holes(database: SyncDB, holes: Iterable[Hole]) -> None:
    """List spans that were not observed. Listing one twice is listing it once; listed again, it may have grown."""
    updates = [
        UpdateOne(
            {"coin_id": hole.coin_id, "source": hole.source, "start": hole.start},
            {"$max": {"end": hole.end}, "$set": {"reason": hole.reason}},
            upsert=True,
        )
        for hole in holes
    ]
    if updates:
        database.holes.bulk_write(updates, ordered=False)


async def records(database: AsyncDB, *, coin_id: int, span: Span) -> Records:
    """Return what is known of how the coin was observed within the span, or its end if that is too much to tell."""
    overlapping: Any = {"coin_id": coin_id, "end": {"$gt": span.start}, "start": {"$lt": span.end}}
    newest_first = [("end", DESCENDING)]
    holes = await database.holes.find(overlapping, {"_id": 0}).sort(newest_first).limit(MOST_RECORDS).to_list()
    past = await database.followed.find(overlapping).sort(newest_first).limit(MOST_RECORDS).to_list()
    full = [found[-1]["end"] for found in (holes, past) if len(found) == MOST_RECORDS]
    for found in (holes, past):
        found.sort(key=itemgetter("start"))
    now = await database.watermarks.find_one({"_id": coin_id})
    followed = [Span(known["start"], known["end"]) for known in past]
    if now:
        followed.append(Span(now["since"], now["watermark"]))
    pairs = [known.get("pair") for known in [*past, now or {}]]
    return Records(
        span=Span(max([span.start, *full]), span.end),
        pair=next((pair for pair in reversed(pairs) if pair), None),
        watermark=now["watermark"] if now else None,
        followed=followed,
        holes=[Hole(**hole) for hole in holes],
    )
