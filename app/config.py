"""Settings: one frozen object, read once from the environment and `.env` with python-decouple."""

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from email.utils import formataddr, parseaddr
from ipaddress import ip_network
from pathlib import Path
from typing import Literal, TypeVar, cast, get_args
from urllib.parse import urlsplit

from decouple import Config, RepositoryEmpty, RepositoryEnv
from email_validator import EmailNotValidError, validate_email
from pymongo.errors import PyMongoError
from pymongo.uri_parser import parse_uri

from app.errors import SettingsError

PROJECT_ROOT = Path(__file__).resolve().parent.parent
DATA_DIR = PROJECT_ROOT / "data"
"""Where the embedded MongoDB and mails without a mail server are kept."""

FALLBACK_MAIL_FROM = "cryptoticker@localhost"
MINIMUM_SECRET_BYTES = 32

T = TypeVar("T")
SmtpSecurity = Literal["starttls", "tls", "none"]
LogFormat = Literal["text", "json"]


@dataclass(frozen=True, kw_only=True)
class Settings:
    """docs/configuration.md says what each one means. Secrets are kept out of `repr`."""

    jwt_secret: str = field(repr=False)
    jwt_ttl_seconds: int = 900
    bcrypt_rounds: int = 14
    mongo_url: str = field(default="", repr=False)
    mongo_db: str = "cryptoticker"
    poll_seconds: float = 20.0
    coinmarketcap_api_key: str = field(default="", repr=False)
    coinmarketcap_url: str = "https://pro-api.coinmarketcap.com"
    bybit_url: str = "https://api.bybit.com"
    smtp_host: str = ""
    smtp_port: int = 587
    smtp_user: str = ""
    smtp_password: str = field(default="", repr=False)
    smtp_security: SmtpSecurity = "starttls"
    smtp_connections: int = 2
    smtp_mails_per_connection: int = 100
    mail_from: str = FALLBACK_MAIL_FROM
    crypto_api_key: str = field(default="", repr=False)
    market_cache_seconds: int = 300
    cors_origins: tuple[str, ...] = ()
    max_alerts_per_user: int = 100
    host: str = "0.0.0.0"
    port: int = 8000
    trusted_proxies: tuple[str, ...] = ("127.0.0.1",)
    metrics_host: str = "127.0.0.1"
    metrics_port: int | None = None
    log_format: LogFormat = "text"
    access_log: bool = False
    data_dir: Path = DATA_DIR

    @property
    def stale_after_seconds(self) -> float:
        """Age of a price's own `last_updated` beyond which it fires nothing."""
        return max(180.0, 5 * self.poll_seconds)


