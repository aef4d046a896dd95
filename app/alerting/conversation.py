"""smtplib's conversation with a mail server, with every answer bounded and a last word before the text."""

import contextlib
import io
import re
import smtplib
import socket
import time
from collections.abc import Callable
from typing import Any

from app.errors import MailInterruptedError

LONGEST_ANSWER_BYTES = 64 * 1024
LEADING_DOTS = re.compile(rb"^\.", re.MULTILINE)
"""A line that is a dot alone ends a mail: RFC 5321, section 4.5.2, doubles those that begin one."""
WANTS_TEXT = 354


def nothing() -> None:
    """Nothing has to happen before the text."""


class _Answer(io.RawIOBase):
    """What the server says, as a file. An answer may take so long and be so large as a whole, however it drips.

    The socket's own time-out bounds each wait within it, so the last one may end that much after the deadline.
    """

    def __init__(self, connection: socket.socket) -> None:
        self._connection = connection
        self._deadline = 0.0
        self._room = 0

    def expect(self, seconds: float) -> None:
        """Begin with the next answer."""
        self._deadline = time.monotonic() + seconds
        self._room = LONGEST_ANSWER_BYTES

    def readable(self) -> bool:
        """It is."""
        return True

    def readinto(self, buffer: Any) -> int:
        """Raises TimeoutError when the answer's time is over or its room used up."""
        if self._room <= 0 or time.monotonic() > self._deadline:
            raise TimeoutError("the answer does not end")
        size = self._connection.recv_into(buffer)
        self._room -= size
        return size


class Conversation(smtplib.SMTP):
    """Bounds each answer; is patient with a server that has the whole mail, and tells a break-off then from others."""

    accept_seconds = 60.0
    before_text: Callable[[], None] = staticmethod(nothing)
    _said: _Answer

    def getreply(self) -> tuple[int, bytes]:
        """Read one answer, of however many lines."""
        return self._read_answer(self.timeout)

    def data(self, msg: Any) -> tuple[int, bytes]:
        """Hand the mail over. Raises MailInterruptedError when no answer comes."""
        self.putcmd("data")
        code, words = self.getreply()
        if code != WANTS_TEXT:
            raise smtplib.SMTPDataError(code, words)
        with contextlib.ExitStack() as unless_ready:
            unless_ready.callback(self.close)
            self.before_text()
            unless_ready.pop_all()
        try:
            return self._hand_over(LEADING_DOTS.sub(b"..", msg) + b".\r\n")
        except smtplib.SMTPServerDisconnected as error:
            raise MailInterruptedError(f"the mail server broke off after it had the mail: {error}") from error

    def _hand_over(self, text: bytes) -> tuple[int, bytes]:
        if self.sock:
            self.sock.settimeout(self.accept_seconds)
        self.send(text)
        answer = self._read_answer(self.accept_seconds)
        if self.sock:
            self.sock.settimeout(self.timeout)
        return answer

    def _read_answer(self, seconds: float) -> tuple[int, bytes]:
        if self.file is None and self.sock is not None:
            self._said = _Answer(self.sock)
            self.file = io.BufferedReader(self._said)
        self._said.expect(seconds)
        return super().getreply()


class TlsConversation(Conversation, smtplib.SMTP_SSL):
    """The same through TLS from the first byte."""
