"""Handing one mail to a mail server over smtplib, and saying whose fault it is when that fails."""

import contextlib
import smtplib
import ssl
import time
from collections.abc import Callable
from pathlib import Path
from typing import Protocol

from app.alerting.conversation import Conversation, TlsConversation, nothing
from app.alerting.message import Mail
from app.config import Settings
from app.errors import (
    MailError,
    MailInterruptedError,
    MailServerError,
    RecipientDeferredError,
    RecipientRefusedError,
)

STEP_SECONDS = 10.0
"""For connecting and for each answer but the last."""
ACCEPT_SECONDS = 60.0
"""For the answer to the whole mail: servers look for viruses and spam before they give it."""
LONGEST_MAIL_SECONDS = ACCEPT_SECONDS + 5 * STEP_SECONDS
"""A mail on a kept connection: NOOP, MAIL, RCPT, DATA, what comes before the text (or RSET), the mail itself."""
IDLE_SECONDS = 5.0
"""A connection that was idle for longer is asked for a sign of life before it gets a mail."""

CLOSING = 421
WANTS_LOGIN = {530, 534, 535, 538}
TEMPORARY_5YZ = ("5.4.5", "5.2.2")
"""Refusals that are permanent by their code and clear up all the same: Gmail's daily quota, a full mailbox."""


class Mailer(Protocol):
    """Where mails go; `accepted` says in a log what became of one."""

    accepted: str

    def deliver(self, mail: Mail, *, before_text: Callable[[], None] = nothing) -> None:
        """Return once the mail is accepted for its one recipient. Raises a MailError otherwise.

        `before_text` is called when nothing is left to do but to hand the text over; what it raises prevents that.
        """

    def close(self) -> None:
        """Let go of any connection."""


def connect_mailer(settings: Settings) -> Mailer:
    """Return the mailer that the settings describe; it connects when first used."""
    if settings.smtp_host:
        return SmtpMailer(settings)
    return FileMailer(settings.data_dir / "outbox")


