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
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import requests

from app.alerting.message import format_price
from app.database.embedded import EmbeddedMongo, EmbeddedMongoError
from sandbox.exchange import Exchange
from sandbox.mailbox import Mail, Mailbox, MailboxTimeoutError

ROOT = Path(__file__).resolve().parent.parent
EMAIL = "alice@example.com"
PATIENCE_SECONDS = 20.0
BTC, PEPE = 1, 24478
QUOTES = "/quotes/latest"

ALERTS = [("BTC", 105_000), ("BTC", 95_000), ("PEPE", 0.000008), ("PEPE", 0.000005), ("BTC", 150_000), ("BTC", 102_000)]
# Each price that the exchange shows next, and the one mail that must follow: its subject, and the price in its words.
MOVES = [
    (BTC, 106_500.25, "BTC rose above 105,000 USD", "106,500.25"),
    (PEPE, 0.00000831, "PEPE rose above 0.000008 USD", "0.00000831"),
    (BTC, 94_321.5, "BTC fell below 95,000 USD", "94,321.5"),
    (PEPE, 0.000004987, "PEPE fell below 0.000005 USD", "0.000004987"),
]


class DemoError(Exception):
    """Why the story can't go on."""


class Client:
    """Talks to the service over HTTP."""

    def __init__(self, url: str) -> None:
        self.url = url
        self.session = requests.Session()

    def call(self, method: str, path: str, body: Any = None) -> Any:
        """Return the answer's JSON. Raises DemoError for any status but a good one, and where nothing answers."""
        try:
            answer = self.session.request(method, self.url + path, json=body, timeout=30)
        except requests.RequestException as error:
            raise DemoError(f"{method} {path}: the service does not answer ({type(error).__name__})") from error
        if not answer.ok:
            raise DemoError(f"{method} {path} answered {answer.status_code}: {answer.text}")
        return answer.json()


def main() -> None:
    """Tell the story; on Ctrl-C or SIGTERM clean up as well."""
    os.environ |= {"NO_PROXY": "*", "no_proxy": "*"}  # a proxy is for the world, not for this machine's own addresses
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        with TemporaryDirectory(prefix="cryptoticker-demo-") as folder:
            wrong = run(Path(folder))
    except EmbeddedMongoError as error:
        wrong = [str(error)]
    except KeyboardInterrupt:
        sys.exit(130)
    if wrong:
        sys.exit("\n - ".join(["\nThe demo failed:", *wrong]))
    print(f"\nAll {len(MOVES)} mails arrived exactly once, each with the price that was seen, and no other came.")


def run(folder: Path) -> list[str]:
    """Start everything, tell the story and return what was wrong with it."""
    log, wrong = folder / "service.log", []
    with EmbeddedMongo(folder / "mongo") as mongo, Exchange() as exchange, Mailbox() as mailbox:
        try:
            with service(environment(mongo.url, exchange, mailbox), log) as client:
                tell(client, exchange, mailbox)
        except (DemoError, MailboxTimeoutError) as error:
            wrong.append(str(error))
        wrong += complaints(mailbox.mails)
    if wrong:
        print("\nThe service's log:", *log.read_text("utf-8", "replace").splitlines()[-15:], sep="\n   ", flush=True)
    return wrong


def environment(mongo_url: str, exchange: Exchange, mailbox: Mailbox) -> dict[str, str]:
    """The service's environment: every setting stands in it, empty (its default) or given, so that no .env is heard."""
    names = re.findall(r"^(?:# )?([A-Z_]+)=", (ROOT / ".env.example").read_text(), flags=re.MULTILINE)
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
    given = {
        "JWT_SECRET": secrets.token_urlsafe(48),
        "BCRYPT_ROUNDS": "10",
        "POLL_SECONDS": "0.5",
        "MONGO_URL": mongo_url,
        "COINMARKETCAP_URL": exchange.url,
        "BYBIT_URL": exchange.url,
        "SMTP_HOST": mailbox.host,
        "SMTP_PORT": str(mailbox.port),
        "SMTP_SECURITY": "none",
        "MAIL_FROM": "CryptoTicker <alerts@cryptoticker.example.com>",
        "HOST": "127.0.0.1",
        "PORT": str(port),
    }
    return {**os.environ, **dict.fromkeys(names, ""), **given}


