"""What a CoinMarketCap key's plan carries: how far apart calls must be for its credits to last until the reset."""

import logging
import threading
from dataclasses import dataclass
from datetime import datetime, timedelta

from app.clock import Clock
from app.errors import UpstreamError
from app.market.coinmarketcap import CoinMarketCap
from app.market.coinmarketcap_rows import KeyInfo
from app.market.meter import Meter

logger = logging.getLogger(__name__)

READ_EVERY_SECONDS = 900.0
"""Reading costs no credit, but counts in the minute limit."""
USABLE = 0.9
"""How much of the calls per minute is planned for: the map and the listings need some, too."""


@dataclass(frozen=True, slots=True)
class Pace:
    """At least `seconds` between two rounds; `reason` names the numbers."""

    seconds: float
    reason: str


class Credits:
    """One for all clients with the same key in this process, usable from any thread."""

    def __init__(self, *, clock: Clock, meter: Meter) -> None:
        self._clock = clock
        self._meter = meter
        self._lock = threading.Lock()
        self._due = clock.monotonic()
        self._known: KeyInfo | None = None
        self._read_at = clock.now()

    def look(self, client: CoinMarketCap) -> None:
        """Read what is left, if a key is there and it was not read lately. A failure leaves what was known."""
        with self._lock:
            now = self._clock.monotonic()
            if not client.has_key or now < self._due:
                return
            self._due = now + READ_EVERY_SECONDS
        try:
            self._known, self._read_at = client.key_info(), self._clock.now()
        except UpstreamError as error:
            logger.warning("how many credits are left is unknown: %s", error)
            return
        if self._known.month_left is not None:
            self._meter.have_left(self._known.month_left)

    @property
    def month_left(self) -> int | None:
        """The credits left as last read; None without a key, or where the plan doesn't say."""
        return self._known.month_left if self._known else None

    def pace(self, *, calls: int, credits_each: int = 1, share: float = 1.0) -> Pace:
        """Return how far apart rounds of that many calls must be to make `share` of what is left last until the reset.

        Without a key, or where the plan says nothing, `seconds` is 0.
        """
        known = self._known
        if known is None:
            return Pace(0.0, "")
        # As of when it was read: from then on credits and time go down together, at the pace that follows from both.
        now = self._read_at
        midnight = now.replace(hour=0, minute=0, second=0, microsecond=0) + timedelta(days=1)
        cost = calls * credits_each
        paces = [_until(now, known.month_ends, known.month_left, cost, share)]
        if known.day_left is not None:
            paces.append(_until(now, midnight, known.day_left, cost, share))
        if known.calls_per_minute:
            seconds = 60 * calls / (known.calls_per_minute * USABLE)
            paces.append(Pace(seconds, f"the plan allows {known.calls_per_minute} calls a minute"))
        return max(paces, key=lambda pace: pace.seconds)


def _until(now: datetime, ends: datetime, left: int | None, cost: int, share: float) -> Pace:
    if left is None:
        return Pace(0.0, "")
    rest = max(0.0, (ends - now).total_seconds())
    seconds = rest if left * share < cost else min(rest, rest * cost / (left * share))
    return Pace(seconds, f"{left} credits are left until {ends:%Y-%m-%d %H:%M} UTC, each time costs {cost}")
