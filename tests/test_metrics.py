"""/metrics as Prometheus reads it, and what Prometheus and Grafana are given to make of it."""

import json
import re
import shutil
import socket
import struct
import subprocess
import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
import requests
from bson import ObjectId
from prometheus_client.parser import text_string_to_metric_families
from pymongo.errors import AutoReconnect

from app.__main__ import StartError, serve
from app.clock import Clock
from app.config import Settings
from app.database import alerts
from app.database.client import SyncDB
from app.database.figures import Figures, read_figures
from app.exposition import LONGEST_REST_SECONDS, SHORTEST_REST_SECONDS, SharedFigures, serving_metrics
from app.main import create_app
from app.market.coinmarketcap import SOURCE
from app.metrics import Metrics
from app.request_times import RequestTimes
from sandbox.exchange import Exchange
from sandbox.faults import Fault
from sandbox.mailbox import Mailbox
from tests.support import Caller, ManualClock, running_service, serving, wait_until

DEPLOY = Path(__file__).parent.parent / "deploy"
RULES = DEPLOY / "prometheus" / "alerts.yml"
DASHBOARD = DEPLOY / "grafana" / "cryptoticker.json"
PROMETHEUS_OWN = {"up"}
BTC = 1

needs_promtool = pytest.mark.skipif(
    shutil.which("promtool") is None, reason="promtool is not installed (Debian: apt-get install prometheus)"
)


class Scrape:
    """One answer of /metrics."""

    def __init__(self, text: str) -> None:
        self.text = text
        self.samples = [sample for family in text_string_to_metric_families(text) for sample in family.samples]

    def value(self, name: str, **labels: str) -> float | None:
        """The one sample of `cryptoticker_<name>` with exactly these labels, or None."""
        values = [
            sample.value for sample in self.samples if sample.name == f"cryptoticker_{name}" and sample.labels == labels
        ]
        assert len(values) <= 1
        return values[0] if values else None

    def labels(self, name: str) -> list[dict[str, str]]:
        return [sample.labels for sample in self.samples if sample.name == f"cryptoticker_{name}"]


@contextmanager
def watched(settings: Settings) -> Iterator[tuple[str, str]]:
    """A service and its metrics; yields the URLs of both."""
    metrics = Metrics()
    with (
        serving(create_app(settings, metrics=metrics)) as url,
        serving_metrics(metrics, host="127.0.0.1", port=0) as port,
    ):
        yield url, f"http://127.0.0.1:{port}/metrics"


def scrape(url: str) -> Scrape:
    answer = requests.get(url, timeout=30)
    assert answer.status_code == 200
    assert answer.headers["Content-Type"].startswith("text/plain; version=")
    return Scrape(answer.text)


def is_settled(user: Caller, alert_id: str) -> bool:
    notification = user.alert(alert_id)["notification"]
    return notification is not None and notification["state"] in {"sent", "failed"}


@pytest.fixture
def lived(settings: Settings, exchange: Exchange, mailbox: Mailbox) -> Iterator[Scrape]:
    """What a service tells after an alert fired, was refused once, and another one stayed armed."""
    settings = replace(settings, bybit_url=exchange.url, coinmarketcap_api_key="a-key", crypto_api_key="a-key")
    exchange.plan.monthly_credits, exchange.plan.minute_requests = 10**9, 10**6  # else polls would be spread out
    with watched(settings) as (url, metrics):
        user = Caller(url).sign_up("alice@example.com")
        exchange.market.set_price(BTC, 100_000.0)
        user.create(150_000)
        mailbox.refuse("alice@example.com", "550 5.1.1 no", times=1)
        for target in (101_000, 102_000):
            alert = user.create(target)
            exchange.market.set_price(BTC, target + 1.0)
            wait_until(partial(is_settled, user, alert["alert_id"]))
        path = f"{url}/api/market/aggregated_data"
        wait_until(lambda: requests.get(path, headers={"X-API-Key": "a-key"}, timeout=30).status_code == 200)
        requests.get(path, headers={"X-API-Key": "a-key"}, timeout=30)
        wait_until(lambda: scrape(metrics).value("alerts_armed") == 1)
        wait_until(lambda: scrape(metrics).value("upstream_credits_left") is not None)
        yield scrape(metrics)
        user.close()


