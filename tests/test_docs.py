"""Documentation held to the code: settings, routes and their examples, links, names of tests, README's walk-through."""

import ast
import json
import os
import re
import subprocess
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from pydantic import BaseModel

from app.config import Settings, load_settings
from app.database.client import INDEXES
from app.main import create_app
from sandbox.exchange import Exchange
from tests.support import DOCKER_SETTINGS, SECRET, running_service

ROOT = Path(__file__).parent.parent
README = ROOT / "README.md"
PAGES = [
    *(ROOT / name for name in ("README.md", "CHANGELOG.md")),
    *(page for folder in ("bench", "deploy", "docs", "tests") for page in sorted((ROOT / folder).rglob("*.md"))),
]
ENV_EXAMPLE = dict(
    re.findall(r"^(?:# )?([A-Z_]+)=(.*)$", (ROOT / ".env.example").read_text(encoding="utf-8"), flags=re.MULTILINE)
)
WITHOUT_DATABASE = {"/"}
"""Routes that answer without MongoDB, so that they have no 503."""
STATES = {"GET /health": "Health", "GET /health/live": "Liveness", "GET /health/ready": "Readiness"}
"""Routes that answer with the same shape whether all is well or not."""


class DocumentedSetting(NamedTuple):
    """A row of a table in docs/configuration.md."""

    name: str
    default: str
    allowed: str
    meaning: str
    example: str


def documented_settings() -> list[DocumentedSetting]:
    page = (ROOT / "docs" / "configuration.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| `([A-Z_]+)` \| (.*) \|$", page, flags=re.MULTILINE)
    return [DocumentedSetting(name, *cells.split(" | ")) for name, cells in rows]


def names_read_by_the_code() -> list[str]:
    """The first argument of each call of `source.read(...)`."""
    tree = ast.parse((ROOT / "app" / "config.py").read_text(encoding="utf-8"))
    calls = [node for node in ast.walk(tree) if isinstance(node, ast.Call) and ast.unparse(node.func) == "source.read"]
    return [ast.literal_eval(call.args[0]) for call in calls]


