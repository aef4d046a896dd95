"""Bybit's public v5 market API, category spot: tickers, instruments and candles. Needs no key.

Shapes, codes and limits: https://bybit-exchange.github.io/docs/v5/ (market, error, rate-limit).
"""

import re
import threading
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import requests

from app.clock import Clock
from app.errors import (
    UnknownPairError,
    UpstreamBlockedError,
    UpstreamError,
    UpstreamThrottledError,
    UpstreamTimeoutError,
)
from app.market import http
from app.market.budget import RequestBudget
from app.market.meter import Meter

SOURCE = "bybit"
MOST_CANDLES = 1000
"""In one reply."""

PARAMETER_ERROR = 10001
TOO_MANY_VISITS = 10006
NOT_IN_WHITELIST = 10029
SERVER_TIMEOUTS = {5004, 10000}
REGION_REFUSED = {10009, 10024}

BAN_SECONDS = 600.0
"""After "access too frequent" Bybit wants at least ten minutes without a single call."""
BLOCK_SECONDS = 60.0
"""A refused country stays refused: how long nobody asks whether that has changed."""
RESET_UNKNOWN_SECONDS = 2.0
LONGEST_RESET_SECONDS = 60.0

POSITIVE = re.compile(r"(?=.*[1-9])\d{1,20}(\.\d{1,30})?")
NOT_NEGATIVE = re.compile(r"\d{1,30}(\.\d{1,30})?")

Row = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Candles:
    """`rows` as Bybit sent them: newest first, `[startMs, open, high, low, close, volume, turnover]`, all strings.

    `at_ms` is Bybit's own clock when it answered (Unix milliseconds): a candle that ended before it is final.
    """

    rows: list[list[str]]
    at_ms: int


