"""The background threads: one polls prices on a `schedule`, one follows candles, some drain the outbox."""

import logging
import time
from collections.abc import Callable, Sequence
from datetime import timedelta
from threading import Event, Thread
from typing import cast

import schedule
from pymongo.errors import ConnectionFailure, PyMongoError

from app.alerting.catch_up import CatchUp
from app.alerting.delivery import Delivery
from app.alerting.mailer import Mailer
from app.alerting.outbox import Outbox
from app.backoff import BackOff
from app.errors import UpstreamError
from app.ticker import Ticker

logger = logging.getLogger(__name__)

STOP_SECONDS = 2.0
"""How long a stop waits for a thread. One that hangs in a reply is a daemon and ends with the process."""
MAIL_STOP_SECONDS = 15.0
"""How long it waits for the mails in hand: cut short, they would be repeated."""
LONGEST_WAIT_SECONDS = 0.5
"""How long the scheduler waits at most before it looks at the clock again."""
STEP_SECONDS = 1.0
"""From which difference on a wall clock is said to have been set rather than to drift."""
IDLE_SECONDS = 1.0
"""How often the outbox and the minute are looked at when nobody said that something is due."""
CANDLES_FAILED = BackOff(timedelta(seconds=2), timedelta(minutes=1))


def job(ticker: Ticker, on_fired: Callable[[], None]) -> None:
    """One round of the scheduler: poll, evaluate, and tell the sender if anything fired."""
    if ticker.poll():
        on_fired()


class StoppableThread(Thread):
    """A daemon thread that is asked to end, waited for a while, and then left to end with the process."""

    def __init__(self, name: str) -> None:
        super().__init__(name=name, daemon=True)
        self.stopping = Event()

    def ask_to_stop(self) -> None:
        """Have the thread end as soon as it can."""
        self.stopping.set()

    def stop(self) -> None:
        """Ask the thread to end and wait for it, up to a bound."""
        self.ask_to_stop()
        self.await_end(time.monotonic() + STOP_SECONDS)

    def await_end(self, deadline: float) -> None:
        """Wait for a thread that was asked to end, up to a moment of the monotonic clock."""
        self.join(max(0.0, deadline - time.monotonic()))
        if self.is_alive():
            logger.warning("the %s is still waiting for an answer; it ends with the process", self.name)


class SchedulerThread(StoppableThread):
    """Runs `job()` at start and then every `poll_seconds`, one at a time, until `stop()`."""

    def __init__(self, *, ticker: Ticker, poll_seconds: float, on_fired: Callable[[], None]) -> None:
        super().__init__("scheduler")
        self.first_run_done = Event()
        self._ticker = ticker
        self._poll_seconds = poll_seconds
        self._on_fired = on_fired
        self._heartbeat = time.monotonic()
        self._scheduler = schedule.Scheduler()

    @property
    def heartbeat_age(self) -> float:
        """Seconds since the thread last went round its loop."""
        return time.monotonic() - self._heartbeat

    def run(self) -> None:
        """Poll until stopped. Nothing that a job raises ends the thread."""
        self._run_job()
        self.first_run_done.set()
        self._ticker.mend_times()
        self._plan()
        offset = _wall_clock_offset()
        while not self.stopping.wait(self._idle_seconds()):
            self._heartbeat = time.monotonic()
            # `schedule` plans by the wall clock: set back by an hour it would be silent for an hour.
            if abs(_wall_clock_offset() - offset) > STEP_SECONDS:
                logger.warning("the wall clock was set: polling is planned anew")
                offset = _wall_clock_offset()
                self._ticker.mend_times()
                self._plan()
            self._scheduler.run_pending()
        _retire(self._ticker)

    def _plan(self) -> None:
        self._scheduler.clear()
        # schedule makes a timedelta of the interval, so fractions work, although its type hints say int.
        self._scheduler.every(cast(int, self._poll_seconds)).seconds.do(self._run_job)

    def _run_job(self) -> None:
        try:
            job(self._ticker, self._on_fired)
        except ConnectionFailure as error:
            logger.error("MongoDB is away (%s): prices wait", type(error).__name__)
        except Exception:
            logger.exception("the job failed; the next one comes as planned")

    def _idle_seconds(self) -> float:
        return min(max(self._scheduler.idle_seconds or 0.0, 0.0), LONGEST_WAIT_SECONDS)


