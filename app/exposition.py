"""`/metrics` for Prometheus, on a port of its own: what this copy has counted, and what all copies share."""

import logging
import math
import socket
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from concurrent.futures import TimeoutError as LateError
from contextlib import contextmanager
from threading import Lock, Thread
from wsgiref.simple_server import WSGIRequestHandler, make_server

from prometheus_client import make_wsgi_app
from prometheus_client.core import GaugeMetricFamily
from prometheus_client.exposition import ThreadingWSGIServer
from prometheus_client.registry import Collector
from pymongo.errors import PyMongoError

from app.clock import Clock
from app.database.client import SyncDB
from app.database.figures import Figures, read_figures
from app.market.coinmarketcap import SOURCE
from app.metrics import PREFIX, Metrics
from app.services import Beating

logger = logging.getLogger(__name__)

PATIENCE_SECONDS = 3.0
"""How long a scrape waits for MongoDB. Prometheus gives a scrape ten, and this copy's own figures must not be lost."""
COST_SHARE = 0.01
"""Counting a million armed alerts takes 0.2 s: at most this share of the time goes to it, however often one scrapes."""
SHORTEST_REST_SECONDS = 2.0
LONGEST_REST_SECONDS = 60.0
"""Between two readings."""
REQUEST_SECONDS = 10.0


class SharedFigures(Collector):
    """Reads what all copies share when somebody asks, and not too often."""

    def __init__(self, read: Callable[[], Figures], *, clock: Clock, scheduler: Beating) -> None:
        self._read = read
        self._clock = clock
        self._scheduler = scheduler
        self._lock = Lock()
        self._pool = ThreadPoolExecutor(1, "metrics")
        self._reading: Future[Figures | None] = Future()
        self._reading.set_result(None)
        self._due = clock.monotonic()

    def close(self) -> None:
        """Wait for nothing that is under way."""
        self._pool.shutdown(wait=False, cancel_futures=True)

    def collect(self) -> Iterator[GaugeMetricFamily]:
        """What Prometheus gets; without a database only that it is away."""
        age = self._scheduler.heartbeat_age
        yield _gauge("scheduler_heartbeat_age_seconds", "Since this copy's scheduler thread last went round", age)
        known = self._latest()
        yield _gauge("database_up", "Whether MongoDB answers this copy: 1 or 0", 0.0 if known is None else 1.0)
        if known is not None:
            yield from self._families(known)

    def _families(self, known: Figures) -> Iterator[GaugeMetricFamily]:
        now = self._clock.now()
        price_age = (now - known.last_good_at).total_seconds() if known.last_good_at else math.inf
        mail_age = (now - known.oldest_fired_at).total_seconds() if known.oldest_fired_at else 0.0
        yield _gauge(
            "price_age_seconds", "Since the last good price came, by any copy; +Inf before the first", price_age
        )
        yield _gauge("alerts_armed", "Live alerts", known.armed)
        yield _gauge("mail_queue_length", "Mails that are owed", known.queued)
        yield _gauge(
            "mail_queue_oldest_age_seconds", "Since the alert of the longest-waiting mail fired; 0 if none", mail_age
        )
        if known.poll_seconds is not None:
            yield _gauge("poll_interval_seconds", "POLL_SECONDS, or what the key's plan carries", known.poll_seconds)
        if known.credits_left is not None:
            yield _gauge("upstream_credits_left", "Of the CoinMarketCap key, this month", known.credits_left)

    def _latest(self) -> Figures | None:
        """The figures as they were some seconds ago; None while MongoDB is away."""
        with self._lock:
            if self._reading.done() and self._clock.monotonic() >= self._due:
                self._reading = self._pool.submit(self._read_once)
            reading = self._reading
        try:
            return reading.result(PATIENCE_SECONDS)
        except LateError:
            return None

    def _read_once(self) -> Figures | None:
        started = self._clock.monotonic()
        self._due = started + SHORTEST_REST_SECONDS
        try:
            figures = self._read()
        except PyMongoError:
            return None
        now = self._clock.monotonic()
        self._due = now + min(max(SHORTEST_REST_SECONDS, (now - started) / COST_SHARE), LONGEST_REST_SECONDS)
        return figures


@contextmanager
def sharing_figures(metrics: Metrics, *, database: SyncDB, clock: Clock, scheduler: Beating) -> Iterator[None]:
    """Let `metrics` tell what all copies share, until the end of the block."""
    shared = SharedFigures(lambda: read_figures(database, source=SOURCE), clock=clock, scheduler=scheduler)
    metrics.registry.register(shared)
    try:
        yield
    finally:
        metrics.registry.unregister(shared)
        shared.close()


@contextmanager
def serving_metrics(metrics: Metrics, *, host: str, port: int) -> Iterator[int]:
    """Serve `metrics` until the end of the block; yields the port, for where 0 was asked for.

    Raises OSError if the address can't be had.
    """
    server_class = _ServerV6 if ":" in host else _Server
    with make_server(host, port, make_wsgi_app(metrics.registry), server_class, _Handler) as server:
        Thread(target=server.serve_forever, name="metrics", daemon=True).start()
        try:
            yield server.server_port
        finally:
            server.shutdown()


class _Server(ThreadingWSGIServer):
    def handle_error(self, _request: object, client_address: object) -> None:
        """One line, where the library would print a traceback: a scraper may hang up or fall silent."""
        logger.warning("a scrape of metrics from %s failed: %s", client_address, repr(sys.exception()))


class _ServerV6(_Server):
    address_family = socket.AF_INET6


class _Handler(WSGIRequestHandler):
    timeout = REQUEST_SECONDS

    def log_message(self, *_: object) -> None:
        """Nothing: a scrape every few seconds is no event."""


def _gauge(name: str, meaning: str, value: float) -> GaugeMetricFamily:
    return GaugeMetricFamily(f"{PREFIX}_{name}", meaning, value=value)
