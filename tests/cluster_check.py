"""Kills parts of the running Docker stack `cluster` while alerts fire, and looks whether each mail comes once.

Not part of the test run, since it needs a Docker engine. In a copy of the project, with the stack down:

    ./run env && python -m tests.cluster_check --prepare
    COMPOSE_PROFILES=cluster ./run && COMPOSE_PROFILES=cluster python -m tests.cluster_check

`--prepare` points .env at a sandbox exchange and mailbox on the address by which containers reach this machine.
COMPOSE_CMD is the command to use instead of `docker compose`.
"""

import argparse
import os
import shlex
import subprocess
import sys
import time
import uuid
from collections import Counter
from collections.abc import Callable
from contextlib import closing
from functools import partial
from pathlib import Path
from typing import Any

import requests

from sandbox.exchange import Exchange
from sandbox.mailbox import Mailbox
from tests.support import Caller, wait_until

BRIDGE = "172.17.0.1"
"""Docker's own address of this machine."""
EXCHANGE_PORT, MAIL_PORT = 9100, 2525
COMPOSE = shlex.split(os.environ.get("COMPOSE_CMD", "docker compose"))
ALERTS = 60
BITCOIN = 1
VICTIMS = ("web1", "the primary", "web2")
START, STEP = 200_000, 1_000
RECOVERY_SECONDS = 180.0


def main() -> None:
    """Exit with 0 if every alert was mailed exactly once."""
    parser = argparse.ArgumentParser(prog="python -m tests.cluster_check", description=__doc__)
    parser.add_argument("--url", default="http://localhost", help="where the stack answers")
    parser.add_argument("--prepare", action="store_true", help="only write .env")
    options = parser.parse_args()
    if options.prepare:
        prepare(Path(".env"))
        return
    with Exchange(EXCHANGE_PORT, host=BRIDGE) as exchange, Mailbox(MAIL_PORT, host=BRIDGE) as mailbox:
        sys.exit(check(options.url, exchange, mailbox))


def prepare(env_file: Path) -> None:
    sandbox = {
        "COINMARKETCAP_URL": f"http://{BRIDGE}:{EXCHANGE_PORT}",
        "BYBIT_URL": f"http://{BRIDGE}:{EXCHANGE_PORT}",
        "SMTP_HOST": BRIDGE,
        "SMTP_PORT": str(MAIL_PORT),
        "SMTP_SECURITY": "none",
        "MAIL_FROM": "alerts@cryptoticker.example.com",
        "POLL_SECONDS": "1",
    }
    kept = [line for line in env_file.read_text().splitlines() if line.partition("=")[0] not in sandbox]
    env_file.write_text("\n".join([*kept, *(f"{name}={value}" for name, value in sandbox.items())]) + "\n")


def check(url: str, exchange: Exchange, mailbox: Mailbox) -> int:
    with closing(Caller(url)) as caller:
        wait_until(lambda: health(caller)["prices"]["last_good_at"], RECOVERY_SECONDS)
        caller.sign_up(f"{uuid.uuid4().hex}@example.com")
        ids = [caller.create(START + number * STEP)["alert_id"] for number in range(ALERTS)]
        print(f"{ALERTS} alerts are set through {url}", flush=True)
        for number, victim in enumerate(VICTIMS):
            disturb(primary() if victim == "the primary" else victim, partial(rise, exchange, number), mailbox, caller)
        wait_until(lambda: states(caller, ids) == {"triggered sent": ALERTS}, RECOVERY_SECONDS)
    mails = Counter(str(mail.message["Subject"]) for mail in mailbox.to(caller.email))
    repeated = {subject: count for subject, count in mails.items() if count > 1}
    print(f"{sum(mails.values())} mails for {ALERTS} alerts; repeated: {repeated or 'none'}")
    return 0 if len(mails) == ALERTS and not repeated else 1


def rise(exchange: Exchange, number: int, share: float) -> None:
    """Let Bitcoin reach a share of the round's targets, a third of all; rounds count from 0."""
    exchange.market.set_price(BITCOIN, START + STEP * (ALERTS // 3) * (number + share))


def disturb(service: str, fire: Callable[[float], None], mailbox: Mailbox, caller: Caller) -> None:
    """Kill one container between two rises of the price; wait for the mails of both, then start it again."""
    before = len(mailbox.mails)
    fire(0.5)
    subprocess.run(["docker", "kill", container(service)], check=True, stdout=subprocess.DEVNULL)
    fire(0.95)
    killed_at = time.monotonic()
    mails = wait_until(lambda: len(mailbox.mails) - before >= ALERTS // 3 and mailbox.mails, RECOVERY_SECONDS)
    late = time.monotonic() - killed_at
    compose("start", service)
    print(
        f"killed {service}: {len(mails) - before} mails arrived all the same, the last after {late:.0f} s", flush=True
    )
    wait_until(lambda: is_healthy(service) and health(caller)["database"] == "ok", RECOVERY_SECONDS)


def primary() -> str:
    script = "print(db.hello().primary)"
    hello = compose("exec", "-T", "mongo", "mongosh", "--quiet", "--eval", script)
    return hello.strip().partition(":")[0]


def health(caller: Caller) -> dict[str, Any]:
    try:
        answer: dict[str, Any] = caller.get("/health").json()
    except (requests.RequestException, ValueError):
        return {"prices": {"last_good_at": None}, "database": "unknown"}
    return answer


def states(caller: Caller, ids: list[str]) -> Counter[str]:
    listed = [alert for alert in caller.alerts(per_page=200) if alert["alert_id"] in ids]
    return Counter(f"{alert['status']} {alert['notification']['state']}" for alert in listed)


def is_healthy(service: str) -> bool:
    inspect = ["docker", "inspect", "--format", "{{.State.Health.Status}}", container(service)]
    return subprocess.run(inspect, check=True, capture_output=True, text=True).stdout.strip() == "healthy"


def container(service: str) -> str:
    return compose("ps", "--all", "-q", service).strip()


def compose(*arguments: str) -> str:
    return subprocess.run([*COMPOSE, *arguments], check=True, capture_output=True, text=True).stdout


if __name__ == "__main__":
    main()
