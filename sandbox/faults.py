"""What can go wrong on the way: each fault changes the true answer, and waits for the paths that it is for."""

import json
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from sandbox import error_bodies, rewrites

JSON = "application/json; charset=utf-8"
HTML = "text/html; charset=utf-8"
TEXT = "text/plain; charset=utf-8"


@dataclass(frozen=True)
class Fault:
    """Changes to the true answer; what is None or zero stays as it is. Pauses are in seconds.

    `status` or `body` given: the market is not asked at all and nothing is charged.
    """

    status: int | None = None
    body: str | None = None
    content_type: str = JSON
    headers: Mapping[str, str] = field(default_factory=dict)
    rewrite: Callable[[Any], Any] | None = None
    delay_seconds: float = 0.0
    drip_seconds: float | None = None
    close: bool = False
    keep_share: float = 1.0
    promise_all: bool = False

    @property
    def replaces_answer(self) -> bool:
        """Whether the answer doesn't need the true one."""
        return self.status is not None or self.body is not None

    @classmethod
    def answer(
        cls, status: int, body: str = "", content_type: str = TEXT, headers: Mapping[str, str] | None = None
    ) -> "Fault":
        """Always this status and body."""
        return cls(status=status, body=body, content_type=content_type, headers=headers or {})

    @classmethod
    def cmc(
        cls, code: int, status: int | None = None, as_text: bool = False, headers: Mapping[str, str] | None = None
    ) -> "Fault":
        """CoinMarketCap's error of that code, under its usual HTTP status or another (1008 came with 200 too).

        `as_text` writes the code as a string, as v3 paths do.
        """
        usual, message = error_bodies.COINMARKETCAP[code]
        body = error_bodies.coinmarketcap_body(str(code) if as_text else code, message)
        return cls.answer(status or usual, json.dumps(body), JSON, headers)

    @classmethod
    def bybit(cls, code: int, message: str | None = None, headers: Mapping[str, str] | None = None) -> "Fault":
        """Bybit's error of that retCode; 10006 may bring X-Bapi-Limit-Reset-Timestamp among `headers`."""
        status, usual = error_bodies.BYBIT[code]
        return cls.answer(status, json.dumps(error_bodies.bybit_body(code, message or usual)), JSON, headers)

    @classmethod
    def too_frequent(cls) -> "Fault":
        """Bybit's 403 in plain text for over 600 requests in five seconds."""
        return cls.answer(403, error_bodies.BYBIT_TOO_FREQUENT)

    @classmethod
    def geo_block(cls) -> "Fault":
        """The 403 page with which Bybit's edge refuses a country."""
        return cls.answer(403, error_bodies.CLOUDFRONT_GEO_BLOCK, HTML)

    @classmethod
    def cloudflare(cls) -> "Fault":
        """The 429 page (error 1015) with which CoinMarketCap's edge throttles an address."""
        return cls.answer(429, error_bodies.CLOUDFLARE_1015, HTML)

    @classmethod
    def empty_429(cls, headers: Mapping[str, str] | None = None) -> "Fault":
        """A 429 that says nothing."""
        return cls.answer(429, headers=headers)

    @classmethod
    def html(cls, status: int = 502) -> "Fault":
        """A gateway's HTML page; with status 200 it looks like success until it is parsed."""
        return cls.answer(status, error_bodies.BAD_GATEWAY, HTML)

    @classmethod
    def not_json(cls) -> "Fault":
        """Status 200 and JSON by its content type, but not by its content."""
        return cls.answer(200, "upstream says hello", JSON)

    @classmethod
    def hang(cls, seconds: float = 60.0) -> "Fault":
        """The true answer, that much later."""
        return cls(delay_seconds=seconds)

    @classmethod
    def drop(cls) -> "Fault":
        """The connection closes without an answer."""
        return cls(close=True)

    @classmethod
    def truncate(cls) -> "Fault":
        """A complete HTTP answer whose JSON ends half-way."""
        return cls(keep_share=0.5)

    @classmethod
    def cut_off(cls) -> "Fault":
        """The connection closes half-way through the body that Content-Length promised."""
        return cls(keep_share=0.5, promise_all=True)

    @classmethod
    def drip(cls, seconds: float = 0.01) -> "Fault":
        """The true answer one byte at a time, with that pause after each."""
        return cls(drip_seconds=seconds)

    @classmethod
    def changed(cls, rewrite: Callable[[Any], Any]) -> "Fault":
        """The true answer after `rewrite`, which gets the parsed JSON and returns what is sent."""
        return cls(rewrite=rewrite)

    @classmethod
    def price(cls, value: Any) -> "Fault":
        """Every price is `value`: None, 0, -1, float("nan") (goes out as the bare word NaN), "abc"."""
        return cls(rewrite=rewrites.with_price(value))

    @classmethod
    def stale(cls, seconds: float) -> "Fault":
        """Every price of CoinMarketCap was last updated that long before the answer."""
        return cls(rewrite=rewrites.aged(seconds))

    @classmethod
    def wrong_ids(cls) -> "Fault":
        """Rows are about other coins or pairs than were asked for."""
        return cls(rewrite=rewrites.of_others)


class Faults:
    """The faults that wait for a request; usable from any thread."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._waiting: list[tuple[str, Fault, int | None]] = []

    def add(self, path: str, fault: Fault, times: int | None = None) -> None:
        """Break the next `times` requests whose path contains `path`; None: all until cleared.

        Where several match, the one added first has its turn until it is used up.
        """
        with self._lock:
            self._waiting.append((path, fault, times))

    def clear(self) -> None:
        """From now on every answer is true."""
        with self._lock:
            self._waiting.clear()

    def take(self, path: str) -> Fault | None:
        """The fault for a request of this path, counted as used; None: answer truly."""
        with self._lock:
            for index, (part, fault, times) in enumerate(self._waiting):
                if part in path:
                    if times is not None:
                        self._waiting[index : index + 1] = [(part, fault, times - 1)] if times > 1 else []
                    return fault
        return None