class FileMailer:
    """Without a mail server: each mail becomes a file that any mail program opens."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self.accepted = f"written to {folder}, as SMTP_HOST is not set"

    def deliver(self, mail: Mail, *, before_text: Callable[[], None] = nothing) -> None:
        """Write `<Message-ID>.eml`; the same mail again replaces its own file."""
        before_text()
        name = mail.message_id.strip("<>").partition("@")[0]
        part = self._folder / f"{name}.part"
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
            part.write_bytes(mail.content)
            part.rename(part.with_suffix(".eml"))
        except OSError as error:
            raise MailServerError(f"could not write to {self._folder}: {error.strerror}") from error

    def close(self) -> None:
        """Nothing is kept open."""


class SmtpMailer:
    """One kept connection to a mail server; belongs to one thread. Time-outs are in seconds."""

    def __init__(
        self, settings: Settings, *, step_seconds: float = STEP_SECONDS, accept_seconds: float = ACCEPT_SECONDS
    ) -> None:
        self.accepted = "accepted by the mail server"
        self._settings = settings
        self._step_seconds = step_seconds
        self._accept_seconds = accept_seconds
        self._smtp: Conversation | None = None
        self._tls: ssl.SSLContext | None = None
        self._last_used = 0.0
        self._mails = 0
        self._local_name: str | None = None

    def deliver(self, mail: Mail, *, before_text: Callable[[], None] = nothing) -> None:
        """Send one mail to its one recipient.

        A kept connection may have died unnoticed, so one that breaks off before the mail was handed over is replaced
        and tried once more. Raises RecipientRefusedError or RecipientDeferredError for a verdict on this mail,
        MailInterruptedError when the server broke off over it, MailServerError when there is no server to speak to.
        """
        kept = self._is_alive()
        try:
            self._send(mail, before_text)
        except smtplib.SMTPServerDisconnected as error:
            if not kept or _is_late(error):
                raise MailInterruptedError(f"the mail server broke off: {error}") from error
            self._send_afresh(mail, before_text)

    def close(self) -> None:
        """Say goodbye, if the server still listens."""
        if self._smtp is not None:
            with contextlib.suppress(smtplib.SMTPException, OSError):
                self._smtp.quit()
        self._drop()

    def _send_afresh(self, mail: Mail, before_text: Callable[[], None]) -> None:
        try:
            self._send(mail, before_text)
        except smtplib.SMTPServerDisconnected as error:
            raise MailInterruptedError(f"the mail server broke off: {error}") from error

    def _send(self, mail: Mail, before_text: Callable[[], None]) -> None:
        """Raises SMTPServerDisconnected when the connection breaks off before the mail was handed over."""
        smtp = self._smtp or self._connect()
        smtp.before_text = before_text
        try:
            smtp.sendmail(mail.sender, [mail.recipient], mail.content, self._options(smtp, mail))
        except smtplib.SMTPRecipientsRefused as error:
            raise _verdict(*next(iter(error.recipients.values()))) from error
        except smtplib.SMTPDataError as error:
            raise _verdict(error.smtp_code, error.smtp_error) from error
        except smtplib.SMTPNotSupportedError as error:
            if mail.recipient.isascii():
                raise MailServerError(f"the mail server can't write MAIL_FROM: {error}") from error
            raise RecipientRefusedError(f"the mail server can't write to this address: {error}") from error
        except (smtplib.SMTPServerDisconnected, MailInterruptedError):
            self._drop()
            raise
        except (smtplib.SMTPException, OSError) as error:
            self._drop()
            raise MailServerError(describe(error)) from error
        finally:
            self._last_used = time.monotonic()
        self._mails += 1
        if self._mails >= self._settings.smtp_mails_per_connection:
            self.close()

    def _options(self, smtp: smtplib.SMTP, mail: Mail) -> tuple[str, ...]:
        """What to ask of the server for an address outside ASCII (RFC 6531); raises SMTPNotSupportedError."""
        if mail.sender.isascii() and mail.recipient.isascii():
            return ()
        smtp.ehlo_or_helo_if_needed()
        if not smtp.has_extn("smtputf8"):
            raise smtplib.SMTPNotSupportedError("it does not offer SMTPUTF8")
        return ("SMTPUTF8", "BODY=8BITMIME")

    def _is_alive(self) -> bool:
        """Tell whether there is a kept connection worth trying; one that fell silent is dropped."""
        if self._smtp is None or self._smtp.sock is None:
            self._drop()
            return False
        if time.monotonic() - self._last_used > IDLE_SECONDS:
            try:
                self._smtp.noop()
            except (smtplib.SMTPException, OSError):
                self._drop()
        return self._smtp is not None

    def _connect(self) -> Conversation:
        try:
            self._smtp = self._open()
        except (smtplib.SMTPException, OSError, UnicodeError) as error:
            self._drop()
            raise MailServerError(describe(error)) from error
        self._mails = 0
        return self._smtp

    def _open(self) -> Conversation:
        settings = self._settings
        where = settings.smtp_host, settings.smtp_port, self._local_name
        smtp: Conversation
        if settings.smtp_security == "tls":
            smtp = TlsConversation(*where, timeout=self._step_seconds, context=self._context())
        else:
            smtp = Conversation(*where, timeout=self._step_seconds)
        self._local_name = smtp.local_hostname  # to find it out may take a DNS server's time-out
        smtp.accept_seconds = self._accept_seconds
        self._smtp = smtp  # from here on it is dropped if a step fails
        if settings.smtp_security == "starttls":
            smtp.starttls(context=self._context())
        if settings.smtp_user:
            smtp.login(settings.smtp_user, settings.smtp_password)
        return smtp

    def _context(self) -> ssl.SSLContext:
        """Without one of its own smtplib would not verify the server's certificate. Made once: it takes 20 ms."""
        self._tls = self._tls or ssl.create_default_context()
        return self._tls

    def _drop(self) -> None:
        if self._smtp is not None:
            self._smtp.close()
        self._smtp = None


def _is_late(error: Exception) -> bool:
    """Whether smtplib gave the connection up because an answer took too long, rather than found it closed."""
    return isinstance(error.__context__, TimeoutError)


def describe(error: Exception) -> str:
    """The mail server's own words where it said any. Never holds credentials."""
    if isinstance(error, smtplib.SMTPAuthenticationError):
        return f"the mail server refused SMTP_USER and SMTP_PASSWORD: {_words(error.smtp_code, error.smtp_error)}"
    if isinstance(error, smtplib.SMTPResponseException):
        return f"the mail server answered {_words(error.smtp_code, error.smtp_error)}"
    if isinstance(error, smtplib.SMTPNotSupportedError):
        return f"the mail server does not support what SMTP_SECURITY or SMTP_USER ask for: {error}"
    return f"the mail server can't be reached: {type(error).__name__}: {error}"


def _verdict(code: int, words: bytes | str) -> MailError:
    """What an answer to RCPT or DATA means for this recipient: RFC 5321, section 4.2.1, and the known exceptions."""
    text = _words(code, words)
    if code == CLOSING:
        return MailInterruptedError(f"the mail server is closing: {text}")
    if code in WANTS_LOGIN:
        return MailServerError(f"the mail server wants SMTP_USER and SMTP_PASSWORD, or others: {text}")
    if 500 <= code <= 599 and not any(enhanced in text for enhanced in TEMPORARY_5YZ):
        return RecipientRefusedError(text)
    return RecipientDeferredError(text)


def _words(code: int, words: bytes | str) -> str:
    text = words.decode(errors="replace") if isinstance(words, bytes) else words
    return f"{code} {' '.join(text.split())}"[:500]