@contextmanager
def service(settings: Mapping[str, str], log: Path) -> Iterator[Client]:
    """The service as a process of its own, writing to `log`; ends it whatever happens. Raises DemoError."""
    client = Client(f"http://{settings['HOST']}:{settings['PORT']}")
    command = [sys.executable, "-m", "app"]
    with log.open("wb") as out, subprocess.Popen(command, cwd=ROOT, env=settings, stdout=out, stderr=out) as process:
        try:
            wait_until(lambda: process.poll() is not None or client.call("GET", "/health"), "the service hangs")
            yield client
        finally:
            process.terminate()
            with suppress(subprocess.TimeoutExpired):
                process.wait(PATIENCE_SECONDS)
            process.kill()


def tell(client: Client, exchange: Exchange, mailbox: Mailbox) -> None:
    """The story. Raises DemoError or MailboxTimeoutError where it can't go on."""
    account = {"username": "alice", "email": EMAIL, "password": secrets.token_urlsafe(16)}
    client.session.headers["Authorization"] = f"Bearer {client.call('POST', '/user/signup/', account)['access_token']}"
    print(f"The service runs at {client.url}. {EMAIL} has signed up and sets alerts:")
    for symbol, target in ALERTS:
        alert = client.call("POST", "/alerts/create/", {"symbol": symbol, "targetPrice": target})
        print(f"   {described(alert)}; it is at {format_price(alert['currentPrice'])} USD")
    client.call("POST", "/alerts/delete/", {"alert_id": alert["alert_id"]})
    print("   ... and deletes the last one again.")
    for count, (coin_id, price, subject, written) in enumerate(MOVES, start=1):
        print(f"\nThe exchange shows {subject.split()[0]} at {written} USD. The mail:", flush=True)
        exchange.market.set_price(coin_id, price)
        show(mailbox.wait_for(count, PATIENCE_SECONDS)[count - 1])
    polls = len(exchange.asked(QUOTES))  # two more are evaluated for certain once a third is asked for
    wait_until(lambda: len(exchange.asked(QUOTES)) >= polls + 3, "the service stopped polling")
    print("\nTwo polls later, the alerts are:")
    for alert in reversed(client.call("GET", "/alerts/fetch/")):
        mail = f", mail {alert['notification']['state']}" if alert["notification"] else ""
        print(f"   {described(alert)}: {alert['status']}{mail}")


def described(alert: Mapping[str, Any]) -> str:
    """An alert in a few words."""
    return f"{alert['symbol']} {alert['direction']} {format_price(alert['targetPrice'])} USD"


def show(mail: Mail) -> None:
    """Print a mail: every header and the text; the HTML beside it says the same."""
    lines = [*(f"{name}: {value}" for name, value in mail.message.items()), "", *plain_text(mail).splitlines()]
    print(*(f"   | {line}".rstrip() for line in lines), sep="\n")


def plain_text(mail: Mail) -> str:
    """The plain-text part of a mail."""
    part = mail.message.get_body(("plain",))
    return str(part.get_content()).replace("\r\n", "\n") if part else ""


def complaints(mails: Sequence[Mail]) -> list[str]:
    """What is wrong with the mails that arrived."""
    expected = {(EMAIL, subject): written for _, _, subject, written in MOVES}
    arrived = [((mail.recipient, mail.message["Subject"]), plain_text(mail)) for mail in mails]
    wrong = [f"nobody asked for the mail {key[1]!r} to {key[0]}" for key, _ in arrived if key not in expected]
    for key, written in expected.items():
        texts = [text for arrived_key, text in arrived if arrived_key == key]
        if len(texts) != 1:
            wrong.append(f"the mail {key[1]!r} arrived {len(texts)} times instead of once")
        if not all(f"\nPrice seen:      {written} USD\n" in text for text in texts):
            wrong.append(f"the mail {key[1]!r} does not name the price that was seen, {written} USD")
    return wrong


def wait_until(condition: Callable[[], Any], otherwise: str) -> None:
    """Return once the condition holds; one that raises DemoError does not. Raises DemoError after PATIENCE_SECONDS."""
    deadline = time.monotonic() + PATIENCE_SECONDS
    while time.monotonic() < deadline:
        with suppress(DemoError):
            if condition():
                return
        time.sleep(0.05)
    raise DemoError(otherwise)


if __name__ == "__main__":
    main()
