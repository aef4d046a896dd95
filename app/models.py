"""Shapes that go in and out over HTTP. Every field that a caller sends has bounds."""

from datetime import datetime
from typing import Annotated, Any, Literal

from email_validator import EmailNotValidError, validate_email
from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, SecretStr, StrictBool, StrictStr

BCRYPT_MAX_BYTES = 72
MINIMUM_PASSWORD_BYTES = 8
LOWEST_TARGET = 1e-18
HIGHEST_TARGET = 1e15

AlertStatus = Literal["created", "triggered", "deleted"]
Direction = Literal["above", "below"]


def _printable(text: str) -> str:
    if not text.isprintable():
        raise ValueError("control characters and line breaks are not allowed")
    return text


def mail_address(text: str) -> str:
    """The address in the form that mail is sent to: an internationalised domain in its ASCII (xn--) form.

    Raises ValueError for what is no address, or one that mail programs would read as an encoded word (RFC 2047).
    """
    if "=?" in text:
        raise ValueError("an address with =? in it can't be written to")
    try:
        parts = validate_email(text, check_deliverability=False)
    except EmailNotValidError as error:
        raise ValueError(str(error)) from error
    return parts.ascii_email or f"{parts.local_part}@{parts.ascii_domain}"


def _new_password(password: SecretStr) -> SecretStr:
    size = len(password.get_secret_value().encode())
    if not MINIMUM_PASSWORD_BYTES <= size <= BCRYPT_MAX_BYTES:
        raise ValueError(
            f"must be {MINIMUM_PASSWORD_BYTES} to {BCRYPT_MAX_BYTES} bytes of UTF-8 (it is {size}): "
            "bcrypt reads no more, and a longer one would be cut"
        )
    if "\0" in password.get_secret_value():
        raise ValueError("must not hold a NUL character")
    return password


MailAddress = Annotated[str, Field(min_length=3, max_length=254), AfterValidator(mail_address)]
OwnAddress = Annotated[str, Field(max_length=254)]
"""An address that is only ever compared with the caller's own."""
NewPassword = Annotated[SecretStr, Field(max_length=BCRYPT_MAX_BYTES), AfterValidator(_new_password)]
Ticker = Annotated[
    str,
    BeforeValidator(lambda value: value.strip().upper() if isinstance(value, str) else value),
    Field(min_length=1, max_length=32),
    AfterValidator(_printable),
]
TargetPrice = Annotated[float, Field(strict=True, ge=LOWEST_TARGET, le=HIGHEST_TARGET, allow_inf_nan=False)]


class UserSchema(BaseModel):
    """Sign-up."""

    username: Annotated[str, Field(min_length=1, max_length=64), AfterValidator(_printable)]
    email: MailAddress
    password: NewPassword = Field(description="8 to 72 bytes of UTF-8")
    alerts: Any = Field(default=None, description="Accepted for compatibility and ignored", deprecated=True)

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [{"username": "alice", "email": "alice@example.com", "password": "correct horse battery"}]
        }
    )


class LoginSchema(BaseModel):
    """Login. An address that could not exist is simply wrong, so its form is not judged here."""

    email: Annotated[str, Field(max_length=254)]
    password: Annotated[SecretStr, Field(max_length=1024)]

    model_config = ConfigDict(
        json_schema_extra={"examples": [{"email": "alice@example.com", "password": "correct horse battery"}]}
    )


class Token(BaseModel):
    """A bearer token; `expires_in` is in seconds."""

    access_token: str
    token_type: Literal["bearer"] = Field(default="bearer")
    expires_in: int


class AlertSchema(BaseModel):
    """A new alert."""

    targetPrice: TargetPrice = Field(description="USD; a finite number above 0, kept exactly as given")
    email: OwnAddress | None = Field(default=None, description="The caller's own address; left out, it is that")
    symbol: Ticker = Field(default="BTC", description="Ticker; where coins share it, the best-ranked one is meant")
    direction: Direction | None = Field(default=None, description="Left out, it follows from the price right now")
    touch: StrictBool = Field(
        default=True, description="Also fire on what one-minute candles show, between polls and during outages"
    )
    alert_id: Any = Field(default=None, description="Accepted for compatibility and ignored", deprecated=True)
    status: Any = Field(default=None, description="Accepted for compatibility and ignored", deprecated=True)

    model_config = ConfigDict(json_schema_extra={"examples": [{"symbol": "BTC", "targetPrice": 100000}]})


class AlertReference(BaseModel):
    """Which alert to delete: its id alone, or a whole alert document, of which only the id is read."""

    alert_id: Annotated[StrictStr, Field(min_length=1, max_length=64)]

    model_config = ConfigDict(json_schema_extra={"examples": [{"alert_id": "6740c0ffee0ddba11ca7f00d"}]})


class Notification(BaseModel):
    """The mail of a firing. `error` is the mail server's last refusal, null once sent."""

    state: Literal["pending", "sent", "failed"]
    attempts: int
    sent_at: datetime | None
    error: str | None


class Alert(BaseModel):
    """An alert as its owner sees it. Prices in USD, times in UTC."""

    alert_id: str
    status: AlertStatus
    symbol: str
    coin_id: int = Field(description="CoinMarketCap's id, which never changes")
    direction: Direction | None = Field(description="null until the first price is seen")
    touch: bool
    targetPrice: float
    currentPrice: float | None = Field(description="The price when the alert was created, where one was known")
    email: str
    created_at: datetime
    triggered_at: datetime | None = Field(description="When the market touched the target")
    triggered_price: float | None
    triggered_source: str | None
    deleted_at: datetime | None
    notification: Notification | None


class TimeSpan(BaseModel):
    """From `start` up to `end`."""

    start: datetime
    end: datetime


class WatchedSpan(TimeSpan):
    """A source observed the coin all the time: `coinmarketcap` by polls, `bybit` by one-minute candles of `pair`."""

    source: str
    pair: str | None = None


class UnseenSpan(TimeSpan):
    """A source that should have observed the coin did not."""

    source: str
    reason: str


class Coverage(BaseModel):
    """What was watched for an alert, from its creation until it fired, was deleted, or now."""

    alert_id: str
    status: AlertStatus
    since: datetime = Field(
        description="The alert's creation, unless that is over 400 days or 1,000 holes ago: no more is told"
    )
    until: datetime
    intervals: list[WatchedSpan] = Field(description="When each source observed the coin; the sources overlap")
    holes: list[UnseenSpan] = Field(description="When one of them did not, and why")
    unwatched: list[TimeSpan] = Field(description="When none did: what the market did then was not noticed")


class MarketPair(BaseModel):
    """A Bybit spot USDT pair."""

    coinName: str | None = Field(description="CoinMarketCap's name of the coin")
    currentPrice: str | None = Field(description="In USDT; null while nothing was traded")
    priceChange24hPcnt: str | None = Field(description="A fraction: 0.0068 is 0.68 %")
    volume24h: str | None = Field(description="In coins")
    coinLogoURL: str | None
    marketCapUSD: float | None
    marketCapRank: int | None

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {
                    "coinName": "Bitcoin",
                    "currentPrice": "100000.1",
                    "priceChange24hPcnt": "0.0068",
                    "volume24h": "11801.27771",
                    "coinLogoURL": "https://s2.coinmarketcap.com/static/img/coins/64x64/1.png",
                    "marketCapUSD": 2009513700000.5,
                    "marketCapRank": 1,
                }
            ]
        }
    )


class ErrorBody(BaseModel):
    """Every error: one sentence, or FastAPI's list of what is wrong with the input."""

    detail: str | list[dict[str, Any]]