@pytest.fixture
def no_settings(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    """An environment without any setting."""
    for name in ENV_EXAMPLE:
        monkeypatch.delenv(name, raising=False)
    return monkeypatch


def test_every_setting_stands_in_env_example_and_in_the_docs_and_none_besides() -> None:
    compose = (ROOT / "docker-compose.yml").read_text(encoding="utf-8")
    assert [name for name in DOCKER_SETTINGS if f"${{{name}" not in compose] == []
    read = [*names_read_by_the_code(), *DOCKER_SETTINGS]
    assert len(read) == len(set(read))
    assert sorted(ENV_EXAMPLE) == sorted(read)
    assert sorted(row.name for row in documented_settings()) == sorted(read)


@pytest.mark.usefixtures("no_settings")
def test_the_defaults_in_env_example_are_those_of_the_code(tmp_path: Path) -> None:
    env_file = tmp_path / ".env"
    env_file.write_text("".join(f"{name}={value}\n" for name, value in (ENV_EXAMPLE | {"JWT_SECRET": SECRET}).items()))
    assert load_settings(env_file) == Settings(jwt_secret=SECRET)


@pytest.mark.parametrize("row", documented_settings(), ids=lambda row: row.name)
def test_the_docs_state_the_default_and_an_example_that_is_accepted(
    row: DocumentedSetting, no_settings: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    default = row.default.removeprefix("`").removesuffix("`") if row.default.startswith("`") else ""
    assert default == ENV_EXAMPLE[row.name]
    assert row.allowed
    assert row.meaning
    no_settings.setenv("JWT_SECRET", SECRET)
    if row.name in DOCKER_SETTINGS:
        assert re.fullmatch(rf"`{row.name}=.+`|the output of `openssl rand -hex 24`", row.example)
    elif found := re.fullmatch(rf"`{row.name}=(.*)`", row.example):
        no_settings.setenv(row.name, found[1])
        assert load_settings(tmp_path / "absent") != Settings(jwt_secret=SECRET)
    else:
        assert row.example == "the output of `openssl rand -base64 48`"


def operations() -> list[tuple[str, dict[str, Any]]]:
    """Each documented route: its method and path, and what OpenAPI says of it."""
    paths = create_app().openapi()["paths"]
    return [(f"{method.upper()} {path}", about) for path, methods in paths.items() for method, about in methods.items()]


each_operation = pytest.mark.parametrize(
    ("route", "about"), [pytest.param(route, about, id=route) for route, about in operations()]
)


@each_operation
def test_every_route_says_what_it_does(route: str, about: dict[str, Any]) -> None:
    assert route
    assert about["description"].strip().endswith(".")


@each_operation
def test_every_route_documents_its_errors(route: str, about: dict[str, Any]) -> None:
    expected = set() if route.split()[1] in WITHOUT_DATABASE else {"503"}
    if "security" in about:
        expected.add("401")
    if "parameters" in about:
        expected.add("422")
    if "requestBody" in about:
        expected |= {"413", "422"}
    errors = {code: answer for code, answer in about["responses"].items() if code >= "400"}
    assert expected - set(errors) == set()
    shapes = {code: answer["content"]["application/json"]["schema"]["$ref"] for code, answer in errors.items()}
    if route in STATES:
        assert shapes == {"503": f"#/components/schemas/{STATES[route]}"}
    else:
        assert set(shapes.values()) <= {"#/components/schemas/ErrorBody"}


def models(base: type[BaseModel] = BaseModel) -> Iterator[type[BaseModel]]:
    for model in base.__subclasses__():
        if model.__module__.startswith("app."):
            yield model
        yield from models(model)


def test_every_example_is_valid() -> None:
    """Those of the models, and those that a route gives for a body it takes or answers with."""
    by_name = {model.__name__: model for model in models()}
    schemas = create_app().openapi()["components"]["schemas"]
    examples = [(name, example) for name, schema in schemas.items() for example in schema.get("examples", [])]
    assert {name for name, _ in examples} >= {"UserSchema", "LoginSchema", "AlertSchema", "AlertReference"}
    for name, example in [*examples, *examples_of_bodies()]:
        by_name[name].model_validate_json(json.dumps(example))


def examples_of_bodies() -> Iterator[tuple[str, Any]]:
    """The model and the example, for each that stands in a route rather than in its model."""
    for _, about in operations():
        for body in [about.get("requestBody", {}), *about["responses"].values()]:
            content = body.get("content", {}).get("application/json", {})
            shown = [example["value"] for example in content.get("examples", {}).values()]
            for example in [*shown, *filter(None, [content.get("example")])]:
                yield content["schema"]["$ref"].rpartition("/")[2], example


@each_operation
def test_every_example_of_a_parameter_fits_its_schema(route: str, about: dict[str, Any]) -> None:
    assert route
    for parameter in about.get("parameters", []):
        schema = parameter["schema"]
        for example in [*schema.get("examples", []), *filter(None, [parameter.get("example")])]:
            assert isinstance(example, {"string": str, "integer": int, "boolean": bool}[schema["type"]])
            assert example in schema.get("enum", [example])
            assert len(str(example)) <= schema.get("maxLength", len(str(example)))


def anchors(page: Path) -> set[str]:
    """The anchors of a page's headings, as GitHub makes them."""
    headings = re.findall(r"^#+ (.*)$", page.read_text(encoding="utf-8"), flags=re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_every_relative_link_leads_somewhere(page: Path) -> None:
    for link in re.findall(r"\]\(([^)\s]+)\)", page.read_text(encoding="utf-8")):
        if re.match(r"[a-z]+:", link):
            continue
        path, _, anchor = link.partition("#")
        target = (page.parent / path).resolve() if path else page
        assert target.exists(), link
        assert not anchor or anchor in anchors(target), link


def test_the_docs_name_tests_and_files_that_exist() -> None:
    tests = "\n".join(path.read_text(encoding="utf-8") for path in (ROOT / "tests").rglob("test_*.py"))
    for page in PAGES:
        text = page.read_text(encoding="utf-8")
        for name in re.findall(r"`(test_\w+)`", text):
            assert f"def {name}(" in tests, f"{page.name} names {name}"
        for path in re.findall(r"`((?:app|tests|sandbox)/[\w/]+\.py)`", text):
            assert (ROOT / path).is_file(), f"{page.name} names {path}"


def test_the_architecture_names_every_module_and_every_index() -> None:
    text = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
    tree = text.partition("```\napp/\n")[2].partition("```")[0]
    named = re.findall(r"^ +([\w/]+\.py) ", tree, flags=re.MULTILINE)
    modules = [path.name for path in (ROOT / "app").rglob("*.py") if path.name != "__init__.py"]
    assert Counter(named) == Counter(modules)
    for collection, indexes in INDEXES.items():
        row = next(line for line in text.splitlines() if line.startswith(f"| `{collection}` |"))
        made = {index.document["name"]: ", ".join(index.document["key"]) for index in indexes}
        assert dict(re.findall(r"`(\w+)`: \(([^)]*)\)", row)) == made


def test_the_readme_names_every_command() -> None:
    table = re.findall(r"^\| `\./run ?(\w*)[` ]", README.read_text(encoding="utf-8"), flags=re.MULTILINE)
    usage = subprocess.run([ROOT / "run", "help"], capture_output=True, text=True, check=True).stdout
    known = set(re.findall(r"^  (\w+|\(none\))  ", usage, flags=re.MULTILINE)) - {"help"}
    assert {name or "(none)" for name in table} == known


def test_the_walk_with_curl_works(settings: Settings, exchange: Exchange, tmp_path: Path) -> None:
    """README's own commands, in bash, against the service and the sandbox."""
    blocks = re.findall(r"^```bash\n(.*?)^```$", README.read_text(encoding="utf-8"), flags=re.MULTILINE | re.DOTALL)
    assert len(blocks) == 1
    (tmp_path / ".env").write_text("JWT_SECRET=x\nCRYPTO_API_KEY=the-key-of-the-walk\n")
    with running_service(replace(settings, bybit_url=exchange.url, crypto_api_key="the-key-of-the-walk")) as url:
        script, replaced = re.subn(r"^API=\S+", f"API={url}", blocks[0], flags=re.MULTILINE)
        assert replaced == 1
        walk = subprocess.run(
            ["bash", "-euo", "pipefail"],
            input=script,
            cwd=tmp_path,
            env={"PATH": os.environ["PATH"], "NO_PROXY": "*"},
            capture_output=True,
            text=True,
            timeout=60,
        )
    assert (walk.returncode, walk.stderr) == (0, "")
    [listed], deleted, candles = answers(walk.stdout)
    assert (listed["status"], listed["symbol"], listed["targetPrice"]) == ("created", "BTC", 150_000)
    assert (deleted["alert_id"], deleted["status"]) == (listed["alert_id"], "deleted")
    assert {len(candle) for candle in candles} == {7}


def answers(text: str) -> Iterator[Any]:
    """The JSON documents that stand one after another in what curl printed."""
    while text.strip():
        answer, end = json.JSONDecoder().raw_decode(text)
        yield answer
        text = text[end:]
