"""The embedded MongoDB, with the real mongod."""

import os
import select
import socket
import subprocess
import sys
from pathlib import Path

import pytest
from pymongo import MongoClient

from app.database.embedded import EmbeddedMongo, EmbeddedMongoError, mongod_binary

PATIENCE_SECONDS = 60  # the end of a wait for something that should happen, never what is measured

ROOT = Path(__file__).parent.parent

START_AND_WAIT = """
import sys
from pathlib import Path
from pymongo import MongoClient
from app.database.embedded import EmbeddedMongo

with EmbeddedMongo(Path(sys.argv[1])) as mongo, MongoClient(mongo.url) as client:
    client["test"]["names"].insert_one({"_id": "before the kill"})
    print(mongo.pid, flush=True)
    sys.stdin.read()
"""


def insert(mongo: EmbeddedMongo, name: str) -> None:
    with MongoClient[dict[str, str]](mongo.url) as client:
        client["test"]["names"].insert_one({"_id": name})


def stored(mongo: EmbeddedMongo) -> list[str]:
    with MongoClient[dict[str, str]](mongo.url) as client:
        return [document["_id"] for document in client["test"]["names"].find().sort("_id")]


def ended(process_fd: int) -> bool:
    """Whether the process ends, waiting for it."""
    return bool(select.select([process_fd], [], [], PATIENCE_SECONDS)[0])


def fake_mongod(folder: Path, script: str) -> Path:
    folder.mkdir()
    program = folder / "mongod"
    program.write_text(f"#!/bin/sh\n{script}\n")
    program.chmod(0o755)
    return program


def fake_mongod_in_wheel(site_packages: Path) -> Path:
    binary = site_packages / "fiftyone" / "db" / "bin" / "mongod"
    binary.parent.mkdir(parents=True)
    binary.touch(mode=0o644)
    return binary


def one_line(error: pytest.ExceptionInfo[EmbeddedMongoError]) -> str:
    text = str(error.value)
    assert "\n" not in text
    return text


def test_started_it_is_the_primary_of_a_replica_set_with_transactions(tmp_path: Path) -> None:
    with EmbeddedMongo(tmp_path) as mongo, MongoClient[dict[str, str]](mongo.url) as client:
        hello = client.admin.command("hello")
        assert (hello["setName"], hello["isWritablePrimary"]) == ("rs0", True)
        with client.start_session() as session, session.start_transaction():
            client["test"]["names"].insert_one({"_id": "in a transaction"}, session=session)
        assert stored(mongo) == ["in a transaction"]


def test_later_starts_keep_the_data_on_the_same_port_and_on_another(tmp_path: Path) -> None:
    with EmbeddedMongo(tmp_path) as mongo:
        insert(mongo, "first")
    with EmbeddedMongo(tmp_path, port=mongo.port) as again:
        insert(again, "second")
        with EmbeddedMongo(tmp_path / "other") as other:
            pass
    assert again.port == mongo.port != other.port
    with EmbeddedMongo(tmp_path, port=other.port) as elsewhere:
        assert elsewhere.url == f"mongodb://127.0.0.1:{other.port}/?replicaSet=rs0"
        insert(elsewhere, "third")
        assert stored(elsewhere) == ["first", "second", "third"]