class Bybit:
    """The one client of the process, usable from any thread; each thread has connections of its own."""

    def __init__(self, *, base_url: str, clock: Clock, meter: Meter, patience: http.Patience = http.PATIENCE) -> None:
        self._base_url = base_url
        self._clock = clock
        self._meter = meter
        self._patience = patience
        self._budget = RequestBudget(SOURCE, clock)
        self._local = threading.local()
        self._sessions: list[requests.Session] = []

    def close(self) -> None:
        """Close the kept connections of all threads."""
        for session in self._sessions:
            session.close()

    def tickers_at(self) -> tuple[list[Row], int]:
        """Return what `tickers` does, and when it was by Bybit's clock, in Unix milliseconds. Raises UpstreamError."""
        body = self._get("tickers", {})
        return _rows(body), body["time"]

    def tickers(self) -> list[Row]:
        """Return every spot pair's last 24 hours, in one call. Raises UpstreamError."""
        return self.tickers_at()[0]

    def instruments(self) -> list[Row]:
        """Return what every spot pair is made of, in one call: spot has no pages. Raises UpstreamError."""
        return _rows(self._get("instruments-info", {}))

    def klines(
        self, symbol: str, interval: str, start_ms: int, end_ms: int, limit: int, *, for_caller: bool = False
    ) -> Candles:
        """Return the candles from the one that holds `start_ms` to the one that holds `end_ms`, both included.

        `limit` (1 to 1000) should hold the whole range: which end Bybit cuts is not documented. `for_caller` leaves a
        part of the request budget untouched. Raises UnknownPairError or another UpstreamError, also for a reply that
        is about another pair or holds anything but candles in falling order.
        """
        params = {
            "symbol": symbol,
            "interval": interval,
            "start": str(start_ms),
            "end": str(end_ms),
            "limit": str(limit),
        }
        body = self._get("kline", params, for_caller=for_caller)
        if body["result"].get("symbol") != symbol:
            raise UpstreamError(SOURCE, f"asked for candles of {symbol}, it sent {body['result'].get('symbol')!r:.50}")
        rows = _rows(body)
        starts = [int(row[0]) for row in rows if _is_candle(row)]
        if len(starts) < len(rows) or any(later <= earlier for later, earlier in pairwise(starts)):
            raise UpstreamError(SOURCE, "a reply with candles that are none")
        return Candles(rows, body["time"])

    def _get(self, endpoint: str, params: dict[str, str], *, for_caller: bool = False) -> Row:
        """Return the reply's envelope: `result` is an object, `time` a number. Raises UpstreamError."""
        self._budget.spend(for_caller=for_caller)
        with self._meter.call():
            url = f"{self._base_url}/v5/market/{endpoint}"
            reply = http.get(self._session(), SOURCE, url, {"category": "spot", **params}, self._patience)
            self._raise_for_error(reply, params.get("symbol"))
            body: Row = reply.body
            if not isinstance(body.get("result"), dict) or not _is_ms(body.get("time")):
                raise UpstreamError(SOURCE, f"HTTP {reply.status} without a result")
            return body

    def _session(self) -> requests.Session:
        session: requests.Session | None = getattr(self._local, "session", None)
        if session is None:
            session = self._local.session = requests.Session()
            self._sessions.append(session)
        return session

    def _raise_for_error(self, reply: http.Reply, symbol: str | None) -> None:
        if reply.status == requests.codes.forbidden:
            raise self._forbidden(reply)
        code, message = _code(reply)
        reason = f"HTTP {reply.status}, error {code}: {message}"
        if code == TOO_MANY_VISITS or reply.status == requests.codes.too_many_requests:
            seconds = self._seconds_to_reset(reply)
            raise self._budget.silence(seconds, lambda until: UpstreamThrottledError(SOURCE, reason, until))
        if code == 0 and reply.status == requests.codes.ok:
            return
        if symbol and (code == NOT_IN_WHITELIST or (code == PARAMETER_ERROR and "symbol" in message.lower())):
            raise UnknownPairError(SOURCE, symbol)
        if code in REGION_REFUSED:
            raise self._budget.silence(BLOCK_SECONDS, lambda _: UpstreamBlockedError(SOURCE, reason))
        if code in SERVER_TIMEOUTS:
            raise UpstreamTimeoutError(SOURCE, reason)
        raise UpstreamError(SOURCE, reason)

    def _forbidden(self, reply: http.Reply) -> UpstreamError:
        """403 is either the ban for too many requests or a wall: Bybit's edge refuses whole countries that way."""
        if "too frequent" in (reply.excerpt or str(reply.body)).lower():
            reason = "HTTP 403, access too frequent: it is left alone for ten minutes"
            return self._budget.silence(BAN_SECONDS, lambda until: UpstreamThrottledError(SOURCE, reason, until))
        reason = "HTTP 403: it refuses this machine's address, as it does whole countries"
        return self._budget.silence(BLOCK_SECONDS, lambda _: UpstreamBlockedError(SOURCE, reason))

    def _seconds_to_reset(self, reply: http.Reply) -> float:
        """How long the limit lasts: the header is not always there, and has been seen in the past."""
        text = reply.headers.get("X-Bapi-Limit-Reset-Timestamp", "")
        if not text.isdecimal() or len(text) > 15:
            return RESET_UNKNOWN_SECONDS
        seconds = int(text) / 1000 - self._clock.now().timestamp()
        return min(max(seconds, 0.0), LONGEST_RESET_SECONDS)


def _code(reply: http.Reply) -> tuple[int, str]:
    code = reply.body.get("retCode") if isinstance(reply.body, dict) else None
    if isinstance(code, int) and not isinstance(code, bool):
        return code, str(reply.body.get("retMsg") or "")[:300]
    if reply.status == requests.codes.too_many_requests:
        return 0, "Too Many Requests"
    raise UpstreamError(SOURCE, f"HTTP {reply.status} and no Bybit reply: {reply.excerpt or reply.body!r:.200}")


def _rows(body: Row) -> list[Any]:
    rows = body["result"].get("list")
    if not isinstance(rows, list):
        raise UpstreamError(SOURCE, "a reply without a list")
    return rows


MS_DIGITS = 14
"""Of a Unix time in milliseconds, for some thousand years to come."""


def _is_candle(row: Any) -> bool:
    return (
        isinstance(row, list)
        and len(row) == 7
        and all(isinstance(text, str) for text in row)
        and row[0].isdecimal()
        and len(row[0]) <= MS_DIGITS
        and all(POSITIVE.fullmatch(price) for price in row[1:5])
        and all(NOT_NEGATIVE.fullmatch(amount) for amount in row[5:])
    )


def _is_ms(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)
