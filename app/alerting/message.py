"""The mail of a firing, as it goes over the wire. The same each time it is composed but for its date and lateness."""

import binascii
import hashlib
from dataclasses import dataclass
from datetime import datetime, timedelta
from decimal import Decimal
from email.header import Header
from email.utils import format_datetime, parseaddr
from functools import lru_cache

from jinja2 import Environment, PackageLoader, StrictUndefined, select_autoescape

from app.database.client import Document

LATE_AFTER = timedelta(minutes=1)
VERBS = {"above": "rose above", "below": "fell below"}
SOURCES = {"coinmarketcap": "CoinMarketCap", "bybit": "Bybit {}, one-minute candle"}

LONGEST_PLAIN_SUBJECT = 60
"""With its name that stays below the 78 characters that RFC 5322 wants of a line."""
BOUNDARY = "=_cryptoticker"
"""Quoted-printable writes every `=` as `=3D`, so no text can hold this."""
SKELETON = f"""\
{{headers}}
MIME-Version: 1.0
Content-Type: multipart/alternative; boundary="{BOUNDARY}"

--{BOUNDARY}
Content-Type: text/plain; charset="utf-8"
Content-Transfer-Encoding: quoted-printable

{{text}}
--{BOUNDARY}
Content-Type: text/html; charset="utf-8"
Content-Transfer-Encoding: quoted-printable

{{html}}
--{BOUNDARY}--
""".replace("\n", "\r\n")
"""What `email.message.EmailMessage` would write, in a twentieth of its time: docs/decisions/0011-speed.md."""

_templates = Environment(
    loader=PackageLoader("app.alerting"),
    autoescape=select_autoescape(["html.j2"]),
    undefined=StrictUndefined,
    trim_blocks=True,
    keep_trailing_newline=True,
    auto_reload=False,
)


@dataclass(frozen=True, slots=True)
class Mail:
    """`sender` and `recipient` are bare addresses; `content` is headers and texts, its lines ending in CRLF."""

    sender: str
    recipient: str
    message_id: str
    content: bytes


def compose(alert: Document, *, mail_from: str, now: datetime) -> Mail:
    """Return the mail of a fired alert; `now` (aware UTC) is its date. Raises ValueError for a line break in a header.

    An address outside ASCII stands in it as UTF-8 (RFC 6532), which only a server with SMTPUTF8 takes.
    """
    facts = _facts(alert, now)
    identity = message_id(alert, mail_from=mail_from)
    headers = {
        "Subject": _subject(_one_line(facts["headline"])),
        "From": _one_line(mail_from),
        "To": _one_line(alert["email"]),
        "Date": format_datetime(now),
        "Message-ID": identity,
        "Auto-Submitted": "auto-generated",  # RFC 3834: keeps vacation responders quiet
    }
    content = SKELETON.format(
        headers="\r\n".join(f"{name}: {value}" for name, value in headers.items()),
        text=_quoted(_templates.get_template("alert.txt.j2").render(facts)),
        html=_quoted(_templates.get_template("alert.html.j2").render(facts)),
    )
    return Mail(_bare_address(mail_from), alert["email"], identity, content.encode())


def message_id(alert: Document, *, mail_from: str) -> str:
    """A pure function of the firing: mailboxes and people can tell a repeated mail from a new one (invariant 3)."""
    digest = hashlib.sha256(f"{alert['_id']}:1".encode()).hexdigest()[:32]
    return f"<{digest}@{_bare_address(mail_from).rpartition('@')[2]}>"


def format_price(price: float) -> str:
    """All significant digits, thousands separated, never an exponent: 100,000 or 0.00000001234."""
    text = f"{Decimal(repr(price)):,f}"
    return text.rstrip("0").rstrip(".") if "." in text else text


def format_lateness(late: timedelta) -> str:
    """The two largest units: "3 min 20 s", "5 h 2 min", "2 d 4 h"."""
    seconds = int(late.total_seconds())
    units = [("d", seconds // 86_400), ("h", seconds // 3600 % 24), ("min", seconds // 60 % 60), ("s", seconds % 60)]
    first = next((index for index, (_, amount) in enumerate(units) if amount), 3)
    return " ".join(f"{amount} {unit}" for unit, amount in units[first : first + 2] if amount)


def _facts(alert: Document, now: datetime) -> dict[str, str]:
    """What the templates say."""
    late = now - alert["triggered_until"]
    target = format_price(alert["target"])
    return {
        "headline": f"{alert['symbol']} {_verb(alert)} {target} USD",
        "name": f"{alert['symbol']} (CoinMarketCap id {alert['coin_id']})",
        "direction": alert["direction"],
        "target": target,
        "price": format_price(alert["triggered_price"]),
        "seen_at": _format_span(alert["triggered_at"], alert["triggered_until"]),
        "source": SOURCES[alert["triggered_source"]].format(alert["triggered_pair"]),
        "late": format_lateness(late) if late > LATE_AFTER else "",
        "price_then": f"{format_price(alert['currentPrice'])} USD" if alert["currentPrice"] else "price not known",
        "created_at": _format_time(alert["created_at"]),
        "alert_id": str(alert["_id"]),
    }


def _verb(alert: Document) -> str:
    """How the price got there; one that was there already when the alert was set neither rose nor fell."""
    direction, then, target = alert["direction"], alert["currentPrice"], alert["target"]
    was_there = then is not None and (then > target if direction == "above" else then < target)
    return f"is {direction}" if was_there else VERBS[direction]


def _subject(headline: str) -> str:
    """As an encoded word (RFC 2047) where it is not plain ASCII, is long, or would be read as one."""
    plain = headline.isascii() and headline.isprintable() and "=?" not in headline
    if plain and len(headline) <= LONGEST_PLAIN_SUBJECT:
        return headline
    return Header(headline, "utf-8", header_name="Subject").encode(linesep="\r\n")


def _one_line(value: str) -> str:
    """Refuses what would begin another header."""
    if "\r" in value or "\n" in value:
        raise ValueError("a header holds a line break")
    return value


def _quoted(text: str) -> str:
    """As quoted-printable (RFC 2045): ASCII, its lines at most 76 characters long and ending in CRLF."""
    return binascii.b2a_qp(text.replace("\n", "\r\n").encode()).decode()


@lru_cache(maxsize=4)
def _bare_address(mail_from: str) -> str:
    """The address of a From header, without the name."""
    return parseaddr(mail_from)[1]


def _format_span(start: datetime, end: datetime) -> str:
    return _format_time(start) if start == end else f"{_format_time(start)} to {end:%H:%M:%S}"


def _format_time(moment: datetime) -> str:
    return moment.strftime("%Y-%m-%d %H:%M:%S")
