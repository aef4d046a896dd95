"""What the benchmarks run on: a mongod, the service, baseline servers, a mail server. All end with the run."""

import os
import re
import secrets
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path

from app.auth.auth_handler import CurrentUser, signJWT
from app.database.client import SyncDB, connect
from app.database.embedded import EmbeddedMongo
from bench.seed import COINS, EMAIL, connect_patiently, price_of, seed, symbol_of, user_id
from sandbox.coins import Market
from sandbox.exchange import Exchange

ROOT = Path(__file__).resolve().parent.parent
START_SECONDS = 60.0
KEY = "a-market-key-of-benchmarks"
SECRET = secrets.token_urlsafe(48)


@dataclass
class Stage:
    """One mongod and the databases in it; `quick` asks for small sizes."""

    quick: bool
    folder: Path
    mongo: EmbeddedMongo
    stack: ExitStack
    _seeded: dict[int, SyncDB] = field(default_factory=dict)

    def size(self, full: int, quick: int) -> int:
        """How many, in this form of the run."""
        return quick if self.quick else full

    @property
    def million(self) -> int:
        """How many armed alerts the large database holds."""
        return self.size(1_000_000, 50_000)

    def armed(self, count: int) -> SyncDB:
        """The database with that many armed alerts, shared by the rows; through the service's own client."""
        if count not in self._seeded:
            started = time.perf_counter()
            name = f"armed_{count}"
            with connect_patiently(self.mongo.url) as client:
                seed(client[name], count)
            self._seeded[count] = self.database(name)
            print(f"  {count:,} armed alerts made in {time.perf_counter() - started:.0f} s", flush=True)
        return self._seeded[count]

    def database(self, name: str) -> SyncDB:
        """A database through a client as the service's threads have it."""
        return self.stack.enter_context(connect(self.mongo.url))[name]


@contextmanager
def open_stage(folder: Path, *, quick: bool) -> Iterator[Stage]:
    """Start a mongod over `folder`."""
    with EmbeddedMongo(folder / "mongo", cache_gb=1.5) as mongo, ExitStack() as stack:
        yield Stage(quick, folder, mongo, stack)


def make_market() -> Market:
    """The coins of `seed`, each with a Bybit pair."""
    market = Market()
    for coin_id in range(1, COINS + 1):
        symbol = symbol_of(coin_id)
        name = f"Coin {coin_id}"
        market.add_coin(coin_id, symbol, name, rank=coin_id, price=price_of(coin_id), pair=f"{symbol}USDT")
    return market


def free_port() -> int:
    """One that nobody listens on now."""
    with socket.create_server(("127.0.0.1", 0)) as probe:
        return int(probe.getsockname()[1])


@dataclass(frozen=True)
class Running:
    """A server in a process of its own."""

    url: str
    pid: int


@contextmanager
def service(stage: Stage, database: str, exchange: Exchange, **settings: str) -> Iterator[Running]:
    """`python -m app` on that database; every setting stands in its environment, so that no .env is heard."""
    names = re.findall(r"^(?:# )?([A-Z_]+)=", (ROOT / ".env.example").read_text(), flags=re.MULTILINE)
    port = free_port()
    given = {
        "JWT_SECRET": SECRET,
        "JWT_TTL_SECONDS": "86400",
        "CRYPTO_API_KEY": KEY,
        "MONGO_URL": stage.mongo.url,
        "MONGO_DB": database,
        "POLL_SECONDS": "120",
        "COINMARKETCAP_URL": exchange.url,
        "BYBIT_URL": exchange.url,
        "SMTP_SECURITY": "none",
        "SMTP_HOST": "127.0.0.1",
        "SMTP_PORT": "9",
        "MAIL_FROM": "alerts@cryptoticker.example.com",
        "HOST": "127.0.0.1",
        "PORT": str(port),
    }
    environment = {**os.environ, **dict.fromkeys(names, ""), **given, **settings}
    stage.database(database).leases.delete_many({})  # of a copy that was killed: this one would wait for its end
    with process([sys.executable, "-m", "app"], port, environment, stage.folder / "service.log", "/health") as running:
        yield running


@contextmanager
def baseline(stage: Stage, name: str, **environment: str) -> Iterator[Running]:
    """An application of bench/baselines.py in a process of its own."""
    port = free_port()
    command = [sys.executable, "-m", "bench.baselines", name, str(port)]
    given = {**os.environ, "MONGO_URL": stage.mongo.url, **environment}
    with process(command, port, given, stage.folder / "baseline.log", "/up") as running:
        yield running


@contextmanager
def process(command: list[str], port: int, environment: Mapping[str, str], log: Path, ready: str) -> Iterator[Running]:
    """Run until the end of the block; `ready` is a path that answers once it is up."""
    url = f"http://127.0.0.1:{port}"
    with log.open("wb") as out, subprocess.Popen(command, cwd=ROOT, env=environment, stdout=out, stderr=out) as child:
        try:
            wait_for_answer(child, url + ready, log)
            yield Running(url, child.pid)
        finally:
            end(child)


def wait_for_answer(child: subprocess.Popen[bytes], url: str, log: Path) -> None:
    """Return at the first answer that is no error of the server. Raises RuntimeError with the log's end otherwise."""
    deadline = time.monotonic() + START_SECONDS
    while time.monotonic() < deadline and child.poll() is None:
        try:
            with urllib.request.urlopen(url, timeout=5):
                return
        except urllib.error.HTTPError as error:
            if error.code < 500:
                return
        except OSError:
            pass
        time.sleep(0.01)
    raise RuntimeError(f"{url} does not answer: {log.read_text()[-2000:]}")


def end(child: subprocess.Popen[bytes]) -> None:
    """Ask it to end, wait, and then make it."""
    child.terminate()
    try:
        child.wait(20)
    except subprocess.TimeoutExpired:
        child.kill()
        child.wait()


def bearer(number: int = 0) -> dict[str, str]:
    """The header of the user with this number."""
    token = signJWT(CurrentUser(user_id(number), EMAIL), secret=SECRET, now=datetime.now(UTC), ttl_seconds=86_400)
    return {"Authorization": f"Bearer {token}"}
