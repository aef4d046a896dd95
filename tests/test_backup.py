"""Backups: whole, of one instant, and brought back only where they can't do harm."""

import gzip
import io
import os
import stat
import subprocess
import sys
import threading
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import bson
import pytest

from app import backup
from app.config import Settings
from app.database import backups, leases
from app.database.client import INDEXES, SyncDB, connect
from app.database.embedded import EmbeddedMongo, EmbeddedMongoInUseError
from app.errors import BackupError
from sandbox.exchange import Exchange
from sandbox.mailbox import Mailbox
from tests.support import Caller, make_settings, running_service, wait_until

ROOT = Path(__file__).parent.parent
NOW = datetime(2026, 3, 1, 12, tzinfo=UTC)
BITCOIN = 1
ALERTS = 60


@pytest.fixture
def other(database: SyncDB) -> Any:
    """An empty database beside the test's own."""
    name = f"{database.name}_other"
    yield database.client[name]
    database.client.drop_database(name)


@pytest.fixture
def file(tmp_path: Path) -> str:
    return str(tmp_path / "a.backup")


def contents(database: SyncDB) -> dict[str, list[Any]]:
    names = set(database.list_collection_names()) - backups.LEFT_OUT
    return {name: found for name in names if (found := list(database[name].find().sort("_id")))}


def fill(database: SyncDB, users: int = 3) -> None:
    database.users.insert_many([{"email_key": f"{number}@example.com", "n": 1.5} for number in range(users)])
    database.alerts.insert_one({"status": "deleted", "at": NOW, "target": 0.1, "nothing": None})
    database.feeds.insert_one({"_id": "coinmarketcap", "raw": b"\x00\xff", "big": 2**62})


def test_a_backup_brings_everything_back_and_the_indexes(database: SyncDB, other: SyncDB, file: str) -> None:
    fill(database, users=2 * backups.BATCH + 1)
    assert backup.save(database, file) == f"Saved {len(contents(database)['coins']) + 2 * backups.BATCH + 3} documents."
    backup.restore(other, file)
    assert contents(other) == contents(database)
    for collection, indexes in INDEXES.items():
        assert {index.document["name"] for index in indexes} <= set(other[collection].index_information())


