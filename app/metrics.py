"""What is counted and timed for Prometheus: one `Metrics` per application, handed to whoever has something to tell.

These figures are this copy's own, from its start on. Those that all copies share are read from MongoDB when somebody
asks for them: see `exposition.py`.
"""

from typing import Literal, get_args

from prometheus_client import CollectorRegistry, Counter, Histogram
from prometheus_client.process_collector import ProcessCollector

from app.request_times import RequestTimes

PREFIX = "cryptoticker"
SOURCES = ("coinmarketcap", "bybit")
PollResult = Literal["good", "stale", "failed", "throttled"]
CallResult = Literal["good", "failed", "throttled", "timeout", "blocked"]
MailOutcome = Literal["sent", "failed", "deferred", "server_down"]

EVALUATION_SECONDS = (0.001, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0)
"""Upper bounds of the buckets."""


class Metrics:
    """Usable from any thread. Every label has a known, small set of values: each one makes a series for ever."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        ProcessCollector(registry=self.registry)
        self._polls = self._counter("polls", "Calls for prices of alerts' coins, by what came of them", "result")
        self._evaluations = Histogram(
            f"{PREFIX}_evaluation_seconds",
            "Evaluating prices against all alerts: one poll's call, or a stretch of one coin's candles",
            ["source"],
            buckets=EVALUATION_SECONDS,
            registry=self.registry,
        )
        self._fired = self._counter("alerts_fired", "Alerts that fired, by where the price was seen", "source")
        self._mails = self._counter("mails", "Attempts to hand over a mail, by what came of them", "outcome")
        self._calls = self._counter("upstream_calls", "Requests to an upstream", "source", "result")
        self._credits = self._counter("upstream_credits", "Credits that an upstream's answers said they cost", "source")
        self.requests = RequestTimes(f"{PREFIX}_http_request_seconds")
        self.registry.register(self.requests)
        self._begin_at_zero()

    def polled(self, result: PollResult) -> None:
        """Count a call for prices."""
        self._polls.labels(result).inc()

    def evaluated(self, source: str, *, seconds: float, fired: int) -> None:
        """Note how long an evaluation took and how many alerts it fired."""
        self._evaluations.labels(source).observe(seconds)
        self._fired.labels(source).inc(fired)

    def mailed(self, outcome: MailOutcome) -> None:
        """Count an attempt to hand a mail over."""
        self._mails.labels(outcome).inc()

    def called(self, source: str, result: CallResult) -> None:
        """Count a request to an upstream."""
        self._calls.labels(source, result).inc()

    def spent(self, source: str, credit_count: int) -> None:
        """Count credits."""
        self._credits.labels(source).inc(credit_count)

    def _counter(self, name: str, meaning: str, *labels: str) -> Counter:
        return Counter(f"{PREFIX}_{name}", meaning, labels, registry=self.registry)

    def _begin_at_zero(self) -> None:
        """A series that appears with its first event hides that event from `rate()`."""
        for poll_result in get_args(PollResult):
            self._polls.labels(poll_result)
        for outcome in get_args(MailOutcome):
            self._mails.labels(outcome)
        for source in SOURCES:
            self._evaluations.labels(source)
            self._fired.labels(source)
            self._credits.labels(source)
            for call_result in get_args(CallResult):
                self._calls.labels(source, call_result)