def load_settings(env_file: Path = PROJECT_ROOT / ".env") -> Settings:
    """Read every setting; an environment variable wins over the same name in `env_file`, which may be absent.

    Raises SettingsError naming the first bad setting.
    """
    source = _Source(env_file)
    smtp_user = source.read("SMTP_USER", "", _text, "alerts@example.com")
    return Settings(
        jwt_secret=source.read("JWT_SECRET", "", _secret, "(the output of: openssl rand -base64 48)"),
        jwt_ttl_seconds=source.read("JWT_TTL_SECONDS", 900, _integer(1, 31 * 86_400), "900"),
        bcrypt_rounds=source.read("BCRYPT_ROUNDS", 14, _integer(4, 20), "14"),
        mongo_url=source.read("MONGO_URL", "", _mongo_url, "mongodb://localhost:27017/?replicaSet=rs0"),
        mongo_db=source.read("MONGO_DB", "cryptoticker", _database_name, "cryptoticker"),
        poll_seconds=source.read("POLL_SECONDS", 20.0, _seconds(0.1, 3600), "20"),
        coinmarketcap_api_key=source.read("COINMARKETCAP_API_KEY", "", _header_value, "your-key-from-coinmarketcap"),
        coinmarketcap_url=source.read(
            "COINMARKETCAP_URL", Settings.coinmarketcap_url, _url, Settings.coinmarketcap_url
        ),
        bybit_url=source.read("BYBIT_URL", Settings.bybit_url, _url, Settings.bybit_url),
        smtp_host=source.read("SMTP_HOST", "", _text, "smtp.example.com"),
        smtp_port=source.read("SMTP_PORT", 587, _integer(1, 65_535), "587"),
        smtp_user=smtp_user,
        smtp_password=source.read("SMTP_PASSWORD", "", _ascii_text, "the-app-password"),
        smtp_security=source.read("SMTP_SECURITY", "starttls", _smtp_security, "starttls"),
        smtp_connections=source.read("SMTP_CONNECTIONS", 2, _integer(1, 16), "2"),
        smtp_mails_per_connection=source.read("SMTP_MAILS_PER_CONNECTION", 100, _integer(1, 1_000_000), "100"),
        mail_from=source.read("MAIL_FROM", smtp_user or FALLBACK_MAIL_FROM, _mail_address, "alerts@example.com"),
        crypto_api_key=source.read("CRYPTO_API_KEY", "", _header_value, "(the output of: openssl rand -base64 48)"),
        market_cache_seconds=source.read("MARKET_CACHE_SECONDS", 300, _integer(1, 86_400), "300"),
        cors_origins=source.read("CORS_ORIGINS", "", _origins, "https://app.example.com,http://localhost:3000"),
        max_alerts_per_user=source.read("MAX_ALERTS_PER_USER", 100, _integer(1, 10_000_000), "100"),
        host=source.read("HOST", "0.0.0.0", _text, "127.0.0.1"),
        port=source.read("PORT", 8000, _integer(1, 65_535), "8000"),
        trusted_proxies=source.read("TRUSTED_PROXIES", "127.0.0.1", _proxies, "127.0.0.1,10.0.0.0/8"),
        metrics_host=source.read("METRICS_HOST", "127.0.0.1", _text, "0.0.0.0"),
        metrics_port=source.read("METRICS_PORT", "", _optional(_integer(1, 65_535)), "9464"),
        log_format=source.read("LOG_FORMAT", "text", _log_format, "json"),
        access_log=source.read("ACCESS_LOG", "no", _yes_or_no, "yes"),
    )


class _Source:
    """decouple's lookup (environment first, then the file), with errors that name the setting."""

    def __init__(self, env_file: Path) -> None:
        try:
            self._config = Config(RepositoryEnv(str(env_file)) if env_file.is_file() else RepositoryEmpty())
        except UnicodeDecodeError as error:
            raise SettingsError(f"{env_file} is not UTF-8 text. Save it as UTF-8.") from error

    def read(self, name: str, default: object, parse: Callable[[str], T], example: str) -> T:
        """Return the parsed value; one that is absent or empty counts as `default`, which is parsed like any other."""
        text = str(self._config(name, default="")).strip() or str(default)
        try:
            return parse(text)
        except ValueError as error:
            raise SettingsError(f"{name} {error}. Example: {name}={example}") from error


def _text(text: str) -> str:
    if any(ord(character) < 32 or ord(character) == 127 for character in text):
        raise ValueError("holds a control character")
    return text


def _ascii_text(text: str) -> str:
    if not text.isascii():
        raise ValueError("holds a character outside ASCII, which SMTP logins can't carry")
    return _text(text)


def _header_value(text: str) -> str:
    if not text.isascii() or any(character.isspace() for character in text):
        raise ValueError("may hold only ASCII characters and no spaces, since it travels in an HTTP header")
    return _text(text)


def _secret(text: str) -> str:
    if not text:
        raise ValueError("is not set: run `./run env` to write one into .env, or set it yourself")
    if len(text.encode()) < MINIMUM_SECRET_BYTES:
        raise ValueError(f"is too short to be a secret: it needs at least {MINIMUM_SECRET_BYTES} bytes")
    return text


def _number(text: str) -> float:
    try:
        number = float(text)
    except ValueError:
        raise ValueError(f"is {text!r}, which is not a number") from None
    if not math.isfinite(number):
        raise ValueError(f"is {text!r}, which is not a finite number")
    return number


def _seconds(lowest: float, highest: float) -> Callable[[str], float]:
    def parse(text: str) -> float:
        seconds = _number(text)
        if not lowest <= seconds <= highest:
            raise ValueError(f"is {text}, outside {lowest:g} to {highest:g} seconds")
        return seconds

    return parse


