"""Rows 1, 1b and 2: what a poll costs, and how fast a burst of alerts fires."""

import time
from collections.abc import Callable
from datetime import UTC, datetime, timedelta

from app.alerting import firing
from app.database import coins
from app.database.client import Document, SyncDB
from bench import plots
from bench.report import Row, at_least, at_most, median, say
from bench.seed import connect_patiently, observe, seed
from bench.stage import Stage

SMALL = 10_000


def run_poll(stage: Stage) -> list[Row]:
    """Row 1 and 1b."""
    large, small = stage.armed(stage.million), stage.armed(SMALL)
    middle = stage.armed(stage.size(100_000, 20_000))
    ours: dict[str, list[float]] = {"large": [], "middle": [], "small": []}
    usual: list[float] = []
    for _ in range(2):  # the first time reads indexes from the disk
        for database in (large, middle, small):
            poll(database)
    for _ in range(3):
        usual.append(timed(lambda: compare_all(large)))
        for _ in range(5):
            ours["large"].append(timed(lambda: poll(large)))
            ours["middle"].append(timed(lambda: poll(middle)))
            ours["small"].append(timed(lambda: poll(small)))
    cost = {name: median(times) for name, times in ours.items()}
    theirs = median(usual)
    sizes = (SMALL, stage.size(100_000, 20_000), stage.million)
    costs = (cost["small"], cost["middle"], cost["large"])
    say("  " + ", ".join(f"{count:,}: {seconds * 1e3:.1f} ms" for count, seconds in zip(sizes, costs, strict=True)))
    say(f"  reading and comparing all in Python: {theirs:.2f} s")
    plots.poll_cost(sizes, costs, theirs)
    faster, growth = theirs / cost["large"], cost["large"] / cost["small"]
    name = f"one poll, 500 coins, {stage.million:,} armed alerts"
    return [
        at_least("1", name, faster, 100.0, measured=cost["large"], baseline=theirs, unit="times faster"),
        at_most(
            "1b",
            f"the same poll against {SMALL:,} alerts",
            growth,
            2.0,
            measured=cost["large"],
            baseline=cost["small"],
            unit="x its cost",
        ),
    ]


def run_burst(stage: Stage) -> list[Row]:
    """Row 2."""
    count = stage.size(100_000, 10_000)
    ours, theirs = [], []
    for _ in range(3):
        with connect_patiently(stage.mongo.url) as client:
            seed(client["burst"], count, near=True)
        ours.append(_fire(stage.database("burst"), count))
        documents = list(stage.database("burst").alerts.find())
        theirs.append(_insert(stage.database("burst_inserted"), documents))
        for name in ("burst", "burst_inserted"):
            stage.database(name).client.drop_database(name)
    measured, baseline = median(ours), median(theirs)
    say(f"  {count:,} fired in {measured:.2f} s, inserted in {baseline:.2f} s")
    name = f"{count:,} alerts fire in one poll"
    value = measured / baseline
    return [at_most("2", name, value, 3.0, measured=measured, baseline=baseline, unit="x the insert")]


def poll(database: SyncDB) -> int:
    """What `Ticker` does with the quotes of one poll."""
    now = datetime.now(UTC)
    observations = observe(now)
    coins.store_prices(database, observations, now=now)
    return firing.evaluate(database, observations, now=now)


def compare_all(database: SyncDB) -> int:
    """What the usual implementation does: read every armed alert, compare in Python."""
    prices = {seen.coin_id: seen.close for seen in observe(datetime.now(UTC))}
    reached = 0
    for alert in database.alerts.find({"status": "created"}):
        price = prices[alert["coin_id"]]
        if price >= alert["target"] if alert["direction"] == "above" else price <= alert["target"]:
            reached += 1
    return reached


def timed(work: Callable[[], int], *, expected: int = 0) -> float:
    """Seconds that it takes. Raises RuntimeError unless it returns `expected`."""
    started = time.perf_counter()
    found = work()
    seconds = time.perf_counter() - started
    if found != expected:
        raise RuntimeError(f"{found} alerts fired, expected {expected}")
    return seconds


def _fire(database: SyncDB, count: int) -> float:
    seconds = timed(lambda: poll(database), expected=count)
    due = {"notification.due_at": {"$lte": datetime.now(UTC) + timedelta(seconds=1)}}
    queued = database.alerts.count_documents(due)
    if queued != count:
        raise RuntimeError(f"{queued} mails are queued, expected {count}")
    return seconds


def _insert(database: SyncDB, documents: list[Document]) -> float:
    started = time.perf_counter()
    database.alerts.insert_many(documents)
    return time.perf_counter() - started
