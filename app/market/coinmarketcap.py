"""CoinMarketCap's API: latest quotes, listings, the map of coins and a key's credits, with a key or keyless.

Shapes, error codes and limits: https://coinmarketcap.com/api/documentation (v3 quotes, listings; v1 map, key info).
"""

import json
import re
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from functools import partial
from typing import Any

import requests

from app.clock import DRIFT, Clock, parse_utc
from app.errors import UpstreamError, UpstreamThrottledError
from app.market import http
from app.market.coinmarketcap_rows import (
    USD,
    KeyInfo,
    Listing,
    MappedCoin,
    Quote,
    is_id,
    next_month,
    printable,
    read_key_info,
    read_listing,
    read_mapped_coin,
    read_quote,
)
from app.market.meter import Meter
from app.market.sieve import sift_aside

SOURCE = "coinmarketcap"
IDS_PER_CALL = 250
"""What one credit buys."""
MAP_PAGE = 5000
LISTINGS_PAGE = 5000
"""The most that one call returns; it costs 20 credits, 1 per 250 coins."""
MOST_MAP_PAGES = 20
LONGEST_RETRY_AFTER = timedelta(seconds=3600)
"""The longest silence that a header can ask for."""

BAD_ARGUMENT = 400
MINUTE_LIMIT = 1008
DAILY_LIMIT = 1009
MONTHLY_LIMIT = 1010
ADDRESS_LIMIT = 1011
LIMITS = range(MINUTE_LIMIT, ADDRESS_LIMIT + 1)


@dataclass(frozen=True, slots=True)
class ListingsPage:
    """`is_last` says that there are no coins behind this page's."""

    listings: list[Listing]
    is_last: bool


class RefusedIdsError(UpstreamError):
    """A call failed over single values; `ids` are those that the message names: `Invalid value for "id": "4711"`."""

    def __init__(self, reason: str, message: str) -> None:
        super().__init__(SOURCE, reason)
        named = re.search(r'Invalid values? for "id": "([\d, ]{1,5000})"', message)
        self.ids = {int(value[:20]) for value in named[1].replace(",", " ").split()} if named else set()


