"""Bybit's thirteen candle intervals as arithmetic: the candles of an interval are numbered in time order."""

from datetime import UTC, datetime

MINUTE_MS = 60_000
DAY_MS = 1440 * MINUTE_MS
WEEK_MS = 7 * DAY_MS
FIRST_MONDAY_MS = 4 * DAY_MS
"""1970 began on a Thursday; weeks begin on Mondays."""
LATEST_MS = 253_402_300_799_999
"""The end of the year 9999, where calendars end."""

FIXED_MS = {
    **{str(minutes): minutes * MINUTE_MS for minutes in (1, 3, 5, 15, 30, 60, 120, 240, 360, 720)},
    "D": DAY_MS,
    "W": WEEK_MS,
}
INTERVALS = (*FIXED_MS, "M")


def number_at(at_ms: int, interval: str) -> int:
    """Return the number of the candle that holds the moment (Unix milliseconds, 0 to LATEST_MS)."""
    if interval == "M":
        moment = datetime.fromtimestamp(at_ms // 1000, UTC)
        return moment.year * 12 + moment.month - 1
    return (at_ms - _origin(interval)) // FIXED_MS[interval]


def start_of(number: int, interval: str) -> int:
    """Return when the candle begins, in Unix milliseconds; the next one's beginning is its end."""
    if interval == "M":
        year, month = divmod(number, 12)
        return round(datetime(year, month + 1, 1, tzinfo=UTC).timestamp()) * 1000
    return _origin(interval) + number * FIXED_MS[interval]


def _origin(interval: str) -> int:
    return FIRST_MONDAY_MS if interval == "W" else 0
