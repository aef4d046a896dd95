"""The house's rules about imports, sizes and queries, read off the source."""

import ast
import subprocess
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
FILES = sorted((ROOT / "app").rglob("*.py"))
LAYERS: list[set[str]] = [
    {"app.__main__", "app.backup"},
    {"app.main"},
    {"app.routers", "app.job_scheduler", "app.health", "app.exposition"},
    {"app.auth", "app.ticker", "app.alerting", "app.market", "app.services", "app.duty"},
    {"app.database"},
    {"app.observations", "app.models", "app.spans"},
    {
        *("app.backoff", "app.clock", "app.config", "app.errors"),
        *("app.logs", "app.metrics", "app.request_times", "app.systemd"),
    },
]
"""From the top down: a module imports from its own layer and from those below it."""
QUERIES = {
    *("find_one", "find_one_and_update", "find_one_and_delete", "find_one_and_replace", "insert_one", "insert_many"),
    *("update_one", "update_many", "replace_one", "delete_one", "delete_many", "bulk_write", "aggregate", "distinct"),
    *("count_documents", "estimated_document_count", "start_session", "watch"),
}
"""Methods of pymongo's collections and clients that nothing else has."""

IMPORT_EVERYTHING = """
import gc, importlib, socket, sys, threading

def forbid(event, arguments):
    if event in {"socket.connect", "socket.getaddrinfo", "socket.sendto"}:
        raise AssertionError(f"{event} at import")

sys.addaudithook(forbid)
sys.path.insert(0, sys.argv[1])
for module in sys.argv[2:]:
    importlib.import_module(module)
    assert threading.active_count() == 1, f"{module} starts {threading.enumerate()}"
    assert not [thing for thing in gc.get_objects() if isinstance(thing, socket.socket)], f"{module} opens a socket"
"""


def module_name(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def imports(path: Path) -> Iterator[str]:
    """Every module that a file imports, wherever in it; `from package import name` counts as `package.name`."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: a relative import"
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def is_within(module: str, *packages: str) -> bool:
    return any(module == package or module.startswith(f"{package}.") for package in packages)


def layer(module: str) -> int:
    found = [index for index, packages in enumerate(LAYERS) if is_within(module, *packages)]
    assert len(found) == 1, f"{module} stands in no layer, or in several"
    return found[0]


def identifier(path: Path) -> str:
    return str(path.relative_to(ROOT))


each_file = pytest.mark.parametrize("path", FILES, ids=identifier)


@each_file
def test_imports_point_down(path: Path) -> None:
    if path == ROOT / "app" / "__init__.py":
        assert list(imports(path)) == []
        return
    own = layer(module_name(path))
    upward = [name for name in imports(path) if is_within(name, "app") and layer(name) < own]
    assert upward == []


@each_file
def test_only_the_web_side_knows_the_web_framework(path: Path) -> None:
    if is_within(module_name(path), "app.alerting", "app.market", "app.database"):
        assert [name for name in imports(path) if is_within(name, "fastapi", "starlette")] == []


@each_file
def test_the_service_never_imports_its_sandbox_or_its_tests(path: Path) -> None:
    assert [name for name in imports(path) if is_within(name, "sandbox", "tests", "bench")] == []


@each_file
def test_queries_stand_in_the_database_package_alone(path: Path) -> None:
    """Elsewhere: no collection of a database, no query method, of pymongo only its errors and its address reader."""
    if is_within(module_name(path), "app.database"):
        return
    used = attributes(path)
    assert [node.attr for node in used if node.attr in QUERIES] == []
    assert [ast.unparse(node) for node in used if node.attr in collections() and is_database(node.value)] == []
    pymongo = [name for name in imports(path) if is_within(name, "pymongo")]
    assert [name for name in pymongo if not is_within(name, "pymongo.errors", "pymongo.uri_parser")] == []


def attributes(path: Path) -> list[ast.Attribute]:
    return [node for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Attribute)]


@cache
def collections() -> set[str]:
    """The collections that the database package names, as in `database.alerts`."""
    queries = [path for path in FILES if is_within(module_name(path), "app.database")]
    found = {node.attr for path in queries for node in attributes(path) if ast.unparse(node.value) == "database"}
    assert {"users", "alerts", "coins", "feeds"} <= found
    return found


def is_database(node: ast.expr) -> bool:
    """Whether this names a database by the house's habit: `database`, `self._database`, `services.database`."""
    return ast.unparse(node).endswith("database")


@each_file
def test_no_file_is_two_things(path: Path) -> None:
    assert len(path.read_text().splitlines()) <= 300


def test_importing_any_module_starts_no_thread_and_opens_no_socket(tmp_path: Path) -> None:
    modules = [module_name(path) for path in FILES]
    command = [sys.executable, "-c", IMPORT_EVERYTHING, str(ROOT), *modules]
    result = subprocess.run(command, cwd=tmp_path, env={}, capture_output=True, text=True, timeout=120)
    assert (result.returncode, result.stdout, result.stderr) == (0, "", "")


@pytest.mark.parametrize(
    ("source", "said"),
    [
        ("import threading; threading.Thread(target=threading.Event().wait, daemon=True).start()", "starts"),
        ("import socket; kept = socket.create_server(('127.0.0.1', 0))", "opens a socket"),
        ("import socket; socket.getaddrinfo('localhost', 80)", "at import"),
    ],
)
def test_the_check_of_imports_notices(tmp_path: Path, source: str, said: str) -> None:
    (tmp_path / "culprit.py").write_text(source)
    command = [sys.executable, "-c", IMPORT_EVERYTHING, str(tmp_path), "culprit"]
    result = subprocess.run(command, cwd=tmp_path, env={}, capture_output=True, text=True, timeout=120)
    assert result.returncode == 1
    assert said in result.stderr
