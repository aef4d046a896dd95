"""Everything that can go wrong, as one tree.

CryptoTickerError
├── SettingsError                a setting is missing or bad; the service does not start
├── BackupError                  a backup can't be restored; nothing was changed
├── RequestError                 what a caller did or met; carries its HTTP status and headers
│   ├── UnauthorizedError        401
│   ├── ForbiddenError           403
│   ├── NotFoundError            404
│   ├── ConflictError            409
│   ├── UnprocessableError       422
│   └── UnavailableError         503, with Retry-After
├── UpstreamError                CoinMarketCap or Bybit gave no usable answer
│   ├── UpstreamThrottledError   ... and said how long to stay away
│   ├── UpstreamTimeoutError     ... in time
│   ├── UpstreamBlockedError     ... and never will to this address
│   └── UnknownPairError         ... since it knows no such pair
├── NewerDatabaseError           the database belongs to a newer version; the service does not start
├── UnrecordedError              that a mail was accepted could not be written down yet
└── MailError                    a mail was not accepted
    ├── MailServerError          nobody's fault but the server's: all mails wait
    ├── MailInterruptedError     the server broke off in the middle of this mail: the others go on
    ├── RecipientDeferredError   this recipient, for now
    └── RecipientRefusedError    this recipient, for good

`routers/error_handlers.py` is the one place that turns them into HTTP.
"""

from datetime import datetime
from typing import ClassVar


class CryptoTickerError(Exception):
    """Root of all errors that this service raises on purpose."""


class SettingsError(CryptoTickerError):
    """Names the setting, what is wrong with its value, and an example. Never holds a secret's value."""


class BackupError(CryptoTickerError):
    """Says what is wrong with the file or the database, and what to do."""


class NewerDatabaseError(CryptoTickerError):
    """A newer version of the service has changed the database in ways that this one knows nothing of."""


class RequestError(CryptoTickerError):
    """`detail` is shown to the caller as it stands: a sentence that says what to do."""

    status_code: ClassVar[int] = 400

    def __init__(self, detail: str, headers: dict[str, str] | None = None) -> None:
        super().__init__(detail)
        self.detail = detail
        self.headers = headers


class UnauthorizedError(RequestError):
    """No credentials, or credentials that don't hold."""

    status_code = 401


class ForbiddenError(RequestError):
    """Known caller, not theirs."""

    status_code = 403


class NotFoundError(RequestError):
    """No such thing among what the caller may see."""

    status_code = 404


class ConflictError(RequestError):
    """The state of things forbids it."""

    status_code = 409


class UnprocessableError(RequestError):
    """Well-formed, but it means nothing here."""

    status_code = 422


class UnavailableError(RequestError):
    """Not now; `retry_after` is in seconds."""

    status_code = 503

    def __init__(self, detail: str, retry_after: int) -> None:
        super().__init__(detail, headers={"Retry-After": str(retry_after)})


class UpstreamError(CryptoTickerError):
    """`source` is the service that failed, `reason` what it did, in words fit for a log and for /health."""

    def __init__(self, source: str, reason: str) -> None:
        super().__init__(f"{source}: {reason}")
        self.source = source
        self.reason = reason

    @property
    def detail(self) -> str:
        """What a caller is told."""
        return f"{self._name} gives no usable answer just now ({self.reason[:120]}). Try again in a minute."

    @property
    def _name(self) -> str:
        return {"bybit": "Bybit", "coinmarketcap": "CoinMarketCap"}.get(self.source, self.source)


class UpstreamThrottledError(UpstreamError):
    """The upstream asked for silence; `retry_at` is aware UTC, or None where it named no time."""

    def __init__(self, source: str, reason: str, retry_at: datetime | None) -> None:
        super().__init__(source, reason)
        self.retry_at = retry_at

    @property
    def detail(self) -> str:
        """What a caller is told."""
        return f"{self._name} must not be asked just now ({self.reason[:120]}). Try again when Retry-After has passed."


class UpstreamTimeoutError(UpstreamError):
    """The upstream took too long, or said that it did."""

    @property
    def detail(self) -> str:
        """What a caller is told."""
        return f"{self._name} did not answer in time ({self.reason[:120]}). Try again in a minute."


class UpstreamBlockedError(UpstreamError):
    """The upstream refuses this machine's address or country; asking again from here is useless."""

    @property
    def detail(self) -> str:
        """What a caller is told."""
        return (
            f"{self._name} refuses requests from this server's address or country ({self.reason[:120]}). "
            f"Whoever runs this service can set {self.source.upper()}_URL to a host that serves the country."
        )


class UnknownPairError(UpstreamError):
    """Bybit has no spot pair `symbol`."""

    def __init__(self, source: str, symbol: str) -> None:
        super().__init__(source, f"there is no spot pair {symbol!r}")
        self.symbol = symbol

    @property
    def detail(self) -> str:
        """What a caller is told."""
        return f"{self._name} has no spot pair {self.symbol!r}. GET /api/market/aggregated_data lists the USDT pairs."


class UnrecordedError(CryptoTickerError):
    """MongoDB has not taken the record of a sent mail; until it has, its sender hands over no other."""


class MailError(CryptoTickerError):
    """The text holds the mail server's own words."""


class MailServerError(MailError):
    """Unreachable, refusing the login, or hanging up: no verdict on the mail itself."""


class MailInterruptedError(MailError):
    """The conversation broke off after the server had begun to deal with this mail; whether it took it is unknown."""


class RecipientDeferredError(MailError):
    """A temporary refusal (4yz) of this recipient or this message."""


class RecipientRefusedError(MailError):
    """A permanent refusal (5yz) of this recipient or this message."""
