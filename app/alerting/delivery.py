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
from app.errors import MailServerError, RecipientDeferredError, RecipientRefusedError

logger = logging.getLogger(__name__)

BATCH = 50
LEASE = timedelta(seconds=60)
ONE_MAIL = timedelta(seconds=mailing.STEPS * mailing.TIMEOUT_SECONDS)
"""The longest that one mail can take before its time-outs end it: that much of a lease must be left to begin it."""

REFUSED = BackOff(timedelta(seconds=30), timedelta(hours=1))
SERVER_DOWN = BackOff(timedelta(seconds=2), timedelta(minutes=1))
PATIENCE = timedelta(hours=24)
"""How long a recipient may be refused for now before the mail is given up."""
SERVER_IS_DOWN_AFTER = 2
"""Mails in a row that met a failing server. One alone may be that mail's own doing, and the others go on."""


class Delivery:
    """Sends what is due over one mailer. Belongs to one thread; any number of them may share an outbox."""

    def __init__(self, *, database: SyncDB, mailer: Mailer, mail_from: str, clock: Clock) -> None:
        self._database = database
        self._mailer = mailer
        self._mail_from = mail_from
        self._clock = clock
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
        lease_until = now + LEASE
        for index, alert in enumerate(alerts):
            # The first mail after a rest is how we learn whether the server is back.
            resting = index > 0 and self._is_server_down()
            if stopping() or resting or self._clock.now() + ONE_MAIL > lease_until:
                untried = [alert["_id"] for alert in alerts[index:]]
                notifications.release(self._database, untried, claim, due_at=self._clock.now())
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
            logger.warning("alert %s: mail refused for good: %s", alert_id, error)
        except RecipientDeferredError as error:
            self._defer_refused(alert, claim, error)
        except MailServerError as error:
            self._defer(alert, claim, str(error), SERVER_DOWN, since=None)
            self._note_server_failure(error)
            return
        except Exception as error:
            # One alert that can't be made into a mail must not keep the others in the queue (invariant 7).
            logger.exception("alert %s: mail could not be composed or sent", alert_id)
            self._defer(alert, claim, f"internal error: {type(error).__name__}", REFUSED, since=None)
        else:
            notifications.mark_sent(self._database, alert_id, now=self._clock.now())
            logger.info("alert %s: mail accepted by the mail server", alert_id)
        self._server_failures = 0

    def _defer_refused(self, alert: Document, claim: ObjectId, error: RecipientDeferredError) -> None:
        now = self._clock.now()
        since: datetime = alert["notification"].get("deferred_since", now)
        if now - since < PATIENCE:
            self._defer(alert, claim, str(error), REFUSED, since=since)
            return
        words = f"given up after {PATIENCE // timedelta(hours=1)} hours of temporary refusals, the last one: {error}"
        notifications.mark_failed(self._database, alert["_id"], claim, error=words)
        logger.warning("alert %s: mail %s", alert["_id"], words)

    def _defer(
        self, alert: Document, claim: ObjectId, error: str, back_off: BackOff, *, since: datetime | None
    ) -> None:
        wait = back_off.after(alert["notification"]["attempts"])
        due_at = self._clock.now() + wait
        notifications.mark_deferred(self._database, alert["_id"], claim, error=error, due_at=due_at, since=since)
        logger.warning("alert %s: mail not sent, trying again in %d s: %s", alert["_id"], wait.seconds, error)

    def _is_server_down(self) -> bool:
        return self._server_failures >= SERVER_IS_DOWN_AFTER

    def _note_server_failure(self, error: MailServerError) -> None:
        """Leave a failing mail server alone for a while; mails lose nothing by it, however long that takes."""
        self._server_failures += 1
        if self._is_server_down():
            failures = self._server_failures - SERVER_IS_DOWN_AFTER
            wait = SERVER_DOWN.after(failures)
            self._quiet_until = self._clock.monotonic() + wait.total_seconds()
            logger.error("all mails wait, next try in %d s: %s", wait.total_seconds(), error)
