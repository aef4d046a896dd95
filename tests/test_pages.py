"""The pages for operators and for programs, held to the code: routes, statuses, fields, metrics, log lines."""

import ast
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple, TypeGuard

import pytest
from prometheus_client.core import Metric
from pydantic import BaseModel

from app.clock import Clock
from app.database.figures import Figures
from app.exposition import SharedFigures
from app.health import Health
from app.main import create_app
from app.metrics import PREFIX, Metrics
from app.models import Alert, Coverage, Notification, Token
from tests.metrics.support import Beat
from tests.support import ManualClock

ROOT = Path(__file__).parent.parent
API = (ROOT / "docs" / "api.md").read_text(encoding="utf-8")
OPERATIONS = (ROOT / "docs" / "operations.md").read_text(encoding="utf-8")
RULES = (ROOT / "deploy" / "prometheus" / "alerts.yml").read_text(encoding="utf-8")


def sections() -> dict[str, str]:
    """What docs/api.md says of each route, by "METHOD /path"."""
    parts = re.split(r"^### ((?:GET|POST) \S+)$", API, flags=re.MULTILINE)
    return dict(zip(parts[1::2], (re.split(r"^## ", part, flags=re.MULTILINE)[0] for part in parts[2::2]), strict=True))


def operations() -> dict[str, dict[str, Any]]:
    paths = create_app().openapi()["paths"]
    return {f"{method.upper()} {path}": about for path, methods in paths.items() for method, about in methods.items()}


def test_the_api_page_tells_of_every_route_and_of_no_other() -> None:
    assert sections().keys() == operations().keys()


@pytest.mark.parametrize("route", sections())
def test_it_names_every_status_and_every_input_of_a_route(route: str) -> None:
    about, section = operations()[route], sections()[route]
    assert set(re.findall(r"^\| (\d{3}) \|", section, flags=re.MULTILINE)) == set(about["responses"])
    named = set(re.findall(r"`(\w+)`", "".join(re.findall(r"^\| (`.*?) \|", section, flags=re.MULTILINE))))
    assert named == {parameter["name"] for parameter in about.get("parameters", [])} | body_fields(route, about)


def body_fields(route: str, about: dict[str, Any]) -> set[str]:
    """The fields of a body, where the page has a table of them: two routes' bodies are told in a sentence."""
    if "requestBody" not in about or route in {"POST /user/login/", "POST /alerts/delete/"}:
        return set()
    name = about["requestBody"]["content"]["application/json"]["schema"]["$ref"].rpartition("/")[2]
    return set(create_app().openapi()["components"]["schemas"][name]["properties"])


@pytest.mark.parametrize(
    ("route", "models"),
    [
        ("POST /user/signup/", [Token]),
        ("POST /alerts/create/", [Alert, Notification]),
        ("GET /alerts/coverage/", [Coverage]),
    ],
)
def test_its_examples_have_the_shape_of_the_answers(route: str, models: list[type[BaseModel]]) -> None:
    examples = re.findall(r"^```json\n(.*?)^```$", sections()[route], flags=re.MULTILINE | re.DOTALL)
    for model, example in zip(models, examples, strict=True):
        assert json.loads(example).keys() == model.model_fields.keys()
        model.model_validate_json(example)


def test_every_example_of_the_api_page_is_json() -> None:
    for example in re.findall(r"^```json\n(.*?)^```$", API, flags=re.MULTILINE | re.DOTALL):
        json.loads(example)
    for body in re.findall(r"-d '(.*?)'", API):
        json.loads(body)


def health_fields(model: type[BaseModel] = Health, prefix: str = "") -> Iterator[str]:
    for name, field in model.model_fields.items():
        nested = [kind for kind in (field.annotation, *getattr(field.annotation, "__args__", ())) if is_model(kind)]
        if name == "upstreams" or not nested:
            yield prefix + name
        for kind in nested:
            yield from health_fields(kind, f"{prefix}{name}.")


def is_model(kind: Any) -> bool:
    return isinstance(kind, type) and issubclass(kind, BaseModel)


def test_every_field_of_health_is_explained() -> None:
    table = OPERATIONS.partition("\n## Health\n")[2].partition("\n## ")[0]
    explained = re.findall(r"^\| `([a-z_.]+)` \|", table, flags=re.MULTILINE)
    assert explained == list(health_fields())


def families(clock: Clock) -> list[Metric]:
    """All of ours, with their types and labels."""
    metrics = Metrics()
    metrics.requests.note("GET", "/", 200, 0.1)
    figures = Figures(1, 1, clock.now(), clock.now(), 20.0, 1)
    shared = SharedFigures(lambda: figures, clock=clock, scheduler=Beat())
    found = [*metrics.registry.collect(), *shared.collect()]
    shared.close()
    return [family for family in found if family.name.startswith(PREFIX)]


