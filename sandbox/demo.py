"""`python -m sandbox.demo`: the real service, from sign-up to the mails, without network, keys or Docker.

The exit status is 0 only if every expected mail arrived exactly once, with the price that was seen, and no other came.
"""

import os
import re
import secrets
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import requests

from app.database.embedded import EmbeddedMongo, EmbeddedMongoError
from sandbox.exchange import Exchange
from sandbox.mailbox import Mail, Mailbox, MailboxTimeoutError

ROOT = Path(__file__).resolve().parent.parent
EMAIL = "alice@example.com"
BTC, PEPE = 1, 24478
POLL_SECONDS = 0.5
PATIENCE_SECONDS = 20.0
LOG_LINES = 15


class DemoError(Exception):
    """Why the story can't go on."""


@dataclass(frozen=True)
class Move:
    """A price that the exchange shows, and the one mail that must follow: its subject, and the price as it writes it."""

    coin_id: int
    price: float
    subject: str
    written: str


FIRING = [("BTC", 105_000), ("BTC", 95_000), ("PEPE", 0.000008), ("PEPE", 0.000005)]
SILENT = ("BTC", 150_000)
DELETED = ("BTC", 102_000)
MOVES = [
    Move(BTC, 106_500.25, "BTC rose above 105,000 USD", "106,500.25"),
    Move(PEPE, 0.00000831, "PEPE rose above 0.000008 USD", "0.00000831"),
    Move(BTC, 94_321.5, "BTC fell below 95,000 USD", "94,321.5"),
    Move(PEPE, 0.000004987, "PEPE fell below 0.000005 USD", "0.000004987"),
]


class Client:
    """Talks to the service over HTTP, past any proxy of this machine."""

    def __init__(self, url: str) -> None:
        self.url = url
        self._session = requests.Session()
        self._session.trust_env = False

    def health(self) -> int:
        """The status of /health; 0 while nothing listens."""
        try:
            return self._session.get(f"{self.url}/health", timeout=5).status_code
        except requests.ConnectionError:
            return 0

    def sign_up(self) -> None:
        """Make an account and use its token from now on."""
        account = {"username": "alice", "email": EMAIL, "password": secrets.token_urlsafe(16)}
        token = self.call("POST", "/user/signup/", json=account)["access_token"]
        self._session.headers["Authorization"] = f"Bearer {token}"

    def create(self, symbol: str, target: float) -> str:
        """Set an alert and return its id."""
        alert = self.call("POST", "/alerts/create/", json={"symbol": symbol, "targetPrice": target})
        print(f"   {symbol} {alert['direction']} {target:,.9g} USD, set at {alert['currentPrice']:,.9g} USD")
        return str(alert["alert_id"])

    def call(self, method: str, path: str, **options: Any) -> Any:
        """Return the answer's JSON. Raises DemoError for any status but a good one."""
        answer = self._session.request(method, self.url + path, timeout=30, **options)
        if not answer.ok:
            raise DemoError(f"{method} {path} answered {answer.status_code}: {answer.text}")
        return answer.json()


def main() -> None:
    """Tell the story; on Ctrl-C or SIGTERM clean up as well."""
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        with TemporaryDirectory(prefix="cryptoticker-demo-") as folder:
            missing = run(Path(folder))
    except EmbeddedMongoError as error:
        missing = [str(error)]
    except KeyboardInterrupt:
        sys.exit(130)
    if missing:
        sys.exit("\nThe demo failed:\n" + "\n".join(f" - {line}" for line in missing))
    print(f"\nAll {len(MOVES)} mails arrived exactly once, each with the price that was seen, and no other came.")


def run(folder: Path) -> list[str]:
    """Start everything, tell the story and return what was wrong with it."""
    log = folder / "service.log"
    with EmbeddedMongo(folder / "mongo") as mongo, Exchange() as exchange, Mailbox() as mailbox:
        with service(environment(mongo, exchange, mailbox), log) as client:
            stopped = ""
            try:
                tell(client, exchange, mailbox)
            except (DemoError, MailboxTimeoutError, requests.RequestException) as error:
                stopped = str(error)
        missing = [stopped] * bool(stopped) + complaints(mailbox.mails)
    if missing:
        last_lines = log.read_text(errors="replace").splitlines()[-LOG_LINES:]
        print("\nThe service's last words:", *last_lines, sep="\n   ")
    return missing


