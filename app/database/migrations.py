"""Bringing a database that an older version made up to date; any number of copies may start at once.

`migrations`: `{_id: number, name, done_at}`, one for each step that was done. docs/operations.md says how to write one.
"""

import logging
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from threading import Event, Thread
from typing import Any

import pymongo
from bson import ObjectId
from pymongo.errors import PyMongoError

from app.clock import Clock
from app.database import leases
from app.database.client import INDEXES, Document, SyncDB, create_indexes
from app.errors import NewerDatabaseError

logger = logging.getLogger(__name__)

DUTY = "migrating"
LONGEST_STEP_SECONDS = 3600.0
LEASE = timedelta(seconds=30)
"""Renewed while a step runs, however long: only a copy that died lets it run out."""
RENEW_SECONDS = 5.0
LOOK_AGAIN_SECONDS = 0.2


@dataclass(frozen=True, slots=True)
class Step:
    """One change of the documents. `run` may be cut short anywhere, and is then begun again."""

    number: int
    name: str
    run: Callable[[SyncDB], None]


def _complete_coverage(database: SyncDB) -> None:
    """Watermarks tell since when a coin is followed, holes which source they are of: both came with receipts."""
    database.watermarks.update_many({"since": {"$exists": False}}, [{"$set": {"since": "$watermark"}}])
    database.holes.update_many({"source": {"$exists": False}}, {"$set": {"source": "bybit"}})


STEPS: tuple[Step, ...] = (Step(1, "watermarks with a beginning, holes with a source", _complete_coverage),)


def check_version(database: SyncDB, steps: Sequence[Step] = STEPS) -> None:
    """Raise NewerDatabaseError if the database has seen a step that this version doesn't know."""
    newest = max(_done(database), default=0)
    known = steps[-1].number
    if newest > known:
        raise NewerDatabaseError(
            f"the database was changed by a newer version of CryptoTicker (step {newest}; this version knows {known}). "
            "Start that version or a newer one, or restore a backup from before the upgrade."
        )


def migrate(database: SyncDB, clock: Clock, steps: Sequence[Step] = STEPS) -> None:
    """Do the steps that have not been done, in their order, and make the indexes. Raises NewerDatabaseError.

    One copy at a time: the others wait until it is done, and find nothing left to do.
    """
    check_version(database, steps)
    if _is_behind(database, steps):
        with _turn(database, clock):
            _bring_up(database, clock, steps)
    create_indexes(database)


def _bring_up(database: SyncDB, clock: Clock, steps: Sequence[Step]) -> None:
    done = _done(database)
    for step in steps:
        if step.number not in done:
            logger.info("migration %d: %s", step.number, step.name)
            with pymongo.timeout(LONGEST_STEP_SECONDS):
                step.run(database)
            note = {"name": step.name, "done_at": clock.now()}
            database.migrations.update_one({"_id": step.number}, {"$set": note}, upsert=True)
    for collection, name in outdated_indexes(database):
        logger.info("index %s of %s has changed: it is made anew", name, collection)
        database[collection].drop_index(name)


def _is_behind(database: SyncDB, steps: Sequence[Step]) -> bool:
    done = _done(database)
    return any(step.number not in done for step in steps) or bool(outdated_indexes(database))


def _done(database: SyncDB) -> set[int]:
    return {step["_id"] for step in database.migrations.find({}, {"_id": 1})}


def outdated_indexes(database: SyncDB) -> set[tuple[str, str]]:
    """Return (collection, name) of each index that MongoDB would not make one of ours beside.

    It has the name of ours with other keys or options, or the keys and options of ours under another name.
    """
    return {
        (collection, existing["name"])
        for collection, indexes in INDEXES.items()
        for existing in database[collection].list_indexes()
        for ours in indexes
        if (existing["name"] == ours.document["name"]) != (_definition(existing) == _definition(ours.document))
    }


def _definition(index: Mapping[str, Any]) -> tuple[list[tuple[str, int]], Document]:
    """Keys, whose order counts, and options."""
    options = {name: value for name, value in index.items() if name not in {"v", "ns", "key", "name", "background"}}
    return list(index["key"].items()), options


@contextmanager
def _turn(database: SyncDB, clock: Clock) -> Iterator[None]:
    """Wait until no other copy is at it, and keep the others waiting until the end of the block."""
    holder = ObjectId()
    _wait_for_lease(database, clock, holder)
    finished = Event()
    renewing = Thread(target=_renew, args=(database, clock, holder, finished), name="migration lease", daemon=True)
    renewing.start()
    try:
        yield
    finally:
        finished.set()
        renewing.join()
        leases.release(database, DUTY, holder=holder)


def _wait_for_lease(database: SyncDB, clock: Clock, holder: ObjectId) -> None:
    told = False
    while not leases.hold(database, DUTY, holder=holder, now=clock.now(), length=LEASE):
        if not told:
            logger.info("another copy is bringing the database up to date: waiting for it")
        told = True
        time.sleep(LOOK_AGAIN_SECONDS)


def _renew(database: SyncDB, clock: Clock, holder: ObjectId, finished: Event) -> None:
    while not finished.wait(RENEW_SECONDS):
        try:
            leases.hold(database, DUTY, holder=holder, now=clock.now(), length=LEASE)
        except PyMongoError as error:
            logger.warning("the lease of the migration could not be renewed: %s", type(error).__name__)
