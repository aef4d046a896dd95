"""What tests of metrics share: a service with its metrics, and what one scrape says."""

from collections.abc import Iterator
from contextlib import contextmanager

import requests
from prometheus_client.parser import text_string_to_metric_families

from app.config import Settings
from app.exposition import SharedFigures, serving_metrics
from app.main import create_app
from app.metrics import Metrics
from tests.support import serving


class Scrape:
    """One answer of /metrics."""

    def __init__(self, text: str) -> None:
        self.text = text
        self.samples = [sample for family in text_string_to_metric_families(text) for sample in family.samples]

    @property
    def names(self) -> set[str]:
        return {sample.name for sample in self.samples}

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


class Beat:
    name = "scheduler"
    heartbeat_age = 0.5

    def is_alive(self) -> bool:
        return True


def values(shared: SharedFigures) -> dict[str, float]:
    return {sample.name: sample.value for family in shared.collect() for sample in family.samples}