def environment(mongo: EmbeddedMongo, exchange: Exchange, mailbox: Mailbox) -> dict[str, str]:
    """The service's environment: every setting stands in it, empty (its default) or given, so that no .env is heard."""
    names = re.findall(r"^(?:# )?([A-Z_]+)=", (ROOT / ".env.example").read_text(), flags=re.MULTILINE)
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
    given = {
        "JWT_SECRET": secrets.token_urlsafe(48),
        "BCRYPT_ROUNDS": "10",
        "POLL_SECONDS": str(POLL_SECONDS),
        "MONGO_URL": mongo.url,
        "COINMARKETCAP_URL": exchange.url,
        "BYBIT_URL": exchange.url,
        "SMTP_HOST": mailbox.host,
        "SMTP_PORT": str(mailbox.port),
        "SMTP_SECURITY": "none",
        "MAIL_FROM": "CryptoTicker <alerts@cryptoticker.example.com>",
        "HOST": "127.0.0.1",
        "PORT": str(port),
    }
    no_proxy = {"NO_PROXY": "*", "no_proxy": "*"}
    return {**os.environ, **dict.fromkeys(names, ""), **given, **no_proxy}


@contextmanager
def service(settings: Mapping[str, str], log: Path) -> Iterator[Client]:
    """The service as a process of its own, writing to `log`; yields a client, and ends it whatever happens."""
    with log.open("wb") as output:
        process = subprocess.Popen([sys.executable, "-m", "app"], cwd=ROOT, env=settings, stdout=output, stderr=output)
    try:
        client = Client(f"http://127.0.0.1:{settings['PORT']}")
        with suppress(DemoError):  # a service that does not come up fails the story's first call, which says so
            wait_until(lambda: client.health() == requests.codes.ok or process.poll() is not None, "no answer")
        yield client
    finally:
        process.terminate()
        try:
            process.wait(PATIENCE_SECONDS)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def tell(client: Client, exchange: Exchange, mailbox: Mailbox) -> None:
    """The story. Raises DemoError or MailboxTimeoutError where it can't go on."""
    print(f"The service answers at {client.url}. Its exchange and its mail server are sandboxes of this demo.")
    client.sign_up()
    print(f"\n{EMAIL} signs up and sets alerts:")
    for symbol, target in [*FIRING, SILENT]:
        client.create(symbol, target)
    deleted = client.create(*DELETED)
    client.call("POST", "/alerts/delete/", json={"alert_id": deleted})
    print("   ... and deletes the last one again.")
    for count, move in enumerate(MOVES, start=1):
        print(f"\nThe exchange shows {exchange.market.coins[move.coin_id].symbol} at {move.written} USD. A mail arrives:")
        exchange.market.set_price(move.coin_id, move.price)
        show(mailbox.wait_for(count, PATIENCE_SECONDS)[count - 1])
    await_polls(exchange, 2)
    print("\nTwo polls later nothing else has arrived. The alerts now:")
    for alert in reversed(client.call("GET", "/alerts/fetch/")):
        mail = f", mail {alert['notification']['state']}" if alert["notification"] else ""
        print(f"   {alert['symbol']} {alert['direction']} {alert['targetPrice']:,.9g} USD: {alert['status']}{mail}")


def show(mail: Mail) -> None:
    """Print a mail: every header and the text; the HTML beside it says the same."""
    headers = "".join(f"{name}: {value}\n" for name, value in mail.message.items())
    print("\n".join(f"   | {line}".rstrip() for line in f"{headers}\n{plain_text(mail)}".splitlines()))


def plain_text(mail: Mail) -> str:
    """The plain-text part of a mail."""
    part = mail.message.get_body(("plain",))
    return str(part.get_content()) if part else ""


def complaints(mails: Sequence[Mail]) -> list[str]:
    """What is wrong with the mails that arrived."""
    found = []
    for move in MOVES:
        texts = [plain_text(mail) for mail in mails if (mail.recipient, mail.message["Subject"]) == (EMAIL, move.subject)]
        if len(texts) != 1:
            found.append(f"the mail {move.subject!r} arrived {len(texts)} times instead of once")
        found += [
            f"the mail {move.subject!r} does not name the price that was seen, {move.written} USD"
            for text in texts
            if not re.search(rf"^Price seen: +{re.escape(move.written)} USD$", text, flags=re.MULTILINE)
        ]
    expected = {(EMAIL, move.subject) for move in MOVES}
    strays = [mail for mail in mails if (mail.recipient, mail.message["Subject"]) not in expected]
    return found + [f"nobody asked for the mail {mail.message['Subject']!r} to {mail.recipient}" for mail in strays]


def await_polls(exchange: Exchange, count: int) -> None:
    """Return once `count` more polls were asked for and evaluated: the next one has been asked for then, too."""
    before = len(exchange.asked("/quotes/latest"))
    wait_until(lambda: len(exchange.asked("/quotes/latest")) > before + count, "the service stopped polling")


def wait_until(condition: Callable[[], bool], otherwise: str) -> None:
    """Return once the condition holds. Raises DemoError(otherwise) if that takes too long."""
    deadline = time.monotonic() + PATIENCE_SECONDS
    while not condition():
        if time.monotonic() > deadline:
            raise DemoError(otherwise)
        time.sleep(0.05)


if __name__ == "__main__":
    main()