def test_every_metric_is_listed_with_its_type_and_labels(clock: ManualClock) -> None:
    rows = re.findall(r"^\| `(cryptoticker_\w+)` \| (\w+)(?:, shared)? \| (.*?) \|", OPERATIONS, flags=re.MULTILINE)
    listed = {name: (kind, set(re.findall(r"`(\w+)`", labels))) for name, kind, labels in rows}
    real = {
        f"{family.name}_total" if family.type == "counter" else family.name: (
            family.type,
            {label for sample in family.samples for label in sample.labels} - {"le"},
        )
        for family in families(clock)
    }
    assert listed == real


def test_every_value_of_a_label_is_listed(clock: ManualClock) -> None:
    for family in families(clock):
        row = next(line for line in OPERATIONS.splitlines() if line.startswith(f"| `{family.name}"))
        for sample in family.samples:
            for label in {"result", "outcome"} & sample.labels.keys():
                assert sample.labels[label] in row


def test_every_alert_rule_has_a_place_in_the_list_of_what_to_do() -> None:
    rules = set(re.findall(r"- alert: (\w+)", RULES))
    listed = OPERATIONS.partition("\n## Alert rules and what to do\n")[2].partition("\n## ")[0]
    assert set(re.findall(r"`(CryptoTicker\w+)`", listed)) == rules
    assert set(re.findall(r"CryptoTicker[A-Z]\w+", OPERATIONS)) == rules


class LogCall(NamedTuple):
    """A call that logs: who says it, at which level, and what."""

    logger: str
    level: str
    message: str


def log_calls() -> Iterator[LogCall]:
    for path in (ROOT / "app").rglob("*.py"):
        module = ".".join(path.relative_to(ROOT).with_suffix("").parts)
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if is_log_call(node):
                said_by, level = ast.unparse(node.func).split(".")
                logger = "app.access" if said_by == "access" else module.removeprefix("app.__main__") or "__main__"
                message = ast.literal_eval(node.args[0])
                yield LogCall(logger, "ERROR" if level == "exception" else level.upper(), message)


def is_log_call(node: ast.AST) -> TypeGuard[ast.Call]:
    """Whether this is `logger.info(...)` or one of its like."""
    return isinstance(node, ast.Call) and bool(
        re.fullmatch(r"(logger|access)\.(info|warning|error|exception|critical)", ast.unparse(node.func))
    )


def fits(call: LogCall, line: str) -> bool:
    fixed = [re.escape(part) for part in re.split(r"%(?:[.\d]*[a-z])", call.message)]
    pattern = rf"\S+Z {call.level} {re.escape(call.logger)}(?: \[\S+\])?: {'.+'.join(fixed)}"
    return re.fullmatch(pattern, line) is not None


def log_lines() -> list[str]:
    blocks = re.findall(r"^```log\n(.*?)^```$", OPERATIONS, flags=re.MULTILINE | re.DOTALL)
    return [line for block in blocks for line in block.splitlines()]


@pytest.mark.parametrize("line", log_lines(), ids=lambda line: line[25:70])
def test_every_log_line_in_the_docs_is_one_that_the_code_writes(line: str) -> None:
    assert [call for call in log_calls() if fits(call, line)] != []


def test_log_lines_are_looked_for_well() -> None:
    assert len(log_lines()) >= 15
    assert len(list(log_calls())) >= 40
    assert fits(LogCall("app.x", "INFO", "%d of %s"), "2026-01-01T00:00:00.000Z INFO app.x [id]: 3 of all")
    assert not fits(LogCall("app.x", "INFO", "%d of %s"), "2026-01-01T00:00:00.000Z INFO app.x: 3 for all")
    assert not fits(LogCall("app.x", "INFO", "%d of %s"), "2026-01-01T00:00:00.000Z ERROR app.x: 3 of all")
    assert not fits(LogCall("app.y", "INFO", "%d of %s"), "2026-01-01T00:00:00.000Z INFO app.x: 3 of all")


def test_what_the_docs_quote_within_a_line_is_in_the_code() -> None:
    """The words of errors that a line passes on."""
    code = "\n".join(path.read_text(encoding="utf-8") for path in (ROOT / "app").rglob("*.py"))
    for words in (
        "the mail server refused SMTP_USER and SMTP_PASSWORD: ",
        "the mail server can't be reached: ",
        "accepted by the mail server",
        "no reply of CoinMarketCap's own: ",
        "no connection or a broken one",
        "Bybit has no candles of ",
        "the database was changed by a newer version of CryptoTicker",
        "now does the",
    ):
        assert words in OPERATIONS
        assert words in code


def test_no_log_line_is_put_together_before_it_is_logged() -> None:
    """A text with values in it can't be searched for, and would be formatted even where nobody listens."""
    for path in (ROOT / "app").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if is_log_call(node):
                assert isinstance(node.args[0], ast.Constant), f"{path}:{node.lineno}"
