"""An SMTP server that keeps what it gets, and that refuses, stalls and hangs up when told to.

`python -m sandbox.mailbox --port 2525` runs it as a process of its own and prints each mail.
"""

import argparse
import asyncio
import contextlib
import itertools
import socket
import ssl
import threading
from dataclasses import dataclass
from datetime import UTC, datetime
from email import message_from_bytes, policy
from email.message import EmailMessage
from typing import Self

from aiosmtpd.smtp import Envelope

from sandbox.smtp_session import Connection, Handler, Rule, Rules

STAGES = ("CONNECT", "EHLO", "MAIL", "RCPT", "DATA")


@dataclass(frozen=True)
class Mail:
    """One mail for one recipient; a mail to three people makes three."""

    sender: str
    recipient: str
    message: EmailMessage
    received_at: datetime


class MailboxTimeoutError(AssertionError):
    """Fewer mails came in time than a test waited for."""

    def __init__(self, count: int, timeout: float, mails: list[Mail]) -> None:
        self.mails = mails
        arrived = "".join(f"\n  {mail.recipient}: {mail.message['Subject']}" for mail in mails) or " none"
        super().__init__(f"waited {timeout} s for {count} mails, {len(mails)} arrived:{arrived}")


class Mailbox:
    """Listens on `host` from `start()` to `stop()` or as a context manager; a port of 0 takes a free one.

    `require_login` is the one (user, password) that may send; without it any login passes, and none is needed.
    `starttls` is the certificate to offer STARTTLS with, which is then required before anything else;
    `implicit_tls` the one to speak TLS with from the first byte.
    """

    def __init__(
        self,
        port: int = 0,
        *,
        require_login: tuple[str, str] | None = None,
        starttls: ssl.SSLContext | None = None,
        implicit_tls: ssl.SSLContext | None = None,
        host: str = "127.0.0.1",
    ) -> None:
        self.mails: list[Mail] = []
        self.connections = 0
        self._arrived = threading.Condition()
        self._rules = Rules()
        self._handler = Handler(self._rules, self._keep, require_login)
        self._starttls = starttls
        self._implicit_tls = implicit_tls
        self._plain_login = require_login is not None and starttls is None
        self._opened: set[Connection] = set()
        self._socket = socket.create_server((host, port), backlog=512)
        self.host, self.port = self._socket.getsockname()
        self._stopping = asyncio.Event()
        self._thread = threading.Thread(target=self._run, name="sandbox mailbox", daemon=True)

    def start(self) -> Self:
        """Take mail from now on."""
        self._loop = asyncio.new_event_loop()
        self._thread.start()
        return self

    def stop(self) -> None:
        """Drop every connection, also the stalled ones; stopping twice is fine."""
        if self._thread.is_alive():
            self._loop.call_soon_threadsafe(self._stopping.set)
        self._thread.join()

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(self, *_: object) -> None:
        self.stop()

    def wait_for(self, count: int, timeout: float = 30.0) -> list[Mail]:
        """All mails so far, once there are `count`. MailboxTimeoutError after `timeout` seconds."""
        with self._arrived:
            if not self._arrived.wait_for(lambda: len(self.mails) >= count, timeout):
                raise MailboxTimeoutError(count, timeout, list(self.mails))
            return list(self.mails)

    def to(self, recipient: str) -> list[Mail]:
        """The mails that one address got, oldest first."""
        with self._arrived:
            return [mail for mail in self.mails if mail.recipient == recipient]

    def refuse(self, recipient: str, reply: str = "550 5.1.1 no such user", times: int | None = None) -> None:
        """Answer RCPT for this address with `reply`, so many times; None: until `behave()`."""
        self._rules.add(Rule("RCPT", recipient, times, reply))

    def refuse_data(self, reply: str, times: int | None = 1, recipient: str | None = None) -> None:
        """Answer with `reply` after the mail was sent over, to everybody or only for one recipient."""
        self._rules.add(Rule("DATA", recipient, times, reply))

    def stall(self, stage: str, seconds: float, times: int | None = 1) -> None:
        """Be silent for that long before answering at CONNECT, EHLO, MAIL, RCPT or after DATA.

        A mail whose sender leaves meanwhile is not kept.
        """
        if stage not in STAGES:
            raise ValueError(f"no stage {stage!r}: there are {', '.join(STAGES)}")
        self._rules.add(Rule(stage, times=times, stall_seconds=seconds))

    def hang_up_after_data(self, times: int | None = 1, keep: bool = True) -> None:
        """Drop the connection instead of the 250 after DATA, with the mail kept or lost."""
        self._rules.add(Rule("DATA", times=times, hang_up=True, keep=keep))

    def behave(self) -> None:
        """Take every mail again."""
        self._rules.clear()

    def close_connections(self) -> None:
        """Drop every open connection, as servers do with idle ones; new ones are welcome."""
        asyncio.run_coroutine_threadsafe(self._close_all(), self._loop).result()

    def _run(self) -> None:
        with asyncio.Runner(loop_factory=lambda: self._loop) as runner:
            runner.run(self._serve())

    async def _serve(self) -> None:
        loop = asyncio.get_running_loop()
        server = await loop.create_server(self._connect, sock=self._socket, ssl=self._implicit_tls)
        async with server:
            await self._stopping.wait()
            await self._close_all()

    def _connect(self) -> Connection:
        self.connections += 1
        return Connection(
            self._handler,
            self._opened,
            self._starttls,
            auth_require_tls=not self._plain_login,
            loop=asyncio.get_running_loop(),
        )

    async def _close_all(self) -> None:
        for connection in list(self._opened):
            connection.drop()

    def _keep(self, envelope: Envelope) -> None:
        content = envelope.content if isinstance(envelope.content, bytes) else b""
        received_at = datetime.now(UTC)
        with self._arrived:
            for recipient in envelope.rcpt_tos:
                message = message_from_bytes(content, policy=policy.default)
                self.mails.append(Mail(envelope.mail_from or "", recipient, message, received_at))
            self._arrived.notify_all()


def main() -> None:
    """Print each mail until interrupted."""
    parser = argparse.ArgumentParser(prog="python -m sandbox.mailbox", description=__doc__)
    parser.add_argument("--port", type=int, default=2525)
    with Mailbox(parser.parse_args().port) as mailbox, contextlib.suppress(KeyboardInterrupt):
        print(f"SMTP at {mailbox.host}:{mailbox.port}", flush=True)
        for count in itertools.count(1):
            mail = mailbox.wait_for(count, threading.TIMEOUT_MAX)[count - 1]
            print(f"--- {mail.received_at:%H:%M:%S} to {mail.recipient}\n{mail.message}", flush=True)


if __name__ == "__main__":
    main()
