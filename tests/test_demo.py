"""The demo, as people run it, and what it says when something is wrong."""

import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from email.message import EmailMessage
from pathlib import Path

import pytest

from sandbox.demo import EMAIL, MOVES, complaints
from sandbox.mailbox import Mail
from tests.support import wait_until

ROOT = Path(__file__).parent.parent
DEMO = [sys.executable, "-u", "-m", "sandbox.demo"]
HOSTILE = {
    "POLL_SECONDS": "3600",
    "COINMARKETCAP_API_KEY": "a key that is none",
    "SMTP_USER": "somebody",
    "SMTP_PASSWORD": "s3cret",
    "MAX_ALERTS_PER_USER": "1",
    "HTTP_PROXY": "http://127.0.0.1:9",
    "http_proxy": "http://127.0.0.1:9",
}
"""What a user's own settings and environment may say; each of these would spoil the demo if it was heard."""


@contextmanager
def demo(folder: Path) -> Iterator[subprocess.Popen[str]]:
    """The demo in a session of its own, with its temporary files below `folder`."""
    environment = {**os.environ, **HOSTILE, "TMPDIR": str(folder)}
    with subprocess.Popen(
        DEMO, cwd=ROOT, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        start_new_session=True,
    ) as process:  # fmt: skip
        try:
            yield process
        finally:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)


def is_running(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


def mails_of_a_good_run() -> list[Mail]:
    return [mail(subject, f"...\nPrice seen:      {written} USD\n...\n") for _, _, subject, written in MOVES]


def mail(subject: str, text: str, recipient: str = EMAIL) -> Mail:
    message = EmailMessage()
    message["Subject"] = subject
    message.set_content(text)
    return Mail("alerts@cryptoticker.example.com", recipient, message, datetime(2026, 3, 1, tzinfo=UTC))


def test_the_demo_prints_every_mail_and_leaves_nothing_behind(tmp_path: Path) -> None:
    """Invariants 1 to 3 as a newcomer sees them."""
    with demo(tmp_path) as process:
        story, _ = process.communicate(timeout=60)
    assert process.returncode == 0, story
    for _, _, subject, written in MOVES:
        assert story.count(f"   | Subject: {subject}\n") == 1
        assert story.count(f"   | Price seen:      {written} USD\n") == 1
    assert len(set(re.findall(r"\| Message-ID: (<\S+>)", story))) == len(MOVES)
    assert story.count(": triggered, mail sent\n") == len(MOVES)
    assert "BTC above 150,000 USD: created\n" in story
    assert "BTC above 102,000 USD: deleted\n" in story
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupted_demo_cleans_up(tmp_path: Path, number: signal.Signals) -> None:
    with demo(tmp_path) as process:
        assert process.stdout is not None
        assert "signed up" in process.stdout.readline()
        mongod = int(next(tmp_path.glob("*/mongo/mongod.lock")).read_text())
        assert is_running(mongod)
        process.send_signal(number)
        process.communicate(timeout=60)
    assert process.returncode == 130
    assert list(tmp_path.iterdir()) == []
    wait_until(lambda: not is_running(mongod))
    with pytest.raises(ProcessLookupError):
        os.killpg(process.pid, 0)


def test_what_was_asked_for_is_no_complaint() -> None:
    assert complaints(mails_of_a_good_run()) == []


def test_a_missing_a_repeated_a_wrong_and_a_stray_mail_are_each_named() -> None:
    missing, repeated, wrong, good = mails_of_a_good_run()
    subject = str(wrong.message["Subject"])
    someone_elses = mail(str(good.message["Subject"]), "Price seen:", recipient="bob@example.com")
    arrived = [repeated, repeated, mail(subject, "\nPrice seen:      1 USD\n"), good, someone_elses]

    assert sorted(complaints(arrived)) == sorted(
        [
            f"the mail {missing.message['Subject']!r} arrived 0 times instead of once",
            f"the mail {repeated.message['Subject']!r} arrived 2 times instead of once",
            f"the mail {subject!r} does not name the price that was seen, {MOVES[2][3]} USD",
            f"nobody asked for the mail {good.message['Subject']!r} to bob@example.com",
        ]
    )
