"""Draining the outbox: claim, send, record; each mail on its own, so that a bad address never holds up the rest."""

import logging
from collections.abc import Callable
from concurrent.futures import Future
from datetime import datetime, timedelta

from pymongo.errors import PyMongoError

from app.alerting.mailer import Mailer
from app.alerting.message import compose
from app.alerting.outbox import Outbox
from app.backoff import BackOff
from app.clock import Clock
from app.database import notifications
from app.database.client import Document, SyncDB
from app.errors import (
    MailError,
    MailInterruptedError,
    MailServerError,
    RecipientDeferredError,
    RecipientRefusedError,
    UnrecordedError,
)
from app.metrics import Metrics

logger = logging.getLogger(__name__)

BATCH = 50
"""After how many mails a sender looks up: whether its records are safe, whether anything went wrong."""
RECORD_SECONDS = 10.0
"""How long a mail that is ready to be handed over waits for the record of the one before."""

REFUSED = BackOff(timedelta(seconds=30), timedelta(hours=1))
SERVER_DOWN = BackOff(timedelta(seconds=2), timedelta(minutes=1))
PATIENCE = timedelta(hours=24)
"""How long a recipient may be refused for now before the mail is given up."""
FEWEST_REFUSALS = 10
"""... and how often at least: a day in which nobody tried proves nothing about the recipient."""


class Delivery:
    """Sends what is due over one mailer. Belongs to one thread; any number of them may share an outbox.

    No text is handed over before the mail that went before it is recorded: a crash can repeat one mail of each sender.
    """

    def __init__(
        self,
        *,
        database: SyncDB,
        outbox: Outbox,
        mailer: Mailer,
        mail_from: str,
        clock: Clock,
        record_seconds: float = RECORD_SECONDS,
        metrics: Metrics | None = None,
    ) -> None:
        self._database = database
        self._outbox = outbox
        self._mailer = mailer
        self._mail_from = mail_from
        self._clock = clock
        self._metrics = metrics or Metrics()
        self._record_seconds = record_seconds
        self._server_failures = 0
        self._quiet_until = clock.monotonic()
        self._last_record: Future[None] | None = None

    def deliver_due(self, *, stopping: Callable[[], bool]) -> int:
        """Send a batch; returns how many mails were taken up, 0 when nothing is due or the server rests.

        Ends between two mails when `stopping()` says so, and puts back what nobody took. Raises PyMongoError, and
        UnrecordedError while MongoDB does not take the record of the last mail.
        """
        taken = 0
        self._await_record()
        while taken < BATCH and not self._rests() and (alert := self._next(stopping)):
            self._deliver(alert)
            taken += 1
        if 0 < taken < BATCH:
            self._last_record = self._outbox.records.settle()
            self._await_record()
        return taken

    def _next(self, stopping: Callable[[], bool]) -> Document | None:
        if stopping():
            self._outbox.release()
            return None
        return self._outbox.take()

    def _rests(self) -> bool:
        return self._clock.monotonic() < self._quiet_until

    def _await_record(self) -> None:
        """Raises UnrecordedError when that takes too long."""
        record, self._last_record = self._last_record, None
        if record is None:
            return
        try:
            record.result(self._record_seconds)
        except (TimeoutError, PyMongoError) as error:
            self._last_record = record
            raise UnrecordedError("MongoDB has not taken the record of the last mail") from error

    def _deliver(self, alert: Document) -> None:
        """Send one mail and record the outcome, whatever it is. Raises only for MongoDB."""
        alert_id = alert["_id"]
        try:
            mail = compose(alert, mail_from=self._mail_from, now=self._clock.now())
            self._mailer.deliver(mail, before_text=self._await_record)
        except UnrecordedError:
            self._outbox.give_back(alert)
            raise
        except RecipientRefusedError as error:
            notifications.mark_failed(self._database, alert, error=str(error))
            self._metrics.mailed("failed")
            logger.warning("alert %s: mail refused for good: %s", alert_id, error)
        except (RecipientDeferredError, MailInterruptedError) as error:
            self._defer_refused(alert, error)
        except MailServerError as error:
            self._rest(alert, error)
            return
        except Exception as error:
            # One alert that can't be made into a mail must not keep the others in the queue (invariant 7).
            logger.exception("alert %s: mail could not be composed or sent", alert_id)
            self._defer_refused(alert, MailError(f"internal error: {type(error).__name__}"))
        else:
            self._last_record = self._outbox.records.add(alert_id)
            self._metrics.mailed("sent")
            logger.info("alert %s: mail %s", alert_id, self._mailer.accepted)
        self._server_failures = 0

    def _defer_refused(self, alert: Document, error: MailError) -> None:
        """Try this mail again later; one that was refused for a day, and often, is given up."""
        now = self._clock.now()
        known = alert["notification"]
        since: datetime = known.get("refused_since", now)
        refusals: int = known.get("refusals", 0)
        if now - since >= PATIENCE and refusals >= FEWEST_REFUSALS:
            words = (
                f"given up after {PATIENCE // timedelta(hours=1)} hours of temporary refusals, the last one: {error}"
            )
            notifications.mark_failed(self._database, alert, error=words)
            self._metrics.mailed("failed")
            logger.warning("alert %s: mail %s", alert["_id"], words)
            return
        wait = REFUSED.after(refusals)
        notifications.mark_refused(self._database, alert, error=str(error), due_at=now + wait, since=since)
        self._metrics.mailed("deferred")
        logger.warning("alert %s: mail not taken, trying again in %d s: %s", alert["_id"], wait.seconds, error)

    def _rest(self, alert: Document, error: MailServerError) -> None:
        """Leave a mail server that isn't there alone for a while; mails lose nothing by it, however long that takes."""
        wait = SERVER_DOWN.after(self._server_failures)
        self._server_failures += 1
        self._quiet_until = self._clock.monotonic() + wait.total_seconds()
        due_at = self._clock.now() + wait
        notifications.mark_untaken(self._database, alert, error=str(error), due_at=due_at)
        self._outbox.release()
        self._metrics.mailed("server_down")
        logger.error("all mails wait, next try in %d s: %s", wait.total_seconds(), error)
