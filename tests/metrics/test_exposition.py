"""/metrics as Prometheus reads it."""

import socket
import struct
from dataclasses import replace

import pytest
import requests

from app.__main__ import StartError, serve
from app.config import Settings
from app.exposition import serving_metrics
from app.metrics import Metrics
from app.request_times import RequestTimes
from sandbox.exchange import Exchange
from sandbox.faults import Fault
from tests.metrics.support import Scrape, scrape, watched
from tests.support import running_service, wait_until


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