class CoinMarketCap:
    """One HTTP session to CoinMarketCap; used by one thread at a time. `meter` counts its calls and credits."""

    def __init__(
        self,
        *,
        base_url: str,
        api_key: str,
        clock: Clock,
        meter: Meter | None = None,
        patience: http.Patience = http.PATIENCE,
    ) -> None:
        self._clock = clock
        self._meter = meter or Meter(SOURCE, clock)
        self._patience = patience
        self.has_key = bool(api_key)
        self.clock_agrees = False
        """Whether the last good reply was of our own time: only then can stored times be said to lie in the future."""
        self._base_url = base_url if api_key else f"{base_url}/public-api"
        self._session = requests.Session()
        self._session.headers["Accept"] = "application/json"
        if api_key:
            self._session.headers["X-CMC_PRO_API_KEY"] = api_key

    def close(self) -> None:
        """Close the kept connections."""
        self._session.close()

    def quotes(self, coin_ids: Sequence[int]) -> list[Quote]:
        """Return the usable quotes among the coins asked for, at most 250 of them, in one call.

        A coin whose row is missing, malformed, doubled by another coin's, or without a positive finite price is left
        out and harms no other. Raises UpstreamError: RefusedIdsError when single ids are to blame,
        UpstreamThrottledError when told to wait.
        """
        params = {"id": ",".join(map(str, coin_ids)), "convert": USD, "aux": "cmc_rank", "skip_invalid": "true"}
        rows = self._get("/v3/cryptocurrency/quotes/latest", params)
        asked = set(coin_ids)
        return [quote for row in rows if (quote := read_quote(row)) and quote.coin_id in asked]

    def map(self) -> list[MappedCoin]:
        """Return every active coin, best rank first. Takes a call per 5,000 coins."""
        coins: dict[int, MappedCoin] = {}
        for page in range(MOST_MAP_PAGES):
            params = {
                "listing_status": "active",
                "sort": "cmc_rank",
                "start": str(page * MAP_PAGE + 1),
                "limit": str(MAP_PAGE),
                "aux": "is_active",
            }
            rows = self._get("/v1/cryptocurrency/map", params)
            fresh = {coin.coin_id: coin for row in rows if (coin := read_mapped_coin(row))}
            if not fresh.keys() - coins.keys():
                break
            coins |= fresh
            if len(rows) < MAP_PAGE:
                break
        return list(coins.values())

    def listings(self, start: int, tickers: Collection[str], limit: int = LISTINGS_PAGE) -> ListingsPage:
        """Return those of `limit` (at most 5,000) active coins that have one of these upper-case tickers.

        Coins come biggest first, from the `start`-th (1-based) on; those without a positive price are left out.
        Costs 1 credit per 250 of the `limit`. Raises UpstreamError.
        """
        params = {"start": str(start), "limit": str(limit), "convert": USD, "aux": "cmc_rank"}
        parse = partial(sift_aside, tickers=tickers)
        body = self._get_body("/v3/cryptocurrency/listings/latest", params, list, parse)
        listings = [listing for row in body["data"] if (listing := read_listing(row))]
        return ListingsPage(listings, is_last=body["row_count"] < limit)

    def key_info(self) -> KeyInfo:
        """Return what the key's plan carries. Costs no credit. Only for clients with a key. Raises UpstreamError."""
        return read_key_info(self._get_body("/v1/key/info", {}, dict)["data"], self._clock.now())

    def _get(self, path: str, params: dict[str, str]) -> list[Any]:
        """Return the reply's `data`, a list. Raises UpstreamError for everything else."""
        rows: list[Any] = self._get_body(path, params, list)["data"]
        return rows

    def _get_body(
        self, path: str, params: dict[str, str], kind: type, parse: http.Parse = json.loads
    ) -> dict[str, Any]:
        """Return a good reply whose `data` is of that kind. Raises UpstreamError for everything else."""
        with self._meter.call():
            reply = http.get(self._session, SOURCE, self._base_url + path, params, self._patience, parse)
            self._raise_for_error(reply)
            if not isinstance(reply.body, dict) or not isinstance(reply.body.get("data"), kind):
                reason = f"HTTP {reply.status} without a {kind.__name__} of data {reply.excerpt!r}".rstrip(" '")
                raise UpstreamError(SOURCE, reason)
            told = parse_utc(reply.body["status"].get("timestamp"))
            self.clock_agrees = told is not None and abs(told - self._clock.now()) <= DRIFT
            credit_count = reply.body["status"].get("credit_count")
            self._meter.spend(credit_count if is_id(credit_count) else 0)
            return reply.body

    def _raise_for_error(self, reply: http.Reply) -> None:
        code, message = _status(reply)
        if code == 0 and reply.status == requests.codes.ok:
            return
        reason = f"HTTP {reply.status}, error {code}: {message}"
        if reply.status == requests.codes.too_many_requests or code in LIMITS:
            raise UpstreamThrottledError(SOURCE, reason, self._retry_at(code, reply))
        if code == BAD_ARGUMENT:
            raise RefusedIdsError(reason, message)
        raise UpstreamError(SOURCE, reason)

    def _retry_at(self, code: int, reply: http.Reply) -> datetime | None:
        """When a limit ends: per UTC minute, UTC day and month by the documentation, else what the headers say."""
        now = self._clock.now()
        minute = now.replace(second=0, microsecond=0)
        if code == MINUTE_LIMIT:
            return minute + timedelta(minutes=1)
        midnight = minute.replace(hour=0, minute=0)
        if code == DAILY_LIMIT:
            return midnight + timedelta(days=1)
        if code == MONTHLY_LIMIT:
            return next_month(now)
        return _retry_after(reply, now)


def _status(reply: http.Reply) -> tuple[int, str]:
    """The reply's own error code (a number, a text or absent: then the HTTP status stands for it) and message."""
    status = reply.body.get("status") if isinstance(reply.body, dict) else None
    if not isinstance(status, dict):
        if reply.status != requests.codes.ok:
            return reply.status, f"no reply of CoinMarketCap's own: {reply.excerpt!r}"
        raise UpstreamError(SOURCE, f"HTTP 200 that is no CoinMarketCap reply: {reply.excerpt or reply.body!r:.200}")
    absent = 0 if reply.status == requests.codes.ok else reply.status
    try:
        code = int(status.get("error_code", absent))
    except (TypeError, ValueError, OverflowError):
        raise UpstreamError(SOURCE, f"HTTP {reply.status} with the error code {status['error_code']!r:.50}") from None
    return code, printable(str(status.get("error_message") or ""))[:300]


def _retry_after(reply: http.Reply, now: datetime) -> datetime | None:
    """Read Retry-After (seconds) or x-ratelimit-reset ("2026-01-31 12:00:00 +0000"); neither is promised."""
    latest = now + LONGEST_RETRY_AFTER
    seconds = reply.headers.get("Retry-After", "")[:12]
    if seconds.isdecimal():
        return min(latest, now + timedelta(seconds=min(int(seconds), LONGEST_RETRY_AFTER.seconds)))
    try:
        reset = datetime.strptime(reply.headers.get("x-ratelimit-reset", ""), "%Y-%m-%d %H:%M:%S %z")
        return min(latest, reset.astimezone(UTC))
    except (ValueError, OverflowError):
        return None
