"""Row 9: the service's memory with everything large at once, over as many polls as an hour has."""

import time
import urllib.request
from pathlib import Path

from bench import stage as stages
from bench.report import Row, at_most, median, say
from bench.seed import COINS, price_of
from bench.stage import KEY, Stage
from sandbox.exchange import Exchange

MOST_MB = 150.0
MOST_GROWTH = 1.05
POLL_SECONDS = 0.1
HOUR_OF_POLLS = 180
"""At the default of 20 seconds."""


def run(stage: Stage) -> list[Row]:
    """Snapshot asked for, a burst queued for a mail server that is down, then polls."""
    database = stage.armed(stage.million)
    burst = stage.size(100_000, 5_000)
    polls = stage.size(HOUR_OF_POLLS, 30)
    with (
        Exchange(market=stages.make_market()) as exchange,
        stages.service(stage, database.name, exchange, POLL_SECONDS=str(POLL_SECONDS)) as service,
    ):
        _ask(service.url)
        for coin_id in range(1, COINS + 1):
            exchange.market.set_price(coin_id, price_of(coin_id) * _factor(burst, stage.million))
        queued = _await_queue(stage, burst)
        readings = _readings(exchange, service, polls)
        peak = memory_mb(service.pid, "VmHWM")
    say(f"  {queued:,} mails queued, {polls} polls: " + ", ".join(f"{reading:.0f}" for reading in readings) + " MB")
    start, finish = median(readings[1:3]), median(readings[-3:])
    what = f"highest resident memory with {stage.million:,} alerts, the snapshot and {queued:,} mails queued"
    return [
        Row("9", what, peak, "MB", peak, None, f"under {MOST_MB:g}", peak < MOST_MB),
        at_most(
            "9",
            f"its growth over {polls} polls",
            finish / start,
            MOST_GROWTH,
            measured=finish,
            baseline=start,
            unit="x the start",
        ),
    ]


def _factor(burst: int, armed: int) -> float:
    """How far all prices must rise for a little more than that share of the alerts to fire; see `seed`."""
    return 1.05 + 0.9 * 2 * 1.01 * burst / armed


def _await_queue(stage: Stage, burst: int) -> int:
    database = stage.armed(stage.million)
    owed = {"notification.due_at": {"$exists": True}}
    for _ in range(600):
        if (queued := database.alerts.count_documents(owed)) >= burst * 0.99:
            return queued
        time.sleep(0.2)
    raise RuntimeError(f"only {queued} mails are queued, expected {burst}")


def _readings(exchange: Exchange, service: stages.Running, polls: int) -> list[float]:
    """Memory in MB, ten times over that many polls."""
    readings = [memory_mb(service.pid)]
    first = _polls(exchange)
    started = time.monotonic()
    while (done := _polls(exchange) - first) < polls and time.monotonic() - started < 120:
        if done >= len(readings) * polls / 10:
            _ask(service.url)
            readings.append(memory_mb(service.pid))
        time.sleep(0.02)
    return [*readings, memory_mb(service.pid)]


def _polls(exchange: Exchange) -> int:
    return len(exchange.asked("/quotes/latest"))


def _ask(url: str) -> None:
    asked = urllib.request.Request(f"{url}/api/market/aggregated_data", headers={"X-API-Key": KEY})
    with urllib.request.urlopen(asked, timeout=60) as answer:
        answer.read()


def memory_mb(pid: int, kind: str = "VmRSS") -> float:
    """Resident memory of a process: now, or with VmHWM at its highest."""
    status = Path(f"/proc/{pid}/status").read_text()
    line = next(line for line in status.splitlines() if line.startswith(kind))
    return int(line.split()[1]) / 1024
