"""Spans of time and what is left of them."""

from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime, timedelta

MINUTE = timedelta(minutes=1)
SETTLING = timedelta(seconds=5)
"""How long after a minute's end its candle is taken as final, and how far our clock may be ahead of Bybit's."""


@dataclass(frozen=True, slots=True)
class Span:
    """From `start` up to, not including, `end`: aware, in UTC."""

    start: datetime
    end: datetime

    def within(self, other: "Span") -> "Span | None":
        """Return what of this lies within `other`; None where nothing does."""
        start, end = max(self.start, other.start), min(self.end, other.end)
        return Span(start, end) if start < end else None


def without(span: Span, covered: Iterable[Span]) -> list[Span]:
    """Return what of `span` is left when `covered`, in the order of their starts, is taken away."""
    left = []
    start = span.start
    for piece in covered:
        if piece.start > start:
            left.append(Span(start, min(piece.start, span.end)))
        start = max(start, piece.end)
        if start >= span.end:
            return left
    if start < span.end:
        left.append(Span(start, span.end))
    return left


def floor_to_minute(moment: datetime) -> datetime:
    """The whole minute that holds `moment`."""
    return moment.replace(second=0, microsecond=0)


def ceil_to_minute(moment: datetime) -> datetime:
    """The first whole minute at or after `moment`: a candle counts only if it began then or later."""
    floor = floor_to_minute(moment)
    return floor if floor == moment else floor + MINUTE