def test_it_tells_what_happened(lived: Scrape) -> None:
    assert (lived.value("polls_total", result="good") or 0) > 2
    assert lived.value("polls_total", result="throttled") == 0
    assert lived.value("alerts_fired_total", source="coinmarketcap") == 2
    assert lived.value("alerts_fired_total", source="bybit") == 0
    assert (lived.value("evaluation_seconds_count", source="coinmarketcap") or 0) > 2
    assert lived.value("mails_total", outcome="sent") == 1
    assert lived.value("mails_total", outcome="failed") == 1
    assert lived.value("mails_total", outcome="deferred") == 0
    assert (lived.value("upstream_calls_total", source="coinmarketcap", result="good") or 0) > 2
    assert (lived.value("upstream_calls_total", source="bybit", result="good") or 0) >= 2
    assert (lived.value("upstream_credits_total", source="coinmarketcap") or 0) > 2
    assert (lived.value("scheduler_heartbeat_age_seconds") or 0) < 60


def test_it_tells_what_all_copies_share(lived: Scrape) -> None:
    assert lived.value("database_up") == 1
    assert lived.value("alerts_armed") == 1
    assert lived.value("mail_queue_length") == 0
    assert lived.value("mail_queue_oldest_age_seconds") == 0
    assert 0 <= (lived.value("price_age_seconds") or 0) < 60
    assert lived.value("poll_interval_seconds") is not None
    assert (lived.value("upstream_credits_left") or 0) > 1000


def test_requests_are_told_by_route_template_and_class_of_status(lived: Scrape) -> None:
    name = "http_request_seconds_count"
    assert lived.value(name, method="POST", route="/alerts/create", status="2xx") == 3
    assert lived.value(name, method="POST", route="/user/signup", status="2xx") == 1
    assert (lived.value(name, method="GET", route="/api/market/aggregated_data", status="2xx") or 0) >= 2
    assert lived.value("http_request_seconds_bucket", method="POST", route="/user/signup", status="2xx", le="+Inf") == 1


def test_what_callers_make_up_makes_no_series(settings: Settings) -> None:
    """Each series lives as long as the process: whoever may ask must not be able to make any."""
    with watched(settings) as (url, metrics):
        for number in range(20):
            requests.get(f"{url}/made/up/{number}", timeout=30)
            requests.get(f"{url}/health/live?n={number}", timeout=30)
            requests.request("PROPFIND", f"{url}/health/", timeout=30)
            requests.request("LOCK", f"{url}/{number}", timeout=30)
        requests.post(f"{url}/health/live/", timeout=30)
        labels = scrape(metrics).labels("http_request_seconds_count")
    assert [(each["method"], each["route"], each["status"]) for each in labels] == [
        ("GET", "(unmatched)", "4xx"),
        ("GET", "/health/live", "2xx"),
        ("other", "/health", "4xx"),
        ("other", "(unmatched)", "4xx"),
        ("POST", "/health/live", "4xx"),
    ]


def test_histograms_add_up() -> None:
    times = RequestTimes("http")
    for seconds in (0.0005, 0.001, 0.0011, 3.0, 60.0):
        times.note("GET", "/", 200, seconds)
    times.note("GET", "/", 204, 0.5)
    [family] = times.collect()
    buckets = {sample.labels["le"]: sample.value for sample in family.samples if sample.name == "http_bucket"}
    assert (buckets["0.001"], buckets["0.0025"], buckets["0.5"], buckets["10.0"], buckets["+Inf"]) == (2, 3, 4, 5, 6)
    [total] = [sample.value for sample in family.samples if sample.name == "http_sum"]
    assert total == pytest.approx(63.5026)


def test_two_applications_in_one_process_count_apart(settings: Settings) -> None:
    with watched(settings) as (first, first_metrics), watched(settings) as (_, second_metrics):
        requests.get(f"{first}/nowhere", timeout=30)
        labels = {"method": "GET", "route": "(unmatched)", "status": "4xx"}
        assert scrape(first_metrics).value("http_request_seconds_count", **labels) == 1
        assert scrape(second_metrics).value("http_request_seconds_count", **labels) is None


def test_a_failing_upstream_shows(settings: Settings, exchange: Exchange) -> None:
    exchange.faults.add("/quotes/latest", Fault.html(502))
    with watched(settings) as (_, metrics):
        wait_until(lambda: (scrape(metrics).value("polls_total", result="failed") or 0) >= 2)
        told = scrape(metrics)
        assert (told.value("upstream_calls_total", source="coinmarketcap", result="failed") or 0) >= 2
        assert told.value("polls_total", result="good") == 0
        assert told.value("price_age_seconds") == float("inf")


