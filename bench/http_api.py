"""Rows 6, 7 and 8: listing and setting alerts, and listing while people log in."""

import json
import os
import signal
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable

from bench import stage as stages
from bench.load import Plan, put_load, request
from bench.report import Row, at_least, at_most, median, percentile, say
from bench.seed import EMAIL, price_of, user_id
from bench.stage import Stage
from sandbox.exchange import Exchange

OWNER = 7
"""The user whose alerts are listed."""
CREATES_PER_USER = 50
NEW_USERS_FROM = 100_000
LOGINS = 50
PASSWORD = "correct horse battery"


def run_fetch(stage: Stage) -> list[Row]:
    """Row 6."""
    name = stage.armed(stage.million).name
    page = request("GET", "/alerts/fetch/", stages.bearer(OWNER))
    bare_page = request("GET", "/fetch")
    seconds = stage.size(20, 7) / 10
    with (
        Exchange(market=stages.make_market()) as exchange,
        stages.service(stage, name, exchange) as service,
        stages.baseline(stage, "bare_fetch", MONGO_DB=name, BENCH_USER=str(user_id(OWNER))) as bare,
    ):
        _check_page(service.url)
        ours, theirs = [], []
        for _ in range(stage.size(5, 3)):
            theirs.append(put_load(Plan(bare.url, [bare_page], seconds=seconds), expect=200).rate)
            ours.append(put_load(Plan(service.url, [page], seconds=seconds), expect=200).rate)
    what = f"alerts/fetch, a page of 50 out of {stage.million:,} alerts"
    return [_rates("6", what, ours, theirs, 0.7)]


def run_create(stage: Stage) -> list[Row]:
    """Row 7."""
    database = stage.armed(stage.million)
    count = stage.size(2000, 500)
    rounds = stage.size(5, 3)
    users = iter(range(NEW_USERS_FROM, NEW_USERS_FROM + 1_000_000))
    template = database.alerts.find_one({}, {"_id": 0, "created_at": 0}) or {}
    alert = json.dumps(template | {"user_id": str(template["user_id"])})
    with (
        Exchange(market=stages.make_market()) as exchange,
        stages.service(stage, database.name, exchange) as service,
        stages.baseline(
            stage, "bare_create", MONGO_DB="bare_create", BENCH_COLLECTION="bare", BENCH_ALERT=alert
        ) as bare,
    ):
        ours, theirs = [], []
        for _ in range(rounds):
            wishes = _wishes(count, lambda: next(users))
            bare_wishes = [request("POST", "/create", body={"targetPrice": 1.0 + n}) for n in range(count)]
            theirs.append(put_load(Plan(bare.url, bare_wishes), expect=201).rate)
            ours.append(put_load(Plan(service.url, wishes), expect=201).rate)
    database.alerts.delete_many({"user_id": {"$gte": user_id(NEW_USERS_FROM)}})
    return [_rates("7", "alerts/create", ours, theirs, 0.5)]


def run_logins(stage: Stage) -> list[Row]:
    """Row 8."""
    name = stage.armed(stage.million).name
    page = request("GET", "/alerts/fetch/", stages.bearer(OWNER))
    plan = Plan("", [page], connections=2, seconds=float(stage.size(10, 4)), pause=0.005)
    with (
        Exchange(market=stages.make_market()) as exchange,
        stages.service(stage, name, exchange, BCRYPT_ROUNDS="14") as service,
    ):
        plan = Plan(service.url, plan.requests, plan.connections, plan.seconds, plan.pause)
        _sign_up(service.url)
        rest, busy = [], []
        rest.extend(put_load(plan, expect=200).latencies)
        attempts = _start_logins(service.url)
        time.sleep(1.0)
        busy.extend(put_load(plan, expect=200).latencies)
        if attempts.poll() is not None:
            raise RuntimeError("the logins were over before the measurement was")
        stages.end(attempts)
        os.kill(service.pid, signal.SIGKILL)  # it would finish the logins that are under way
    measured, baseline = percentile(busy, 0.99), percentile(rest, 0.99)
    say(f"  p99 {measured * 1e3:.1f} ms while {LOGINS} log in, {baseline * 1e3:.1f} ms at rest")
    what = f"p99 of alerts/fetch while {LOGINS} logins are in flight"
    return [at_most("8", what, measured / baseline, 5.0, measured=measured, baseline=baseline, unit="x at rest")]


def _rates(row: str, what: str, ours: list[float], theirs: list[float], least: float) -> Row:
    measured, baseline = median(ours), median(theirs)
    say(f"  {measured:,.0f} a second, the bare route {baseline:,.0f}")
    return at_least(row, what, measured / baseline, least, measured=measured, baseline=baseline, unit="x its rate")


def _wishes(count: int, next_user: Callable[[], int]) -> list[bytes]:
    """Alerts of ever new users, so that nobody comes near the limit."""
    made: list[bytes] = []
    while len(made) < count:
        headers = stages.bearer(next_user())
        targets = [price_of(1) * (2 + number / CREATES_PER_USER) for number in range(CREATES_PER_USER)]
        made += [request("POST", "/alerts/create/", headers, {"targetPrice": target}) for target in targets]
    return made[:count]


def _check_page(url: str) -> None:
    asked = urllib.request.Request(f"{url}/alerts/fetch/", headers=stages.bearer(OWNER))
    with urllib.request.urlopen(asked, timeout=30) as answer:
        if len(json.load(answer)) != 50:
            raise RuntimeError("the page does not hold 50 alerts")


def _sign_up(url: str) -> None:
    body = json.dumps({"username": "somebody", "email": EMAIL, "password": PASSWORD}).encode()
    asked = urllib.request.Request(f"{url}/user/signup/", body, {"Content-Type": "application/json"})
    try:
        urllib.request.urlopen(asked, timeout=60).close()
    except urllib.error.HTTPError as error:
        if error.code != 409:
            raise


def _start_logins(url: str) -> subprocess.Popen[bytes]:
    """As many logins in flight, each repeated when it is answered, in a process of its own."""
    return subprocess.Popen([sys.executable, "-m", "bench.logins", url, str(LOGINS)], cwd=stages.ROOT)
