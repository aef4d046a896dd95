"""Rows 3 and 3b: draining the outbox over one connection and over four."""

import smtplib
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from email import message_from_bytes
from email.policy import default

from app.alerting.delivery import Delivery
from app.alerting.mailer import SmtpMailer
from app.alerting.message import compose
from app.alerting.outbox import Outbox
from app.clock import Clock
from app.config import Settings
from app.database.client import Document, SyncDB
from bench import plots
from bench.firing import poll
from bench.report import Row, at_least, median, say
from bench.seed import connect_patiently, seed
from bench.stage import ROOT, SECRET, Stage, end, free_port

MAIL_FROM = "alerts@cryptoticker.example.com"
CONNECTIONS = 4
ANSWERS_AFTER = 0.002
"""Seconds that the mail server of row 3b thinks about a mail: one that answers at once is busy with one connection."""
SLICES = 4
Points = list[tuple[float, int]]


def run(stage: Stage) -> list[Row]:
    """Both rows. The outbox is drained by slices, each followed by the baseline's, so that noise hits both."""
    count = stage.size(20_000, 1_000)
    with mail_server() as port:
        database = _queued(stage, "outbox", count)
        sample = list(database.alerts.find().limit(500))
        ours, theirs, ready = Drain(database, port), BareLoop(sample, port), BytesLoop(sample, port)
        rates: tuple[list[float], list[float], list[float]] = ([], [], [])
        for _ in range(SLICES):
            rates[0].append(ours.send(count // SLICES))
            rates[1].append(theirs.send(count // SLICES))
            rates[2].append(ready.send(count // SLICES))
        for each in (ours, theirs, ready):
            each.close()
        _check_sent(database, count)
        plots.drain(ours.points, theirs.points)
    with mail_server(ANSWERS_AFTER) as port:
        return [_row_3(count, *rates), _row_3b(stage, port)]


class Drain:
    """The service's sender, in this process; `points` tell how far it was after how many seconds of its own."""

    def __init__(self, database: SyncDB, port: int, outbox: Outbox | None = None) -> None:
        settings = Settings(
            jwt_secret=SECRET, smtp_host="127.0.0.1", smtp_port=port, smtp_security="none", mail_from=MAIL_FROM
        )
        self._mailer = SmtpMailer(settings)
        self._outbox = outbox or Outbox(database=database, clock=Clock())
        self._delivery = Delivery(
            database=database, outbox=self._outbox, mailer=self._mailer, mail_from=MAIL_FROM, clock=Clock()
        )
        self.points: Points = [(0.0, 0)]

    def send(self, count: int) -> float:
        """Send about that many; returns mails in a second."""
        spent, before = self.points[-1]
        started = time.perf_counter()
        sent = 0
        while sent < count and (taken := self._delivery.deliver_due(stopping=lambda: False)):
            sent += taken
            self.points.append((spent + time.perf_counter() - started, before + sent))
        return sent / (time.perf_counter() - started)

    def close(self) -> None:
        """Hang up."""
        self._mailer.close()
        self._outbox.close()


class BareLoop:
    """smtplib over one connection, with messages that were made before."""

    def __init__(self, alerts: list[Document], port: int) -> None:
        now = datetime.now(UTC)
        mails = [compose(alert, mail_from=MAIL_FROM, now=now) for alert in alerts]
        self._mails = mails
        self._messages = [message_from_bytes(mail.content, policy=default) for mail in mails]
        self._smtp = smtplib.SMTP("127.0.0.1", port)
        self.points: Points = [(0.0, 0)]

    def send(self, count: int) -> float:
        """Send that many; returns mails in a second."""
        spent, before = self.points[-1]
        started = time.perf_counter()
        for number in range(1, count + 1):
            self._send(number % len(self._mails))
            if number % 50 == 0 or number == count:
                self.points.append((spent + time.perf_counter() - started, before + number))
        return count / (time.perf_counter() - started)

    def close(self) -> None:
        """Hang up."""
        self._smtp.quit()

    def _send(self, number: int) -> None:
        self._smtp.send_message(self._messages[number])


class BytesLoop(BareLoop):
    """The same with bytes that were made before: what remains is the conversation alone."""

    def _send(self, number: int) -> None:
        mail = self._mails[number]
        self._smtp.sendmail(mail.sender, [mail.recipient], mail.content)


@contextmanager
def mail_server(answers_after: float = 0.0) -> Iterator[int]:
    """An SMTP server in a process of its own, which thinks that many seconds about each mail; yields its port."""
    port = free_port()
    command = [sys.executable, "-m", "bench.mailserver", str(port), str(answers_after)]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE) as child:
        try:
            if child.stdout is None or child.stdout.readline() != b"ready\n":
                raise RuntimeError("the mail server did not start")
            yield port
        finally:
            end(child)


def _row_3(count: int, ours: list[float], theirs: list[float], ready: list[float]) -> Row:
    measured, baseline = median(ours), median(theirs)
    say(f"  {measured:,.0f} mails a second, a bare loop {baseline:,.0f}, with ready bytes {median(ready):,.0f}")
    what = f"draining {count:,} mails over one connection"
    return at_least("3", what, measured / baseline, 0.8, measured=measured, baseline=baseline, unit="x its rate")


def _row_3b(stage: Stage, port: int) -> Row:
    count = stage.size(2_500, 500)
    rates: tuple[list[float], list[float]] = ([], [])
    loops: tuple[list[float], list[float]] = ([], [])
    for _ in range(stage.size(3, 1)):
        database = _queued(stage, "outbox_b", 2 * count)
        rates[1].append(_together([Drain(database, port)], count))
        shared = Outbox(database=database, clock=Clock())
        rates[0].append(_together([Drain(database, port, shared) for _ in range(CONNECTIONS)], count))
        sample = list(database.alerts.find().limit(200))
        loops[1].append(_together([BareLoop(sample, port)], count))
        loops[0].append(_together([BareLoop(sample, port) for _ in range(CONNECTIONS)], count))
    measured, baseline = median(rates[0]), median(rates[1])
    say(f"  {measured:,.0f} mails a second over {CONNECTIONS} connections, {baseline:,.0f} over one")
    say(f"  the mailbox takes {median(loops[0]) / median(loops[1]):.2f} x as many from four bare loops as from one")
    what = f"draining over {CONNECTIONS} connections against one"
    return at_least("3b", what, measured / baseline, 1.5, measured=measured, baseline=baseline, unit="x its rate")


def _together(senders: list[Drain] | list[BareLoop], count: int) -> float:
    """Have them send `count` mails between them, each in a thread of its own; returns mails in a second."""
    threads = [threading.Thread(target=_sending(each, count // len(senders))) for each in senders]
    started = time.perf_counter()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    seconds = time.perf_counter() - started
    for each in senders:
        each.close()
    return sum(each.points[-1][1] for each in senders) / seconds


def _sending(sender: Drain | BareLoop, count: int) -> Callable[[], None]:
    def send() -> None:
        sender.send(count)

    return send


def _queued(stage: Stage, name: str, count: int) -> SyncDB:
    """A database whose outbox holds that many mails, which fired just now."""
    with connect_patiently(stage.mongo.url) as client:
        client.drop_database(name)
        seed(client[name], count, near=True)
    database = stage.database(name)
    if poll(database) != count:
        raise RuntimeError("not every alert fired")
    return database


def _check_sent(database: SyncDB, count: int) -> None:
    sent = database.alerts.count_documents({"notification.state": "sent"})
    if sent != count:
        raise RuntimeError(f"{sent} mails are recorded as sent, expected {count}")
