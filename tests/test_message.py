"""The mail's text."""

import email
import email.policy
from datetime import UTC, datetime, timedelta
from email.message import EmailMessage
from typing import Any

import pytest
from bson import ObjectId

from app.alerting.message import BOUNDARY, compose, format_lateness, format_price

NOON = datetime(2026, 3, 1, 12, tzinfo=UTC)
HEADERS = ("Subject", "From", "To", "Date", "Message-ID", "Auto-Submitted", "MIME-Version")


def fired(**changes: Any) -> dict[str, Any]:
    alert = {
        "_id": ObjectId("6740c0ffee0ddba11ca7f00d"),
        "email": "alice@example.com",
        "symbol": "BTC",
        "coin_id": 1,
        "direction": "above",
        "target": 100_000.0,
        "currentPrice": 96_500.25,
        "created_at": NOON - timedelta(days=2),
        "triggered_at": NOON,
        "triggered_until": NOON,
        "triggered_price": 100_250.75,
        "triggered_source": "coinmarketcap",
        "triggered_pair": None,
    }
    return alert | changes


def parts(alert: dict[str, Any], late: timedelta = timedelta(seconds=5)) -> tuple[str, str]:
    message = composed(alert, now=NOON + late)
    plain, html = (part.get_content() for part in message.iter_parts())
    return plain, html


def composed(alert: dict[str, Any], now: datetime = NOON) -> EmailMessage:
    """The mail as a mail program reads it."""
    content = compose(alert, mail_from="CryptoTicker <alerts@example.org>", now=now).content
    message = email.message_from_bytes(content, policy=email.policy.default)
    assert isinstance(message, EmailMessage)
    return message


def test_headers() -> None:
    message = composed(fired())
    assert message["Subject"] == "BTC rose above 100,000 USD"
    assert message["From"] == "CryptoTicker <alerts@example.org>"
    assert message["To"] == "alice@example.com"
    assert message["Date"].datetime == NOON
    assert message["Auto-Submitted"] == "auto-generated"
    assert message["Message-ID"].endswith("@example.org>")
    falling = composed(fired(direction="below", target=0.5, symbol="DOGE"))
    assert falling["Subject"] == "DOGE fell below 0.5 USD"


STRANGE = {
    "plain": {},
    "a coin outside ASCII": {"symbol": "币安人生"},
    "a long name and a long price": {"symbol": "W" * 32, "target": 1.2345678901234567e-18},
    "a coin that looks like an encoded word": {"symbol": "=?utf-8?q?x?="},
    "an invisible character": {"symbol": "A\u200bB"},
    "a control character": {"symbol": "A\tB"},
    "quoted-printable's own sign": {"symbol": "=3D="},
    "the boundary": {"symbol": f"--{BOUNDARY}--"},
    "a coin that is a dot": {"symbol": "."},
    "an address outside ASCII": {"email": "jörg@example.com"},
    "a long address": {"email": f"{'a' * 64}@{'b' * 60}.{'c' * 60}.{'d' * 60}.example"},
}


@pytest.mark.parametrize("changes", STRANGE.values(), ids=STRANGE)
def test_the_skeleton_reads_like_what_the_email_package_writes(changes: dict[str, Any]) -> None:
    """The same headers and texts, and every line within RFC 5322's and RFC 2045's limits."""
    alert = fired(**changes)
    mail = compose(alert, mail_from="CryptoTicker <alerts@example.org>", now=NOON)
    read = composed(alert)
    written = EmailMessage(policy=email.policy.SMTPUTF8)
    for name, value in read.items():
        if name not in {"MIME-Version", "Content-Type"}:
            written[name] = value
    plain, html = parts(alert)
    written.set_content(plain)
    written.add_alternative(html, subtype="html")
    again = email.message_from_bytes(bytes(written), policy=email.policy.default)
    assert isinstance(again, EmailMessage)
    if "=?" not in alert["symbol"]:  # which the package would take for an encoded word, and decode
        assert {name: read[name] for name in HEADERS} == {name: again[name] for name in HEADERS}
    assert [part.get_content() for part in again.iter_parts()] == [plain, html]
    assert [part.defects for part in read.walk()] == [[], [], []]
    assert all(len(line) <= 998 for line in mail.content.split(b"\r\n"))
    assert b"\n" not in mail.content.replace(b"\r\n", b"")
    assert b"\r" not in mail.content.replace(b"\r\n", b"")
    assert alert["symbol"] in plain
    assert read["Subject"].startswith(alert["symbol"])
    assert read["To"] == alert["email"] == mail.recipient
    assert mail.content.isascii() == alert["email"].isascii()


