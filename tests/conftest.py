"""Fixtures: a real mongod for the whole run, a database per test, and the sandbox's exchange and mailbox."""

import shutil
import tempfile
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from app.config import Settings
from app.database.client import SyncDB, connect, create_indexes
from app.database.coins import ensure_always_known
from app.database.embedded import EmbeddedMongo
from sandbox.exchange import Exchange
from sandbox.mailbox import Mailbox
from tests.support import Caller, ManualClock, make_settings, running_service


def pytest_addoption(parser: pytest.Parser) -> None:
    """What tests/chaos/ can be told."""
    parser.addoption("--chaos", action="store_true", help="run the chaos tests in their long form")
    parser.addoption("--chaos-seed", type=int, help="throw the dice of the chaos tests as a failed run did")


MEMORY = Path("/dev/shm")
MONGO_NEEDS_BYTES = 4 * 1024**3


def in_memory() -> str | None:
    """A folder whose writes wait for no disk, where there is one that holds a mongod: a test run is half as long."""
    return str(MEMORY) if MEMORY.is_dir() and shutil.disk_usage(MEMORY).free > MONGO_NEEDS_BYTES else None


@pytest.fixture(scope="session")
def mongo_url() -> Iterator[str]:
    """A real single-node replica set, with fail points allowed."""
    with (
        tempfile.TemporaryDirectory(prefix="cryptoticker-", dir=in_memory()) as data_dir,
        EmbeddedMongo(Path(data_dir), parameters={"enableTestCommands": "1"}) as mongo,
    ):
        yield mongo.url


@dataclass(frozen=True)
class Quiet:
    """A service without upstreams or a mail server, and its database."""

    url: str
    database: SyncDB


@pytest.fixture(scope="module")
def quiet_service(mongo_url: str) -> Iterator[Quiet]:
    """One for all tests of a module that need only users and their requests: starting one takes longer than a test."""
    name = f"quiet_{uuid.uuid4().hex[:12]}"
    with connect(mongo_url) as client, running_service(make_settings(mongo_url=mongo_url, mongo_db=name)) as url:
        yield Quiet(url, client[name])
        client.drop_database(name)


@pytest.fixture
def quiet(quiet_service: Quiet) -> Quiet:
    """The module's quiet service, without users or alerts."""
    quiet_service.database.users.delete_many({})
    quiet_service.database.alerts.delete_many({})
    return quiet_service


@pytest.fixture
def database_name(mongo_url: str) -> Iterator[str]:
    """A name that no other test uses; the database is dropped afterwards."""
    name = f"test_{uuid.uuid4().hex[:12]}"
    yield name
    with connect(mongo_url) as client:
        client.drop_database(name)


@pytest.fixture
def database(mongo_url: str, database_name: str) -> Iterator[SyncDB]:
    """The test's own database, with indexes, as the background threads see it."""
    with connect(mongo_url) as client:
        create_indexes(client[database_name])
        ensure_always_known(client[database_name])
        yield client[database_name]


@pytest.fixture
def clock() -> ManualClock:
    """A clock that stands still until told otherwise."""
    return ManualClock()


@pytest.fixture
def exchange() -> Iterator[Exchange]:
    """CoinMarketCap and Bybit, on a real socket."""
    with Exchange() as running:
        yield running


@pytest.fixture
def mailbox() -> Iterator[Mailbox]:
    """A mail server that keeps what it gets."""
    with Mailbox() as running:
        yield running


@pytest.fixture
def caller() -> Iterator[Callable[[str], Caller]]:
    """Makes callers of a service and closes their connections afterwards."""
    callers: list[Caller] = []

    def make(base_url: str) -> Caller:
        callers.append(Caller(base_url))
        return callers[-1]

    yield make
    for made in callers:
        made.close()


@pytest.fixture
def settings(mongo_url: str, database_name: str, exchange: Exchange, mailbox: Mailbox) -> Settings:
    """For a service that polls the exchange ten times a second and mails to the mailbox."""
    return make_settings(
        mongo_url=mongo_url,
        mongo_db=database_name,
        coinmarketcap_url=exchange.url,
        smtp_host=mailbox.host,
        smtp_port=mailbox.port,
    )


@pytest.fixture
def service(settings: Settings) -> Iterator[str]:
    """The whole service; yields its base URL."""
    with running_service(settings) as url:
        yield url


@pytest.fixture
def alice(service: str, caller: Callable[[str], Caller]) -> Caller:
    """A user of the service."""
    return caller(service).sign_up("alice@example.com")


@pytest.fixture
def bob(service: str, caller: Callable[[str], Caller]) -> Caller:
    """Another user of the same service."""
    return caller(service).sign_up("bob@example.com")