def test_stop_leaves_no_process_and_may_be_repeated(tmp_path: Path) -> None:
    mongo = EmbeddedMongo(tmp_path)
    mongo.start()
    pid = mongo.pid
    assert pid is not None
    mongo.stop()
    mongo.stop()
    assert mongo.pid is None
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux can end a process with its parent")
def test_a_killed_parent_takes_mongod_down_and_the_data_is_kept(tmp_path: Path) -> None:
    with subprocess.Popen(
        [sys.executable, "-c", START_AND_WAIT, str(tmp_path)], cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as parent:
        assert parent.stdout is not None
        mongod = os.pidfd_open(int(parent.stdout.readline()))
        parent.kill()
    try:
        assert ended(mongod)
    finally:
        os.close(mongod)
    with EmbeddedMongo(tmp_path) as mongo:
        assert stored(mongo) == ["before the kill"]


def test_a_dying_mongod_that_still_holds_the_data_is_waited_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The stand-in says once what mongod says when another one holds the data, and is mongod from then on."""
    said = tmp_path / "said"
    script = f'[ -e {said} ] && exec {mongod_binary()} "$@"; touch {said}; echo DBPathInUse; exit 100'
    monkeypatch.setenv("MONGOD_BIN", str(fake_mongod(tmp_path / "bin", script)))
    with EmbeddedMongo(tmp_path / "data", busy_seconds=PATIENCE_SECONDS) as mongo:
        assert said.exists()
        assert stored(mongo) == []


def test_ctrl_c_does_not_reach_mongod_before_the_service(tmp_path: Path) -> None:
    with EmbeddedMongo(tmp_path) as mongo:
        assert mongo.pid is not None
        assert os.getsid(mongo.pid) == mongo.pid != os.getsid(0)


def test_a_data_directory_in_use_is_refused(tmp_path: Path) -> None:
    with EmbeddedMongo(tmp_path), pytest.raises(EmbeddedMongoError) as error:
        EmbeddedMongo(tmp_path, busy_seconds=0).start()
    assert one_line(error) == f"another mongod uses {tmp_path}: stop it (is the service running already?)"


def test_a_taken_port_is_named(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        mongo = EmbeddedMongo(tmp_path, port=port, busy_seconds=0)
        with pytest.raises(EmbeddedMongoError) as error:
            mongo.start()
    assert one_line(error).startswith(f"port {port} is taken: ")
    assert mongo.pid is None


def test_a_missing_binary_names_the_three_ways_to_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MONGOD_BIN", raising=False)
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr("sys.path", [str(tmp_path)])
    with pytest.raises(EmbeddedMongoError) as error:
        mongod_binary()
    for way in ("MONGOD_BIN", "PATH", "requirements-local.txt"):
        assert way in one_line(error)


def test_mongod_bin_goes_before_path_and_path_before_the_wheel(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    on_path = fake_mongod(tmp_path / "path", "true")
    named = fake_mongod(tmp_path / "named", "true")
    monkeypatch.setenv("PATH", str(on_path.parent))
    monkeypatch.delenv("MONGOD_BIN", raising=False)
    assert mongod_binary() == on_path
    monkeypatch.setenv("MONGOD_BIN", str(named))
    assert mongod_binary() == named
    monkeypatch.setenv("MONGOD_BIN", str(tmp_path / "nowhere"))
    with pytest.raises(EmbeddedMongoError, match=r"MONGOD_BIN=.*nowhere"):
        mongod_binary()


def test_the_wheel_s_binary_gets_its_run_bit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    binary = fake_mongod_in_wheel(tmp_path)
    monkeypatch.delenv("MONGOD_BIN", raising=False)
    monkeypatch.setenv("PATH", "")
    monkeypatch.setattr("sys.path", [str(tmp_path)])
    assert mongod_binary() == binary
    assert os.access(binary, os.X_OK)


def test_a_data_directory_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(EmbeddedMongoError) as error:
        EmbeddedMongo(tmp_path / "file" / "data").start()
    assert one_line(error) == (
        f"cannot write to {tmp_path / 'file' / 'data'}: Not a directory; make it writable for this user"
    )


@pytest.mark.parametrize(
    ("script", "message"),
    [
        (
            "echo 'mongod: error while loading shared libraries: libcurl.so.4: cannot open shared object file' >&2",
            "mongod needs the system library libcurl.so.4: `apt-get install libcurl4`",
        ),
        (
            """echo '{"s":"I","msg":"oh"}'; echo '{"s":"E","msg":"oh","attr":{"error":"No space left on device"}}'""",
            "mongod did not start: No space left on device; see ",
        ),
        ("exit 1", "mongod did not start: it gave no reason; see "),
    ],
)
def test_what_mongod_says_before_it_gives_up_becomes_the_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, script: str, message: str
) -> None:
    monkeypatch.setenv("MONGOD_BIN", str(fake_mongod(tmp_path / "bin", script)))
    with pytest.raises(EmbeddedMongoError) as error:
        EmbeddedMongo(tmp_path / "data").start()
    assert one_line(error).startswith(message)


def test_a_binary_for_another_machine_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    program = fake_mongod(tmp_path / "bin", "")
    program.write_bytes(b"\x7fELF is not enough")
    monkeypatch.setenv("MONGOD_BIN", str(program))
    with pytest.raises(EmbeddedMongoError, match=f"cannot run {program}: Exec format error"):
        EmbeddedMongo(tmp_path / "data").start()