def test_the_port_of_users_tells_nothing(settings: Settings) -> None:
    with running_service(replace(settings, metrics_port=9464)) as url:
        assert requests.get(f"{url}/metrics", timeout=30).status_code == 404
        assert "/metrics" not in requests.get(f"{url}/openapi.json", timeout=30).json()["paths"]


def test_a_taken_metrics_port_is_named(settings: Settings) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken, socket.create_server(("127.0.0.1", 0)) as probe:
        port, free = taken.getsockname()[1], probe.getsockname()[1]
        probe.close()
        with pytest.raises(StartError, match=rf"can't serve metrics on 127.0.0.1:{port} \(Address already in use\)"):
            serve(replace(settings, port=free, metrics_port=port))


def test_a_scraper_that_hangs_up_is_one_line_in_the_log(caplog: pytest.LogCaptureFixture) -> None:
    with serving_metrics(Metrics(), host="127.0.0.1", port=0) as port:
        with socket.create_connection(("127.0.0.1", port)) as scraper:
            scraper.sendall(b"GET /metr")
            scraper.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))  # closes with a reset
        wait_until(lambda: "a scrape of metrics from ('127.0.0.1'" in caplog.text)
        assert scrape(f"http://127.0.0.1:{port}/metrics").samples
    assert "Traceback" not in caplog.text


def test_the_figures_of_mails_and_alerts_are_read_off_indexes(database: SyncDB, clock: ManualClock) -> None:
    """However many alerts there are, no document is looked at."""
    live = [armed_alert(clock, target) for target in range(1, 101)]
    owed = {"state": "pending", "attempts": 0, "due_at": clock.now(), "sent_at": None, "error": None}
    fired = {"status": "triggered", "fired_at": clock.now(), "notification": owed}
    database.alerts.insert_many(live + [armed_alert(clock, target) | fired for target in (5, 6)])
    database.client.admin.command("profile", -1)
    database.command("profile", 2)
    figures = read_figures(database, source=SOURCE)
    database.command("profile", 0)
    assert figures == Figures(100, 2, clock.now())
    looked_at = {
        profile["command"]["aggregate"]: profile["docsExamined"]
        for profile in database["system.profile"].find({"command.aggregate": "alerts"})
    }
    assert looked_at == {"alerts": 0}


def armed_alert(clock: Clock, target: float) -> dict[str, object]:
    coin = {"_id": BTC, "symbol": "BTC"}
    return alerts.new_alert(
        user_id=ObjectId(), email="a@example.com", coin=coin, target=target, direction="above", touch=True,
        current_price=1.0, now=clock.now(),
    )  # fmt: skip


class Beat:
    name = "scheduler"
    heartbeat_age = 0.5

    def is_alive(self) -> bool:
        return True


def test_many_scrapes_at_once_are_one_reading_and_an_outage_is_looked_at_again_soon(
    clock: ManualClock,
) -> None:
    readings: list[Figures | None] = []
    answers: Iterator[Figures | None] = iter([Figures(7, 0), None, Figures(8, 0)])

    def read() -> Figures:
        readings.append(next(answers))
        if readings[-1] is None:
            raise AutoReconnect("gone")
        return readings[-1]

    shared = SharedFigures(read, clock=clock, scheduler=Beat())
    with ThreadPoolExecutor(8) as pool:
        told = list(pool.map(lambda _: values(shared), range(50)))
    assert len(readings) == 1
    assert all(each["cryptoticker_alerts_armed"] == 7 for each in told)
    clock.advance(SHORTEST_REST_SECONDS)
    assert values(shared)["cryptoticker_database_up"] == 0
    assert "cryptoticker_alerts_armed" not in values(shared)
    clock.advance(SHORTEST_REST_SECONDS)
    assert values(shared)["cryptoticker_alerts_armed"] == 8
    assert values(shared)["cryptoticker_scheduler_heartbeat_age_seconds"] == 0.5
    shared.close()


