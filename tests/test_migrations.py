"""A database that an older or a newer version made, and several copies that start on it at once."""

import os
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from datetime import timedelta
from pathlib import Path

import pytest
import requests
from bson import ObjectId
from pymongo import ASCENDING

from app.database import leases
from app.database.client import INDEXES, LIVE, Document, SyncDB, connect
from app.database.migrations import DUTY, STEPS, Step, check_version, migrate, outdated_indexes
from app.errors import NewerDatabaseError
from tests.support import SECRET, ManualClock, make_settings, running_service

ROOT = Path(__file__).parent.parent


@pytest.fixture
def old(mongo_url: str, database_name: str) -> Iterator[SyncDB]:
    """A database without indexes and without a record of migrations."""
    with connect(mongo_url) as client:
        yield client[database_name]


def index_keys(database: SyncDB, collection: str) -> dict[str, Document]:
    return {index["name"]: dict(index["key"]) for index in database[collection].list_indexes()}


def in_parallel(database: SyncDB, clock: ManualClock, steps: list[Step], copies: int = 3) -> None:
    """Migrate as so many copies that start at the same moment."""
    together = threading.Barrier(copies)

    def start() -> None:
        together.wait(20)
        migrate(database, clock, steps)

    with ThreadPoolExecutor(copies) as pool:
        for started in [pool.submit(start) for _ in range(copies)]:
            started.result(60)


def test_three_copies_that_start_at_once_do_each_step_once_and_in_order(old: SyncDB, clock: ManualClock) -> None:
    done: list[int] = []

    def step(number: int) -> Step:
        return Step(number, f"step {number}", lambda _: done.append(number))

    steps = [step(1), step(2), step(3)]
    in_parallel(old, clock, steps)
    assert done == [1, 2, 3]
    assert [noted["_id"] for noted in old.migrations.find().sort("_id", ASCENDING)] == [1, 2, 3]
    assert old.leases.count_documents({"_id": DUTY}) == 0


def test_a_step_that_was_cut_short_is_done_by_the_next_start(old: SyncDB, clock: ManualClock) -> None:
    runs: list[str] = []

    def fail_once(_: SyncDB) -> None:
        runs.append("run")
        if len(runs) == 1:
            raise RuntimeError("the power went")

    steps = [Step(1, "fails once", fail_once)]
    with pytest.raises(RuntimeError, match="the power went"):
        migrate(old, clock, steps)
    assert old.migrations.count_documents({}) == 0
    migrate(old, clock, steps)
    assert runs == ["run", "run"]
    migrate(old, clock, steps)
    assert runs == ["run", "run"]


def test_the_lease_of_a_copy_that_died_is_waited_out(old: SyncDB, clock: ManualClock) -> None:
    leases.hold(old, DUTY, holder=ObjectId(), now=clock.now(), length=timedelta(seconds=30))
    with ThreadPoolExecutor(1) as pool:
        started = pool.submit(migrate, old, clock)
        with pytest.raises(TimeoutError):
            started.result(0.5)
        clock.advance(31)
        started.result(30)
    check_version(old)


def test_an_index_that_has_changed_is_made_anew_by_three_copies_at_once(old: SyncDB, clock: ManualClock) -> None:
    """Same name with other keys, same name with other options, and the same index under another name."""
    old.alerts.create_index([("coin_id", ASCENDING)], name="armed")
    old.users.create_index([("email_key", ASCENDING)], name="email")
    old.coins.create_index([("active", ASCENDING), ("rank", ASCENDING)], name="by_rank")
    assert outdated_indexes(old) == {("alerts", "armed"), ("users", "email"), ("coins", "by_rank")}
    in_parallel(old, clock, list(STEPS))
    assert outdated_indexes(old) == set()
    for collection, indexes in INDEXES.items():
        made = {index.document["name"]: dict(index.document["key"]) for index in indexes}
        assert index_keys(old, collection) == made | {"_id_": {"_id": 1}}
    assert old.users.index_information()["email"]["unique"] is True


def test_indexes_as_they_should_be_are_left_alone(database: SyncDB) -> None:
    """`database` has just been given all of them."""
    assert outdated_indexes(database) == set()


def test_an_index_of_somebody_elses_is_left_alone(old: SyncDB, clock: ManualClock) -> None:
    old.alerts.create_index([("email", ASCENDING)], name="of_the_administrator")
    old.alerts.create_index([("user_id", ASCENDING)], name="of_users", partialFilterExpression=LIVE)
    migrate(old, clock)
    assert {"of_the_administrator", "of_users"} <= index_keys(old, "alerts").keys()


def test_documents_from_before_receipts_get_what_receipts_need(old: SyncDB, clock: ManualClock) -> None:
    now = clock.now()
    old.watermarks.insert_one({"_id": 1, "watermark": now, "pair": "BTCUSDT"})
    old.watermarks.insert_one({"_id": 2, "since": now - timedelta(hours=1), "watermark": now})
    old.holes.insert_one({"coin_id": 1, "start": now, "end": now, "reason": "none"})
    migrate(old, clock)
    assert old.watermarks.find_one({"_id": 1}) == {"_id": 1, "watermark": now, "pair": "BTCUSDT", "since": now}
    assert old.watermarks.find_one({"_id": 2}) == {"_id": 2, "since": now - timedelta(hours=1), "watermark": now}
    assert [hole["source"] for hole in old.holes.find()] == ["bybit"]


def test_three_services_start_on_an_old_database_at_once(mongo_url: str, old: SyncDB) -> None:
    old.alerts.create_index([("coin_id", ASCENDING)], name="armed")
    settings = make_settings(mongo_url=mongo_url, mongo_db=old.name)

    def start(stack: ExitStack) -> str:
        return stack.enter_context(running_service(settings))

    with ExitStack() as first, ExitStack() as second, ExitStack() as third, ThreadPoolExecutor(3) as pool:
        for url in pool.map(start, (first, second, third)):
            assert requests.get(f"{url}/health/ready", timeout=30).status_code == 200
    assert outdated_indexes(old) == set()
    assert [step["_id"] for step in old.migrations.find()] == [step.number for step in STEPS]


def test_an_older_program_refuses_a_newer_versions_database(old: SyncDB, clock: ManualClock) -> None:
    migrate(old, clock)
    old.migrations.insert_one({"_id": STEPS[-1].number + 1, "name": "of tomorrow"})
    with pytest.raises(NewerDatabaseError, match=r"a newer version of CryptoTicker \(step \d+; this version"):
        migrate(old, clock)


def test_the_program_says_so_in_one_line(mongo_url: str, old: SyncDB) -> None:
    old.migrations.insert_one({"_id": STEPS[-1].number + 1, "name": "of tomorrow"})
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = str(probe.getsockname()[1])
    settings = {"JWT_SECRET": SECRET, "MONGO_URL": mongo_url, "MONGO_DB": old.name, "HOST": "127.0.0.1", "PORT": port}
    result = subprocess.run(
        [sys.executable, "-m", "app"],
        cwd=ROOT,
        env=os.environ | settings,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert result.returncode == 1
    assert result.stderr.startswith("cryptoticker: the database was changed by a newer version of CryptoTicker")
    assert result.stderr.count("\n") == 1


def test_the_steps_are_numbered_from_one_without_a_gap() -> None:
    assert [step.number for step in STEPS] == list(range(1, len(STEPS) + 1))