def _integer(lowest: int, highest: int) -> Callable[[str], int]:
    def parse(text: str) -> int:
        number = _number(text)
        if not number.is_integer():
            raise ValueError(f"is {text}, which is not a whole number")
        if not lowest <= number <= highest:
            raise ValueError(f"is {text}, outside {lowest} to {highest}")
        return int(number)

    return parse


def _optional(parse: Callable[[str], T]) -> Callable[[str], T | None]:
    return lambda text: parse(text) if text else None


def _yes_or_no(text: str) -> bool:
    known = {"yes": True, "true": True, "no": False, "false": False}
    if text.lower() not in known:
        raise ValueError(f"is {text!r}, neither yes nor no")
    return known[text.lower()]


def _url(text: str) -> str:
    """An http(s) base URL, returned without a trailing slash."""
    try:
        parts = urlsplit(text)
        usable = parts.scheme in {"http", "https"} and parts.hostname and parts.port != 0
    except ValueError:  # a port that is none
        usable = False
    if not usable or parts.query or parts.fragment:
        raise ValueError("is not a base URL: it starts with http:// or https://, then host and port, and has no query")
    return text.rstrip("/")


def _origins(text: str) -> tuple[str, ...]:
    """Origins as browsers send them, separated by commas; `*` alone allows every one."""
    origins = tuple(origin.strip().rstrip("/") for origin in text.split(",") if origin.strip())
    for origin in origins:
        parts = urlsplit(origin)
        is_origin = (
            parts.scheme in {"http", "https"} and parts.hostname and origin == f"{parts.scheme}://{parts.netloc}"
        )
        if not is_origin and origins != ("*",):
            raise ValueError(f"holds {origin!r}, which is no origin (scheme and host, no path)")
    return origins


def _proxies(text: str) -> tuple[str, ...]:
    """Addresses and networks separated by commas; `*` alone trusts everybody."""
    proxies = tuple(proxy.strip() for proxy in text.split(",") if proxy.strip())
    for proxy in proxies:
        try:
            ip_network(proxy)
        except ValueError:
            if proxies != ("*",):
                raise ValueError(f"holds {proxy!r}, which is no IP address and no network") from None
    return proxies


def _mongo_url(text: str) -> str:
    """Never says what the value is: it may hold a password."""
    if text.startswith("mongodb://"):
        try:
            parse_uri(text)
        except (PyMongoError, ValueError):
            raise ValueError("is not a connection string that MongoDB understands") from None
    elif text and not text.startswith("mongodb+srv://"):  # to read one of these takes DNS
        raise ValueError("does not start with mongodb:// or mongodb+srv://")
    return text


def _database_name(text: str) -> str:
    """MongoDB's own limits on database names: docs/reference/limits, "Naming Restrictions"."""
    if not 1 <= len(text.encode()) <= 63 or any(character in text for character in '/\\. "$*<>:|?\0'):
        raise ValueError(f"is {text!r}, which MongoDB does not take as a database name")
    return text


def _smtp_security(text: str) -> SmtpSecurity:
    if text not in get_args(SmtpSecurity):
        raise ValueError(f"is {text!r}, not one of {', '.join(get_args(SmtpSecurity))}")
    return cast(SmtpSecurity, text)


def _log_format(text: str) -> LogFormat:
    if text not in get_args(LogFormat):
        raise ValueError(f"is {text!r}, not one of {', '.join(get_args(LogFormat))}")
    return cast(LogFormat, text)


def _mail_address(text: str) -> str:
    """An address, with or without a display name: `alerts@example.com` or `CryptoTicker <alerts@example.com>`."""
    name, address = parseaddr(_text(text))
    if address == FALLBACK_MAIL_FROM:
        return text
    try:
        parts = validate_email(address, check_deliverability=False, test_environment=True)
    except EmailNotValidError:
        raise ValueError(f"is {text!r}, which is no mail address (it defaults to SMTP_USER)") from None
    return formataddr((name, f"{parts.local_part}@{parts.ascii_domain}"))