@pytest.mark.parametrize("field", ["symbol", "email"])
@pytest.mark.parametrize("line_break", ["\r\n", "\n", "\r"])
def test_no_header_can_be_smuggled_in(field: str, line_break: str) -> None:
    with pytest.raises(ValueError, match="line break"):
        compose(fired(**{field: f"x{line_break}Bcc: eve@example.com"}), mail_from="a@example.org", now=NOON)


def test_a_price_that_was_there_already_neither_rose_nor_fell() -> None:
    assert composed(fired(target=90_000.0))["Subject"] == "BTC is above 90,000 USD"
    assert composed(fired(direction="below", target=200_000.0))["Subject"] == "BTC is below 200,000 USD"


def test_both_texts_say_everything() -> None:
    for text in parts(fired()):
        for fact in (
            "BTC", "above 100,000 USD", "100,250.75 USD", "2026-03-01 12:00:00 UTC", "CoinMarketCap", "96,500.25 USD",
            "2026-02-27 12:00:00 UTC", "6740c0ffee0ddba11ca7f00d",
        ):  # fmt: skip
            assert fact in text
        assert "late" not in text


def test_a_candle_is_named_with_its_pair_and_is_late_only_after_its_minute() -> None:
    minute = timedelta(minutes=1)
    alert = fired(triggered_source="bybit", triggered_pair="BTCUSDT", triggered_until=NOON + minute)
    for text in parts(alert, late=2 * minute):
        assert "Bybit BTCUSDT, one-minute candle" in text
        assert "2026-03-01 12:00:00 to 12:01:00 UTC" in text
        assert "late" not in text
    for text in parts(alert, late=3 * minute):
        assert "This notice is 2 min late" in text


def test_a_late_notice_says_how_late() -> None:
    for text in parts(fired(), late=timedelta(hours=3, minutes=2, seconds=9)):
        assert "This notice is 3 h 2 min late" in text


def test_a_price_that_was_not_known_is_said_to_be_so() -> None:
    for text in parts(fired(currentPrice=None)):
        assert "price not known" in text


def test_a_symbol_is_text_in_html_too() -> None:
    plain, html = parts(fired(symbol="<b>X</b>"))
    assert "<b>X</b>" in plain
    assert "&lt;b&gt;X&lt;/b&gt;" in html


@pytest.mark.parametrize(
    ("price", "text"),
    [
        (100_000.0, "100,000"),
        (1e15, "1,000,000,000,000,000"),
        (120.9, "120.9"),
        (0.00000001234, "0.00000001234"),
        (6.315931e-8, "0.00000006315931"),
        (82916.79195138843, "82,916.79195138843"),
        (1e-18, "0.000000000000000001"),
        (1, "1"),
    ],
)
def test_prices_are_written_in_full(price: float, text: str) -> None:
    assert format_price(price) == text


@pytest.mark.parametrize(
    ("late", "text"),
    [
        (timedelta(seconds=61), "1 min 1 s"),
        (timedelta(minutes=20), "20 min"),
        (timedelta(hours=5, minutes=2, seconds=59), "5 h 2 min"),
        (timedelta(days=2, hours=4), "2 d 4 h"),
        (timedelta(days=3, seconds=5), "3 d"),
    ],
)
def test_lateness_is_written_in_its_two_largest_units(late: timedelta, text: str) -> None:
    assert format_lateness(late) == text