def test_a_reading_that_hangs_is_not_begun_again_by_each_scrape(clock: ManualClock) -> None:
    readings: list[float] = []
    begun, hold = threading.Event(), threading.Event()

    def read() -> Figures:
        readings.append(clock.monotonic())
        begun.set()
        hold.wait(20)
        return Figures(7, 0)

    shared = SharedFigures(read, clock=clock, scheduler=Beat())
    with ThreadPoolExecutor(2) as pool:
        first = pool.submit(values, shared)
        begun.wait(20)
        clock.advance(LONGEST_REST_SECONDS)
        second = pool.submit(values, shared)
        with pytest.raises(TimeoutError):
            second.result(0.2)
        hold.set()
        assert first.result(20) == second.result(20)
    assert len(readings) == 1
    shared.close()


def test_what_takes_long_to_count_is_counted_seldom(clock: ManualClock) -> None:
    """At most a hundredth of the time goes to it."""
    readings: list[float] = []

    def read() -> Figures:
        readings.append(clock.monotonic())
        clock.advance(0.2)
        return Figures(1_000_000, 0)

    shared = SharedFigures(read, clock=clock, scheduler=Beat())
    for _ in range(100):
        values(shared)
        clock.advance(1)
    shared.close()
    assert len(readings) == 5


def values(shared: SharedFigures) -> dict[str, float]:
    return {sample.name: sample.value for family in shared.collect() for sample in family.samples}


def names_in(queries: Sequence[str]) -> set[str]:
    """The metrics that PromQL queries name: what is no label, no function and no keyword."""
    found = set()
    for query in queries:
        bare = re.sub(r"\{[^}]*\}|\[[^\]]*\]|\b(by|without) *\([^)]*\)|\"[^\"]*\"", " ", query)
        found |= {name for name, call in re.findall(r"\b([a-z_][a-z0-9_]*)\b( *\()?", bare) if not call}
    return found


def labels_in(query: str) -> set[tuple[str, str]]:
    """The metric and each label that it is asked by."""
    matchers = re.findall(r"([a-z_]+)\{([^}]*)\}", query)
    return {(name, label) for name, inner in matchers for label in re.findall(r"(\w+) *[=!]", inner)}


def rule_queries() -> list[str]:
    text = re.sub(r"expr: >-\n +", "expr: ", RULES.read_text(encoding="utf-8"))
    text = re.sub(r"\n +([<>]) ", r" \1 ", text)
    return re.findall(r"^ +expr: (.*)$", text, flags=re.MULTILINE)


def dashboard_queries() -> list[str]:
    panels = json.loads(DASHBOARD.read_text(encoding="utf-8"))["panels"]
    return [target["expr"] for panel in panels for target in panel.get("targets", [])]


def test_rules_and_dashboard_ask_for_metrics_and_labels_that_there_are(lived: Scrape) -> None:
    queries = rule_queries() + dashboard_queries()
    assert len(rule_queries()) == 11
    assert len(dashboard_queries()) > 20
    exist = {sample.name for sample in lived.samples} | PROMETHEUS_OWN
    assert names_in(queries) - exist == set()
    known = {(sample.name, label) for sample in lived.samples for label in sample.labels}
    given_by_prometheus = {(name, label) for name in exist for label in ("job", "instance")}
    assert {pair for query in queries for pair in labels_in(query)} - known - given_by_prometheus == set()


def test_every_metric_of_ours_is_on_the_dashboard(lived: Scrape) -> None:
    shown = names_in(dashboard_queries())
    families = {re.sub(r"_(count|sum|bucket|created)$", "", sample.name) for sample in lived.samples}
    ours = {name for name in families if name.startswith("cryptoticker_")}
    assert {name for name in ours if not any(each.startswith(name) for each in shown)} - {
        re.sub(r"_total$", "", name) for name in ours
    } == set()


@needs_promtool
@pytest.mark.parametrize(
    "command", ["check config prometheus.yml", "check rules alerts.yml", "test rules alerts_test.yml"]
)
def test_promtool_takes_the_rules(command: str) -> None:
    result = subprocess.run(
        ["promtool", *command.split()], cwd=RULES.parent, capture_output=True, text=True, timeout=60
    )
    assert (result.returncode, result.stdout + result.stderr) == (0, result.stdout + result.stderr)


@needs_promtool
def test_promtool_finds_nothing_wrong_with_the_metrics(lived: Scrape) -> None:
    ours = "".join(line for line in lived.text.splitlines(keepends=True) if "_created" not in line)
    result = subprocess.run(["promtool", "check", "metrics"], input=ours, capture_output=True, text=True, timeout=60)
    assert (result.returncode, result.stdout + result.stderr) == (0, "")
