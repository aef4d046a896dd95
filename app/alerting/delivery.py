"""Draining the outbox: claim, send, record; each mail on its own, so that a bad address never holds up the rest."""

import logging
from collections.abc import Callable
from datetime import datetime, timedelta

from bson import ObjectId

from app.alerting import mailer as mailing
from app.alerting.mailer import Mailer
from app.alerting.message import compose
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
)
from app.metrics import Metrics

logger = logging.getLogger(__name__)

BATCH = 50
ONE_MAIL = timedelta(seconds=mailing.LONGEST_MAIL_SECONDS)
"""The longest that one mail can take before its time-outs end it: that much of a lease must be left to begin it."""
LEASE = ONE_MAIL + timedelta(seconds=10)
"""After a crash the mails in hand are sent again once it has run out."""

REFUSED = BackOff(timedelta(seconds=30), timedelta(hours=1))
SERVER_DOWN = BackOff(timedelta(seconds=2), timedelta(minutes=1))
PATIENCE = timedelta(hours=24)
"""How long a recipient may be refused for now before the mail is given up."""
FEWEST_REFUSALS = 10
"""... and how often at least: a day in which nobody tried proves nothing about the recipient."""


class Delivery:
    """Sends what is due over one mailer. Belongs to one thread; any number of them may share an outbox."""

    def __init__(
        self, *, database: SyncDB, mailer: Mailer, mail_from: str, clock: Clock, metrics: Metrics | None = None
    ) -> None:
        self._database = database
        self._mailer = mailer
        self._mail_from = mail_from
        self._clock = clock
        self._metrics = metrics or Metrics()
        self._server_failures = 0
        self._quiet_until = clock.monotonic()

    def deliver_due(self, *, stopping: Callable[[], bool]) -> int:
        """Claim one batch and send it; returns how many mails were claimed, 0 when nothing is due or the server rests.

        Stops between two mails when `stopping()` says so; what was not begun is put back for anyone to send.
        """
        if self._clock.monotonic() < self._quiet_until:
            return 0
        now = self._clock.now()
        claim, alerts = notifications.claim_due(self._database, now=now, lease=LEASE, limit=BATCH)
        for index, alert in enumerate(alerts):
            # The first mail after a rest is how we learn whether the server is back.
            resting = index > 0 and self._server_failures > 0
            if stopping() or resting or self._clock.now() + ONE_MAIL > now + LEASE:
                notifications.release(self._database, alerts[index:], claim)
                break
            self._deliver(alert, claim)
        return len(alerts)

    def _deliver(self, alert: Document, claim: ObjectId) -> None:
        """Send one mail and record the outcome, whatever it is. Raises only for MongoDB."""
        alert_id = alert["_id"]
        try:
            self._mailer.deliver(compose(alert, mail_from=self._mail_from, now=self._clock.now()))
        except RecipientRefusedError as error:
            notifications.mark_failed(self._database, alert_id, claim, error=str(error))
            self._metrics.mailed("failed")
            logger.warning("alert %s: mail refused for good: %s", alert_id, error)
        except RecipientDeferredError as error:
            self._defer_refused(alert, claim, error)
        except MailInterruptedError as error:
            self._defer_refused(alert, claim, error)
        except MailServerError as error:
            self._rest(alert, claim, error)
            return
        except Exception as error:
            # One alert that can't be made into a mail must not keep the others in the queue (invariant 7).
            logger.exception("alert %s: mail could not be composed or sent", alert_id)
            self._defer_refused(alert, claim, MailError(f"internal error: {type(error).__name__}"))
        else:
            notifications.mark_sent(self._database, alert_id, now=self._clock.now())
            self._metrics.mailed("sent")
            logger.info("alert %s: mail %s", alert_id, self._mailer.accepted)
        self._server_failures = 0

    def _defer_refused(self, alert: Document, claim: ObjectId, error: MailError) -> None:
        """Try this mail again later; one that was refused for a day, and often, is given up."""
        now = self._clock.now()
        known = alert["notification"]
        since: datetime = known.get("refused_since", now)
        refusals: int = known.get("refusals", 0)
        if now - since >= PATIENCE and refusals >= FEWEST_REFUSALS:
            words = (
                f"given up after {PATIENCE // timedelta(hours=1)} hours of temporary refusals, the last one: {error}"
            )
            notifications.mark_failed(self._database, alert["_id"], claim, error=words)
            self._metrics.mailed("failed")
            logger.warning("alert %s: mail %s", alert["_id"], words)
            return
        wait = REFUSED.after(refusals)
        notifications.mark_refused(
            self._database, alert["_id"], claim, error=str(error), due_at=now + wait, since=since
        )
        self._metrics.mailed("deferred")
        logger.warning("alert %s: mail not taken, trying again in %d s: %s", alert["_id"], wait.seconds, error)

    def _rest(self, alert: Document, claim: ObjectId, error: MailServerError) -> None:
        """Leave a mail server that isn't there alone for a while; mails lose nothing by it, however long that takes."""
        wait = SERVER_DOWN.after(self._server_failures)
        self._server_failures += 1
        self._quiet_until = self._clock.monotonic() + wait.total_seconds()
        due_at = self._clock.now() + wait
        notifications.mark_untaken(self._database, alert["_id"], claim, error=str(error), due_at=due_at)
        self._metrics.mailed("server_down")
        logger.error("all mails wait, next try in %d s: %s", wait.total_seconds(), error)
