"""The mail's text. One message per firing, the same each time it is composed but for its date and lateness."""

import hashlib
from datetime import datetime, timedelta
from decimal import Decimal
from email.message import EmailMessage
from email.utils import format_datetime, parseaddr

from jinja2 import Environment, PackageLoader, StrictUndefined, select_autoescape

from app.database.client import Document

LATE_AFTER = timedelta(minutes=1)
VERBS = {"above": "rose above", "below": "fell below"}
SOURCES = {"coinmarketcap": "CoinMarketCap", "bybit": "Bybit {}, one-minute candle"}

_templates = Environment(
    loader=PackageLoader("app.alerting"),
    autoescape=select_autoescape(["html.j2"]),
    undefined=StrictUndefined,
    trim_blocks=True,
    keep_trailing_newline=True,
)


def compose(alert: Document, *, mail_from: str, now: datetime) -> EmailMessage:
    """Return the mail of a fired alert; `now` (aware UTC) is its date."""
    headline = f"{alert['symbol']} {_verb(alert)} {format_price(alert['target'])} USD"
    seen_until: datetime = alert["triggered_until"]
    facts = {
        "headline": headline,
        "name": f"{alert['symbol']} (CoinMarketCap id {alert['coin_id']})",
        "direction": alert["direction"],
        "target": format_price(alert["target"]),
        "price": format_price(alert["triggered_price"]),
        "seen_at": _format_span(alert["triggered_at"], seen_until),
        "source": SOURCES[alert["triggered_source"]].format(alert["triggered_pair"]),
        "late": format_lateness(now - seen_until) if now - seen_until > LATE_AFTER else "",
        "price_then": f"{format_price(alert['currentPrice'])} USD" if alert["currentPrice"] else "price not known",
        "created_at": _format_time(alert["created_at"]),
        "alert_id": str(alert["_id"]),
    }
    message = EmailMessage()
    message["Subject"] = headline
    message["From"] = mail_from
    message["To"] = alert["email"]
    message["Date"] = format_datetime(now)
    message["Message-ID"] = message_id(alert, mail_from=mail_from)
    message["Auto-Submitted"] = "auto-generated"  # RFC 3834: keeps vacation responders quiet
    message.set_content(_templates.get_template("alert.txt.j2").render(facts))
    message.add_alternative(_templates.get_template("alert.html.j2").render(facts), subtype="html")
    return message


def message_id(alert: Document, *, mail_from: str) -> str:
    """A pure function of the firing: mailboxes and people can tell a repeated mail from a new one (invariant 3)."""
    digest = hashlib.sha256(f"{alert['_id']}:1".encode()).hexdigest()[:32]
    domain = parseaddr(mail_from)[1].rpartition("@")[2]
    return f"<{digest}@{domain}>"


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


def _verb(alert: Document) -> str:
    """How the price got there; one that was there already when the alert was set neither rose nor fell."""
    direction, then, target = alert["direction"], alert["currentPrice"], alert["target"]
    was_there = then is not None and (then > target if direction == "above" else then < target)
    return f"is {direction}" if was_there else VERBS[direction]


def _format_span(start: datetime, end: datetime) -> str:
    return _format_time(start) if start == end else f"{_format_time(start)} to {end:%H:%M:%S}"


def _format_time(moment: datetime) -> str:
    return moment.strftime("%Y-%m-%d %H:%M:%S")
