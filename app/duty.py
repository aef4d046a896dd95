"""A duty that one copy of the service does for all of them, by a lease in MongoDB."""

import logging
from datetime import timedelta

from bson import ObjectId
from pymongo.errors import PyMongoError

from app.clock import Clock
from app.database import leases
from app.database.client import SyncDB

logger = logging.getLogger(__name__)


LOOKS_PER_LEASE = 4
"""How often in a lease's length MongoDB is asked: the answer is good for that long, so asking us is cheap."""


class Duty:
    """Ours as long as we renew it in time. Belongs to one thread."""

    def __init__(self, name: str, *, database: SyncDB, clock: Clock, length: timedelta) -> None:
        self._name = name
        self._database = database
        self._clock = clock
        self._length = length
        self._holder = ObjectId()
        self._ours: bool | None = None  # not known yet
        self._look_again_at = clock.monotonic()

    def is_ours(self) -> bool:
        """Renew or take the lease and tell whether this copy has the duty; while MongoDB is away, as it was before."""
        if self._ours is not None and self._clock.monotonic() < self._look_again_at:
            return self._ours
        try:
            ours = leases.hold(
                self._database, self._name, holder=self._holder, now=self._clock.now(), length=self._length
            )
        except PyMongoError as error:
            logger.warning("MongoDB is away (%s): this copy goes on as before", type(error).__name__)
            return self._ours is not False
        if ours != self._ours:
            does = "now does the" if ours else "stands by, and leaves to another the"
            logger.info("this copy %s %s", does, self._name)
        self._ours = ours
        self._look_again_at = self._clock.monotonic() + self._length.total_seconds() / LOOKS_PER_LEASE
        return ours

    def give_up(self) -> None:
        """Let another copy take over at once. Raises PyMongoError."""
        if self._ours:
            self._ours = None
            leases.release(self._database, self._name, holder=self._holder)