class CandleThread(StoppableThread):
    """Has each minute's candles evaluated once it is over, apart from the polls: neither waits for the other."""

    def __init__(self, *, catch_up: CatchUp, on_fired: Callable[[], None]) -> None:
        super().__init__("candle thread")
        self._catch_up = catch_up
        self._on_fired = on_fired
        self._failures = 0

    def run(self) -> None:
        """Catch up until stopped. Nothing that Bybit or MongoDB does ends the thread."""
        wait = 0.0
        while not self.stopping.wait(wait):
            wait = self._round()
        _retire(self._catch_up)

    def _round(self) -> float:
        """Catch up once; returns how many seconds to wait for the next time."""
        try:
            if self._catch_up.run():
                self._on_fired()
        except UpstreamError as error:
            logger.warning("candles wait: %s", error)
        except ConnectionFailure as error:
            logger.error("MongoDB is away (%s): candles wait", type(error).__name__)
        except Exception:
            logger.exception("catching up failed; it goes on from the watermarks")
        else:
            self._failures = 0
            return IDLE_SECONDS
        self._failures += 1
        return CANDLES_FAILED.after(self._failures - 1).total_seconds()


class SenderThread(StoppableThread):
    """Drains the outbox over one connection: at once when woken, else every second, until `stop()`."""

    def __init__(self, *, delivery: Delivery, mailer: Mailer, number: int = 1) -> None:
        super().__init__(f"sender {number}")
        self._delivery = delivery
        self._mailer = mailer
        self._awake = Event()

    def wake(self) -> None:
        """Say that something is due now."""
        self._awake.set()

    def run(self) -> None:
        """Deliver until stopped. Nothing that a delivery raises ends the thread."""
        while not self.stopping.is_set():
            self._awake.clear()
            if not self._deliver():
                self._awake.wait(IDLE_SECONDS)
        self._mailer.close()

    def ask_to_stop(self) -> None:
        """Have the thread end after the mail in hand: one cut short is repeated after its lease."""
        super().ask_to_stop()
        self.wake()

    def _deliver(self) -> int:
        try:
            return self._delivery.deliver_due(stopping=self.stopping.is_set)
        except ConnectionFailure as error:
            logger.error("MongoDB is away (%s): mails wait", type(error).__name__)
            return 0
        except Exception:
            logger.exception("the delivery failed; it is tried again")
            return 0


class Senders:
    """All sender threads of this process, each with a connection of its own."""

    def __init__(self, *, outbox: Outbox, threads: Sequence[SenderThread]) -> None:
        self._outbox = outbox
        self.threads = threads

    def start(self) -> None:
        """Begin to deliver."""
        for thread in self.threads:
            thread.start()

    def wake(self) -> None:
        """Say that something is due now."""
        for thread in self.threads:
            thread.wake()

    def stop(self) -> None:
        """Finish the mails in hand, all at the same time; put the others back."""
        for thread in self.threads:
            thread.ask_to_stop()
        deadline = time.monotonic() + MAIL_STOP_SECONDS
        for thread in self.threads:
            thread.await_end(deadline)
        try:
            self._outbox.close()
        except PyMongoError as error:
            logger.warning("claimed mails wait until their lease runs out: %s", type(error).__name__)


def _retire(worker: Ticker | CatchUp) -> None:
    try:
        worker.retire()
    except PyMongoError as error:
        logger.warning("another copy takes over only when the lease runs out: %s", type(error).__name__)


def _wall_clock_offset() -> float:
    """How far the clock that `schedule` reads (local time, so daylight saving counts) is ahead of the monotonic one."""
    return time.time() + time.localtime().tm_gmtoff - time.monotonic()
