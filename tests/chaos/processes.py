"""Real processes to kill: copies of the service, and a replica set of three."""

import os
import signal
import socket
import subprocess
import sys
import time
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, Self

import requests
from pymongo import MongoClient
from pymongo.errors import PyMongoError

from app.database.embedded import mongod_binary
from sandbox.demo import ROOT, environment
from sandbox.exchange import Exchange
from sandbox.mailbox import Mailbox
from tests.support import wait_until

START_SECONDS = 60.0
ELECTION_MS = 2_000


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port: int = probe.getsockname()[1]
        return port


class Copy:
    """One process of the service."""

    def __init__(self, settings: dict[str, str], log: Path) -> None:
        self.url = f"http://127.0.0.1:{settings['PORT']}"
        self._log = log
        with log.open("ab") as out:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "app"], cwd=ROOT, env=settings, stdout=out, stderr=out
            )

    def wait_until_up(self) -> None:
        wait_until(self._is_up, START_SECONDS)

    def kill(self) -> None:
        """Like a power cut."""
        self._process.kill()
        self._process.wait()

    def freeze(self) -> None:
        """Stop it in its tracks; it does not know."""
        self._process.send_signal(signal.SIGSTOP)

    def thaw(self) -> None:
        self._process.send_signal(signal.SIGCONT)

    def terminate(self) -> int:
        """Ask it to end, as an administrator does; returns its exit status."""
        self._process.terminate()
        return self._process.wait(START_SECONDS)

    def log(self) -> str:
        return self._log.read_text("utf-8", "replace")

    def _is_up(self) -> bool:
        assert self._process.poll() is None, f"the service ended:\n{self.log()[-3000:]}"
        try:
            return requests.get(f"{self.url}/health", timeout=5).status_code == 200
        except requests.ConnectionError:
            return False


class Copies(AbstractContextManager["Copies"]):
    """Makes copies of the service that share an exchange and a mailbox."""

    def __init__(self, exchange: Exchange, mailbox: Mailbox, folder: Path) -> None:
        self._exchange = exchange
        self._mailbox = mailbox
        self._folder = folder
        self._made: list[Copy] = []

    def start(self, mongo_url: str, database: str, **settings: str) -> Copy:
        """Start one more; it is up a while later."""
        own = {"MONGO_DB": database, "PORT": str(free_port()), "POLL_SECONDS": "0.2", **settings}
        log = self._folder / f"copy-{len(self._made)}.log"
        self._made.append(Copy(environment(mongo_url, self._exchange, self._mailbox) | own, log))
        return self._made[-1]

    def __exit__(self, *_: object) -> None:
        for copy in self._made:
            copy.kill()


class ReplicaSet(AbstractContextManager["ReplicaSet"]):
    """Three nodes; any of them can be killed and started again."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._ports = [free_port() for _ in range(3)]
        self._nodes: dict[int, subprocess.Popen[bytes]] = {}

    @property
    def url(self) -> str:
        hosts = ",".join(f"127.0.0.1:{port}" for port in self._ports)
        return f"mongodb://{hosts}/?replicaSet=chaos"

    def __enter__(self) -> Self:
        for port in self._ports:
            self.start(port)
        members = [{"_id": number, "host": f"127.0.0.1:{port}"} for number, port in enumerate(self._ports)]
        config = {"_id": "chaos", "members": members, "settings": {"electionTimeoutMillis": ELECTION_MS}}
        with self._client(self._ports[0]) as client:
            wait_until(lambda: self._answers(client), START_SECONDS)
            client.admin.command("replSetInitiate", config)
        wait_until(self.primary, START_SECONDS)
        return self

    def __exit__(self, *_: object) -> None:
        for port in list(self._nodes):
            self.kill(port)

    def start(self, port: int) -> None:
        """Start a node over its own data."""
        data = self._folder / str(port)
        data.mkdir(exist_ok=True)
        command = [str(mongod_binary()), "--dbpath", str(data), "--port", str(port), "--replSet", "chaos"]
        command += ["--bind_ip", "127.0.0.1", "--nounixsocket", "--oplogSize", "128", "--wiredTigerCacheSizeGB", "0.25"]
        command += ["--setParameter", "diagnosticDataCollectionEnabled=false", "--logpath", str(data / "log")]
        self._nodes[port] = subprocess.Popen(command, stdout=subprocess.DEVNULL, stdin=subprocess.DEVNULL)

    def kill(self, port: int) -> None:
        """Like a power cut."""
        node = self._nodes.pop(port)
        os.kill(node.pid, signal.SIGKILL)
        node.wait()

    def primary(self) -> int | None:
        """The port of the node that takes writes right now, None while there is none."""
        for port in self._nodes:
            with self._client(port) as client:
                try:
                    if client.admin.command("hello")["isWritablePrimary"]:
                        return port
                except PyMongoError:
                    continue
        return None

    def kill_primary(self) -> int:
        """Kill it at once, and return its port."""
        port = self.primary()
        assert port is not None
        self.kill(port)
        return port

    def _client(self, port: int) -> MongoClient[dict[str, Any]]:
        return MongoClient("127.0.0.1", port, directConnection=True, serverSelectionTimeoutMS=500)

    @staticmethod
    def _answers(client: MongoClient[dict[str, Any]]) -> bool:
        try:
            return bool(client.admin.command("ping")["ok"])
        except PyMongoError:
            return False


def pause(seconds: float) -> None:
    """Let real time pass: the only way to hit a process at a random instant."""
    time.sleep(seconds)
