"""The outbox as the senders of one process share it: mails it holds claimed, and records of those that were taken."""

import logging
from collections import deque
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from datetime import datetime, timedelta
from threading import Event, Lock

from bson import ObjectId
from pymongo.errors import PyMongoError

from app.alerting.mailer import LONGEST_MAIL_SECONDS
from app.clock import Clock
from app.database import notifications
from app.database.client import Document, SyncDB

logger = logging.getLogger(__name__)

CLAIM = 50
"""How many mails are claimed at once, for all senders together."""
ONE_MAIL = timedelta(seconds=LONGEST_MAIL_SECONDS)
"""The longest that one mail can take before its time-outs end it: that much of a lease must be left to begin it."""
LEASE = ONE_MAIL + timedelta(seconds=10)
"""After a crash the mails in hand are sent again once it has run out."""
MOST_UNSAFE = 50
"""So many records may be waiting for a majority of MongoDB's members; the wait for it costs as much as two mails."""
RETRY_SECONDS = 1.0


class Outbox:
    """What is due, one mail at a time, for any number of threads. Its methods raise PyMongoError."""

    def __init__(self, *, database: SyncDB, clock: Clock) -> None:
        self.records = Records(database, clock)
        self._database = database
        self._clock = clock
        self._lock = Lock()
        self._held: deque[Document] = deque()
        self._until: datetime = clock.now()

    def take(self) -> Document | None:
        """Return a fired alert whose mail is due, the longest due first, and nobody else's from now on; or None.

        One sender that hangs over its mail holds up no other mail: the others take what comes after it.
        """
        with self._lock:
            if self._held and self._clock.now() + ONE_MAIL > self._until:
                self._release()
            if not self._held:
                now = self._clock.now()
                self._held.extend(notifications.claim_due(self._database, now=now, lease=LEASE, limit=CLAIM))
                self._until = now + LEASE
            return self._held.popleft() if self._held else None

    def give_back(self, alert: Document) -> None:
        """Let the next sender begin with this one, of which nothing was sent."""
        with self._lock:
            self._held.appendleft(alert)

    def release(self) -> None:
        """Put back into the queue what no sender has taken, for any copy of the service to send."""
        with self._lock:
            self._release()

    def close(self) -> None:
        """Put back what was not taken, finish the records."""
        try:
            self.release()
        finally:
            self.records.close()

    def _release(self) -> None:
        held, self._held = self._held, deque()
        notifications.release(self._database, held)


class Records:
    """Writes down which mails were taken, in a thread of its own: meanwhile the next mail can be announced.

    Each is written at once, together with what other senders have sent meanwhile: that outlives this process. What was
    written so is written again from time to time, then waiting for a majority: that outlives MongoDB's primary. While
    MongoDB is away it is tried again and again.
    """

    def __init__(self, database: SyncDB, clock: Clock) -> None:
        self._database = database
        self._clock = clock
        self._lock = Lock()
        self._accepted: list[ObjectId] = []
        self._unsafe: list[ObjectId] = []  # the writer's own
        self._closing = Event()
        self._writer = ThreadPoolExecutor(1, thread_name_prefix="mail records")

    def add(self, alert_id: ObjectId) -> Future[None]:
        """Have a mail recorded as sent; the future is done once it is."""
        with self._lock:
            self._accepted.append(alert_id)
        return self._writer.submit(self._write)

    def settle(self) -> Future[None]:
        """Have all that was added so far made safe with a majority."""
        return self._writer.submit(self._write, durably=True)

    def close(self) -> None:
        """Finish what was added, unless MongoDB is away."""
        self._closing.set()
        self._writer.shutdown()

    def _write(self, *, durably: bool = False) -> None:
        with self._lock:
            fresh, self._accepted = self._accepted, []
        self._unsafe += fresh
        durably = durably or len(self._unsafe) >= MOST_UNSAFE
        self._store(self._unsafe if durably else fresh, durably)
        if durably:
            self._unsafe.clear()

    def _store(self, alert_ids: Sequence[ObjectId], durably: bool) -> None:
        while alert_ids:
            try:
                notifications.mark_sent(self._database, alert_ids, now=self._clock.now(), durably=durably)
                return
            except PyMongoError as error:
                logger.warning("%d sent mails wait to be recorded: %s", len(alert_ids), type(error).__name__)
                if self._closing.wait(RETRY_SECONDS):
                    raise
