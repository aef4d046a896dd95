"""The one clock: every stored time and every deadline comes from here, so that tests can replace it."""

import time
from datetime import UTC, datetime, timedelta

DRIFT = timedelta(minutes=1)
"""How far apart two clocks may be that both count as right: those of two copies, or ours and CoinMarketCap's."""
MILLISECOND = timedelta(milliseconds=1)


class Clock:
    """Real time. Tests pass an object with the same two methods."""

    def now(self) -> datetime:
        """Aware UTC in whole milliseconds: MongoDB's own resolution, so that a time reads back as it was written."""
        return floor_to_ms(datetime.now(UTC))

    def monotonic(self) -> float:
        """Seconds that only ever grow, for deadlines and back-off: they must not follow a stepped wall clock."""
        return time.monotonic()


def floor_to_ms(moment: datetime) -> datetime:
    """Return `moment` without its microseconds below the millisecond."""
    return moment.replace(microsecond=moment.microsecond // 1000 * 1000)


def parse_utc(text: object) -> datetime | None:
    """Read an RFC 3339 time as aware UTC; None for anything that is not one (a time without a zone included)."""
    if not isinstance(text, str):
        return None
    try:
        moment = datetime.fromisoformat(text)
        return moment.astimezone(UTC) if moment.tzinfo else None
    except (ValueError, OverflowError):  # the latter: the year 1, east of Greenwich
        return None
