"""The coverage receipt of an alert: by which source its coin was watched when, and what nobody saw."""

from collections.abc import Iterable
from datetime import datetime, timedelta

from app.alerting.poll_holes import longest_gap
from app.clock import Clock
from app.config import Settings
from app.database import coins, coverage, feeds
from app.database.client import KEPT_DAYS, AsyncDB, Document
from app.database.coverage import Records
from app.market import bybit, coinmarketcap
from app.models import Coverage, TimeSpan, UnseenSpan, WatchedSpan
from app.spans import MINUTE, Span, ceil_to_minute, without

CANDLE_LATENESS = 2 * MINUTE
"""How old the last evaluated candle may be before the minutes since then count as missing."""


async def coverage_of(database: AsyncDB, alert: Document, *, settings: Settings, clock: Clock) -> Coverage:
    """Return the receipt, from the alert's creation until it fired, was deleted, or now."""
    records = await coverage.records(database, coin_id=alert["coin_id"], span=_life(alert, clock.now()))
    life = records.span
    watched, holes = await _by_polls(database, alert, life, records, settings.poll_seconds)
    if alert["touch"]:
        watched_by_candles, holes_of_candles = await _by_candles(database, life, records)
        watched, holes = watched + watched_by_candles, holes + holes_of_candles
    seen = sorted((Span(span.start, span.end) for span in watched), key=_start)
    return Coverage(
        alert_id=str(alert["_id"]),
        status=alert["status"],
        since=life.start,
        until=life.end,
        intervals=sorted(watched, key=lambda span: (span.start, span.source)),
        holes=sorted(holes, key=lambda hole: (hole.start, hole.source)),
        unwatched=[TimeSpan(start=span.start, end=span.end) for span in without(_settled(alert, life), seen)],
    )


def _life(alert: Document, now: datetime) -> Span:
    start = max(alert["created_at"], now - timedelta(days=KEPT_DAYS))
    end = alert.get("triggered_until") or alert["deleted_at"] or now
    return Span(start, max(start, end))


def _settled(alert: Document, life: Span) -> Span:
    """Without the last minutes of an alert that is live: their candles are still to come."""
    return Span(life.start, max(life.start, life.end - CANDLE_LATENESS)) if alert["status"] == "created" else life


async def _by_polls(
    database: AsyncDB, alert: Document, life: Span, records: Records, poll_seconds: float
) -> tuple[list[WatchedSpan], list[UnseenSpan]]:
    """What polls saw. A poll is an instant; they count as a whole as long as none is missing between them."""
    source = coinmarketcap.SOURCE
    holes = _holes_of(source, records, life)
    (last,) = await coins.last_prices(database, [alert["coin_id"]])
    until = last.at if last else life.start
    feed = await feeds.feed(database, source=source)
    if life.end - until > longest_gap(feed.get("poll_seconds", poll_seconds)):
        reason = _failure(feed.get("last_error_at"), feed.get("last_error"), since=until)
        tail = Span(max(until, life.start), life.end)
        holes.append(UnseenSpan(source=source, start=tail.start, end=tail.end, reason=reason))
    watched = without(life, [Span(hole.start, hole.end) for hole in holes])
    return [WatchedSpan(source=source, start=span.start, end=span.end) for span in watched], holes


async def _by_candles(database: AsyncDB, life: Span, records: Records) -> tuple[list[WatchedSpan], list[UnseenSpan]]:
    """What candles showed: from the first whole minute on, for a candle that began before the alert proves nothing."""
    source = bybit.SOURCE
    start = min(ceil_to_minute(life.start), life.end)
    whole = Span(start, life.end)
    holes = _holes_of(source, records, whole)
    followed = [part for span in records.followed if (part := span.within(whole))]
    behind = [span for span in without(whole, followed) if span.end - span.start > CANDLE_LATENESS]
    if behind:
        reason = await _why_no_candles(database, records)
        holes += [UnseenSpan(source=source, start=span.start, end=span.end, reason=reason) for span in behind]
    missed = sorted((Span(hole.start, hole.end) for hole in holes), key=_start)
    watched = [piece for span in followed for piece in without(span, missed)]
    return [WatchedSpan(source=source, pair=records.pair, start=span.start, end=span.end) for span in watched], holes


async def _why_no_candles(database: AsyncDB, records: Records) -> str:
    if records.pair is None:
        return "no Bybit pair of this coin is known whose price agreed with CoinMarketCap's within 5 %"
    known = await feeds.feed(database, source=bybit.SOURCE)
    return _failure(known.get("failed_at"), known.get("failure"), since=records.watermark)


def _failure(at: datetime | None, reason: str | None, *, since: datetime | None) -> str:
    if at and reason and (since is None or at >= since):
        return f"still missing, will be looked for again: {reason}"
    return "still missing, will be looked for again"


def _holes_of(source: str, records: Records, life: Span) -> list[UnseenSpan]:
    found: Iterable[tuple[Span | None, str]] = (
        (Span(hole.start, hole.end).within(life), hole.reason) for hole in records.holes if hole.source == source
    )
    return [UnseenSpan(source=source, start=span.start, end=span.end, reason=reason) for span, reason in found if span]


def _start(span: Span) -> datetime:
    return span.start