def test_a_backup_is_private_and_replaces_an_older_one_only_when_it_is_whole(
    database: SyncDB, file: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    Path(file).write_bytes(b"older")
    Path(file).chmod(0o644)
    fill(database)
    monkeypatch.setattr(database.client, "start_session", None)  # breaks off after the head
    with pytest.raises(TypeError):
        backup.save(database, file)
    assert Path(file).read_bytes() == b"older"
    monkeypatch.undo()
    backup.save(database, file)
    assert stat.S_IMODE(Path(file).stat().st_mode) == 0o600


def test_a_backup_shows_one_instant(database: SyncDB) -> None:
    """What is written once the first document was read is not in it, in whichever collection."""
    fill(database)
    pieces = backups.dump(database, now=NOW)
    documents = [bson.decode(next(pieces)), bson.decode(next(pieces))]
    database.users.insert_one({"email_key": "late@example.com"})
    database.users.delete_one({"email_key": "0@example.com"})
    documents += map(bson.decode, pieces)
    users = [entry["document"]["email_key"] for entry in documents if entry.get("in") == "users"]
    assert sorted(users) == ["0@example.com", "1@example.com", "2@example.com"]


def test_alerts_that_fire_during_a_backup_fire_once_and_none_is_lost(
    settings: Settings,
    exchange: Exchange,
    mailbox: Mailbox,
    database: SyncDB,
    caller: Callable[[str], Caller],
    file: str,
) -> None:
    """The service, stopped and started on the backup, mails what had not fired by then, and nothing that had."""
    with running_service(settings) as url:
        alice = caller(url).sign_up("alice@example.com")
        ids = {alice.create(150_000 + number)["alert_id"] for number in range(ALERTS)}
        exchange.market.set_price(BITCOIN, 150_000.0 + ALERTS // 3)
        mailbox.wait_for(ALERTS // 3)
        rising = threading.Thread(target=exchange.market.set_price, args=(BITCOIN, 150_000.0 + 2 * ALERTS // 3))
        rising.start()
        backup.save(database, file)
        rising.join()
        wait_until(lambda: len(alice.alerts(filterStr="created", per_page=200)) < ALERTS // 2)
    fresh = f"{settings.mongo_db}_fresh"
    restored = database.client[fresh]
    backup.restore(restored, file)
    fired = [alert for alert in restored.alerts.find() if alert["notification"]]
    sent = [alert for alert in fired if alert["notification"]["state"] == "sent"]
    assert len(fired) >= ALERTS // 3
    assert {str(alert["_id"]) for alert in restored.alerts.find()} == ids
    before = len(mailbox.mails)
    exchange.market.set_price(BITCOIN, 160_000.0)
    with running_service(replace(settings, mongo_db=fresh)) as url:
        again = caller(url)
        again.token = alice.token
        wait_until(lambda: {alert["notification"]["state"] for alert in again.alerts(per_page=200)} == {"sent"})
    assert len(mailbox.mails) - before == ALERTS - len(sent)
    database.client.drop_database(fresh)


def test_a_database_with_accounts_is_replaced_only_when_asked_to(database: SyncDB, other: SyncDB, file: str) -> None:
    fill(database)
    backup.save(database, file)
    other.users.insert_one({"email_key": "kept@example.com"})
    with pytest.raises(BackupError, match="--replace"):
        backup.restore(other, file)
    assert other.users.count_documents({}) == 1
    backup.restore(other, file, replace=True)
    assert contents(other) == contents(database)


def test_a_database_in_use_is_left_alone(database: SyncDB, other: SyncDB, file: str) -> None:
    fill(database)
    backup.save(database, file)
    now = datetime.now(UTC)
    leases.hold(other, "polling", holder=bson.ObjectId(), now=now, length=timedelta(seconds=60))
    with pytest.raises(BackupError, match="the service runs on this database"):
        backup.restore(other, file, replace=True)
    leases.clear(other)
    backup.restore(other, file)


def damaged(content: bytes, at: int) -> bytes:
    return content[:at] + bytes([content[at] ^ 0xFF]) + content[at + 1 :]


def without_its_end(content: bytes) -> bytes:
    """A whole archive of a stream that ends early."""
    documents = bson.decode_all(gzip.decompress(content))
    return gzip.compress(b"".join(bson.encode(document) for document in documents[:-1]))


def without_a_document(content: bytes) -> bytes:
    documents = bson.decode_all(gzip.decompress(content))
    return gzip.compress(b"".join(bson.encode(document) for document in documents[:2] + documents[3:]))


def of_the_future(content: bytes) -> bytes:
    head, *rest = bson.decode_all(gzip.decompress(content))
    return gzip.compress(b"".join(map(bson.encode, [{**head, "version": head["version"] + 1}, *rest])))


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (lambda _: b"", "is no backup"),
        (lambda _: b"something else", "is no backup"),
        (lambda _: gzip.compress(b"something else"), "is no backup"),
        (lambda _: gzip.compress(bson.encode({"format": "another"})), "is no backup"),
        (lambda content: content[: len(content) // 2], "cut short or damaged"),
        *((lambda content, at=at: damaged(content, at), "cut short or damaged") for at in range(20, 220, 20)),
        (without_its_end, "cut short or damaged"),
        (without_a_document, "cut short or damaged"),
        (of_the_future, "newer version"),
    ],
)
def test_a_file_that_is_no_whole_backup_changes_nothing(
    database: SyncDB, other: SyncDB, file: str, damage: Callable[[bytes], bytes], said: str
) -> None:
    fill(database)
    backup.save(database, file)
    Path(file).write_bytes(damage(Path(file).read_bytes()))
    other.users.insert_one({"email_key": "kept@example.com"})
    with pytest.raises(BackupError, match=said):
        backup.restore(other, file, replace=True)
    assert other.users.count_documents({}) == 1


def test_the_embedded_database_is_saved_while_it_runs_and_restored_only_when_it_does_not(
    tmp_path: Path, file: str
) -> None:
    settings = make_settings(data_dir=tmp_path / "data")
    with EmbeddedMongo(settings.data_dir / "mongo") as mongo, connect(mongo.url) as client:
        fill(client[settings.mongo_db])
        with backup.reach_database(settings, may_be_running=True) as database:
            backup.save(database, file)
        with pytest.raises(EmbeddedMongoInUseError), backup.reach_database(settings, may_be_running=False):
            pass
    elsewhere = make_settings(data_dir=tmp_path / "elsewhere")
    with backup.reach_database(elsewhere, may_be_running=False) as database:
        assert backup.restore(database, file) == "Restored 5 documents: 3 accounts, 1 alerts."
    with backup.reach_database(elsewhere, may_be_running=True) as database:
        assert database.users.count_documents({}) == 3


def command(mongo_url: str, name: str, *arguments: str, given: bytes = b"") -> subprocess.CompletedProcess[bytes]:
    environment = {"PATH": os.environ["PATH"], "JWT_SECRET": "x" * 32, "MONGO_URL": mongo_url, "MONGO_DB": name}
    program = [sys.executable, "-m", "app.backup", *arguments]
    return subprocess.run(program, cwd=ROOT, env=environment, input=given, capture_output=True, timeout=60)


def test_the_command_saves_to_a_pipe_and_restores_from_one(mongo_url: str, database: SyncDB, other: SyncDB) -> None:
    fill(database)
    saved = command(mongo_url, database.name, "save", "-")
    assert (saved.returncode, saved.stderr) == (0, b"Saved 7 documents.\n")
    assert backups.check(io.BytesIO(saved.stdout)).total() == 7
    restored = command(mongo_url, other.name, "restore", "-", given=saved.stdout)
    assert (restored.returncode, restored.stderr) == (0, b"Restored 7 documents: 3 accounts, 1 alerts.\n")
    again = command(mongo_url, other.name, "restore", "-", given=saved.stdout)
    assert again.returncode == 1
    assert again.stderr.startswith(b"cryptoticker: this database holds accounts or alerts; --replace")
    assert contents(other) == contents(database)


def test_a_missing_file_and_a_missing_database_are_said_in_one_line(mongo_url: str, database: SyncDB) -> None:
    missing = command(mongo_url, database.name, "restore", "/nowhere/a.backup")
    assert (missing.returncode, missing.stderr) == (1, b"cryptoticker: /nowhere/a.backup: No such file or directory\n")
    away = command("mongodb://127.0.0.1:9/?serverSelectionTimeoutMS=100", database.name, "save", "-")
    assert away.returncode == 1
    assert away.stderr.startswith(b"cryptoticker: MongoDB ended this (ServerSelectionTimeoutError")
    assert away.stderr.count(b"\n") == 1


def test_an_embedded_database_that_is_not_there_is_not_saved(tmp_path: Path) -> None:
    """Else a MONGO_URL that was lost on the way would make a backup of nothing, and nobody would know."""
    settings = make_settings(data_dir=tmp_path)
    with pytest.raises(BackupError, match="MONGO_URL is not set"), backup.reach_database(settings, may_be_running=True):
        pass
    assert list(tmp_path.iterdir()) == []


def test_the_command_takes_its_settings_from_another_file(mongo_url: str, database: SyncDB, tmp_path: Path) -> None:
    settings = tmp_path / "service.env"
    settings.write_text(f"JWT_SECRET={'x' * 32}\nMONGO_URL='{mongo_url}&appName=a'\nMONGO_DB={database.name}\n")
    fill(database)
    program = [sys.executable, "-m", "app.backup", "save", "--env", str(settings), str(tmp_path / "a.backup")]
    environment = {"PATH": os.environ["PATH"]}
    saved = subprocess.run(program, cwd=ROOT, env=environment, capture_output=True, timeout=60)
    assert (saved.returncode, saved.stderr) == (0, b"Saved 7 documents.\n")
