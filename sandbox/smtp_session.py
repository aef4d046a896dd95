"""One SMTP conversation, and the rules that make it go wrong."""

import asyncio
import ssl
import threading
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, AnyStr

from aiosmtpd.smtp import SMTP, AuthResult, Envelope, LoginPassword, Session

Keep = Callable[[Envelope], None]


@dataclass
class Rule:
    """What happens at a stage, to one recipient or all, `times` times or until the rules are cleared."""

    stage: str
    recipient: str | None = None
    times: int | None = None
    reply: str | None = None
    stall_seconds: float = 0.0
    hang_up: bool = False
    keep: bool = True

    def meets(self, stage: str, recipients: Iterable[str]) -> bool:
        """Whether it is this rule's turn."""
        return self.stage == stage and self.times != 0 and (self.recipient is None or self.recipient in recipients)


class Rules:
    """The rules in force; usable from any thread."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._rules: list[Rule] = []

    def add(self, rule: Rule) -> None:
        """Where several meet, the one added first has its turn until it is used up."""
        with self._lock:
            self._rules.append(rule)

    def clear(self) -> None:
        """Everything goes well from now on."""
        with self._lock:
            self._rules.clear()

    def take(self, stage: str, recipients: Iterable[str] = ()) -> Rule:
        """The rule for this moment, counted as used; a harmless one if there is none."""
        with self._lock:
            for rule in self._rules:
                if rule.meets(stage, recipients):
                    if rule.times is not None:
                        rule.times -= 1
                    return rule
        return Rule(stage)


class Handler:
    """What every connection does at each stage."""

    def __init__(self, rules: Rules, keep: Keep, login: tuple[str, str] | None) -> None:
        self._rules = rules
        self._keep = keep
        self._login = login
        hooks = {"EHLO": self._ehlo, "MAIL": self._mail, "RCPT": self._rcpt, "DATA": self._data}
        for stage, hook in hooks.items():
            setattr(self, f"handle_{stage}", hook)  # aiosmtpd looks its hooks up under these names

    async def reach(self, stage: str, recipients: Iterable[str] = ()) -> Rule:
        """Stall if a rule says so, and return the rule."""
        rule = self._rules.take(stage, recipients)
        await asyncio.sleep(rule.stall_seconds)
        return rule

    def authenticate(
        self, _server: SMTP, _session: Session, _envelope: Envelope, _mechanism: str, given: LoginPassword
    ) -> AuthResult:
        """Any login passes where none is required."""
        passes = self._login is None or (given.login.decode(), given.password.decode()) == self._login
        return AuthResult(success=passes, handled=False)

    async def _ehlo(
        self, _server: SMTP, session: Session, _envelope: Envelope, name: str, replies: list[str]
    ) -> list[str]:
        await self.reach("EHLO")
        session.host_name = name
        return replies

    async def _mail(self, _server: SMTP, session: Session, envelope: Envelope, address: str, options: list[str]) -> str:
        rule = await self.reach("MAIL")
        if self._login is not None and not session.authenticated:
            return "530 5.7.0 Authentication required"
        if rule.reply is None:
            envelope.mail_from = address
            envelope.mail_options.extend(options)
        return rule.reply or "250 2.1.0 OK"

    async def _rcpt(
        self, _server: SMTP, _session: Session, envelope: Envelope, address: str, options: list[str]
    ) -> str:
        rule = await self.reach("RCPT", [address])
        if rule.reply is None:
            envelope.rcpt_tos.append(address)
            envelope.rcpt_options.extend(options)
        return rule.reply or "250 2.1.5 OK"

    async def _data(self, server: "Connection", _session: Session, envelope: Envelope) -> str:
        rule = await self.reach("DATA", envelope.rcpt_tos)
        if rule.reply is None and rule.keep:
            self._keep(envelope)
        if rule.hang_up:
            await server.hang_up()
        return rule.reply or "250 2.0.0 OK: queued"


class Connection(SMTP):
    """aiosmtpd's conversation, which can also stall before its greeting and hang up."""

    def __init__(
        self, handler: Handler, opened: set["Connection"], starttls: ssl.SSLContext | None, **options: Any
    ) -> None:
        super().__init__(
            handler,
            hostname="localhost",
            enable_SMTPUTF8=True,
            tls_context=starttls,
            require_starttls=starttls is not None,
            authenticator=handler.authenticate,
            **options,
        )
        self._handler = handler
        self._opened = opened
        self._greeted = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Also called a second time, when STARTTLS has put TLS in between."""
        self._opened.add(self)
        super().connection_made(transport)

    def connection_lost(self, error: Exception | None) -> None:
        """The conversation's task is cancelled, also while it stalls."""
        self._opened.discard(self)
        super().connection_lost(error)

    async def push(self, status: AnyStr) -> None:
        """Send a reply line; the first one is the greeting."""
        if not self._greeted:
            self._greeted = True
            await self._handler.reach("CONNECT")
        await super().push(status)

    def drop(self) -> None:
        """Close the connection at once, unless it is closing already: Python 3.11.2 can't abort TLS then."""
        if isinstance(self.transport, asyncio.Transport) and not self.transport.is_closing():
            self.transport.abort()

    async def hang_up(self) -> None:
        """Close the connection and never return: the loss of it cancels the conversation."""
        self.drop()
        await asyncio.Event().wait()
