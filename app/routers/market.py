"""Market data for programs: every USDT pair at once, and candles."""

from typing import Annotated, Any

from fastapi import Query, Request, Response
from pydantic import BeforeValidator

from app.auth.api_key import NeedsApiKey
from app.errors import UnknownPairError
from app.market.bybit import MOST_CANDLES, SOURCE
from app.market.intervals import INTERVALS
from app.market.klines import plan
from app.market.wire import answer
from app.models import MarketPair
from app.routers.dependencies import Svc
from app.routers.error_handlers import documented
from app.routers.slashes import SlashRouter

router = SlashRouter(prefix="/api/market", tags=["market data"], dependencies=[NeedsApiKey])

SNAPSHOT_HEADERS = {
    "ETag": "Changes with every new snapshot; send it back in If-None-Match",
    "Cache-Control": "`max-age` is the number of seconds until the snapshot's lifetime ends, 0 when it is over",
    "Age": "Seconds since the prices came from Bybit",
    "Last-Modified": "When the prices came from Bybit",
    "X-Snapshot-Stale": "`true` when the snapshot is older than its lifetime: a refresh is under way, or Bybit fails",
    "X-Caps-Stale": "`true` when names, logos, caps and ranks are older than the prices: CoinMarketCap fails",
}
SNAPSHOT: dict[int | str, dict[str, Any]] = {
    200: {
        "model": dict[str, MarketPair],
        "description": "The pairs by name; only the figures in `fields`, if it was given",
        "headers": {
            name: {"description": meaning, "schema": {"type": "string"}} for name, meaning in SNAPSHOT_HEADERS.items()
        },
    },
    304: {"description": "The snapshot is still the one in If-None-Match"},
}
CANDLES: dict[int | str, dict[str, Any]] = {
    200: {
        "model": list[list[str]],
        "description": "Newest first: `[startMs, open, high, low, close, volume, turnover]`",
    }
}

Moment = Annotated[int | None, BeforeValidator(lambda value: value or None)]
"""Milliseconds; an empty value counts as left out."""


@router.get("/aggregated_data", response_class=Response, responses=SNAPSHOT | documented(401, 404, 422, 503))
async def aggregated_data(
    request: Request,
    services: Svc,
    symbols: Annotated[
        str, Query(max_length=20_000, description="Only these pairs: BTCUSDT,ETHUSDT", examples=["BTCUSDT,ETHUSDT"])
    ] = "",
    fields: Annotated[
        str, Query(max_length=200, description="Only these figures of each", examples=["currentPrice"])
    ] = "",
) -> Response:
    """Every Bybit spot USDT pair with its price, 24-hour change and volume, logo, market cap and rank.

    Bybit's figures are strings, as Bybit sends them; the change is a fraction (0.0068 is 0.68 %). Figures from
    CoinMarketCap are null where no coin of that ticker has a price within 5 % of Bybit's. Refreshed every
    MARKET_CACHE_SECONDS while anyone asks; 503 only while there has never been a snapshot.
    """
    snapshots = services.market.snapshots
    snapshot = await snapshots.current()
    part = await snapshots.part(snapshot, symbols=symbols, fields=fields) if symbols or fields else None
    reply = answer(
        snapshot,
        age=snapshots.age(snapshot),
        lifetime=snapshots.lifetime_seconds,
        accept_encoding=_joined(request, "Accept-Encoding"),
        if_none_match=_joined(request, "If-None-Match"),
        part=part,
    )
    response = Response(reply.body, reply.status)
    response.raw_headers = reply.headers.copy()
    return response


@router.get("/klines", response_class=Response, responses=CANDLES | documented(401, 404, 422, 502, 503, 504))
async def klines(
    services: Svc,
    symbol: Annotated[str, Query(min_length=1, max_length=40, description="A spot pair", examples=["ETHUSDT"])],
    interval: Annotated[
        str, Query(description="Minutes, or D, W, M", json_schema_extra={"enum": list(INTERVALS)}, examples=["60"])
    ],
    limit: Annotated[Moment, Query(description="1 to 1000", json_schema_extra={"default": MOST_CANDLES})] = None,
    start_time: Annotated[Moment, Query(description="Unix milliseconds: from the candle that holds it")] = None,
    end_time: Annotated[Moment, Query(description="Unix milliseconds: to the candle that holds it, or now")] = None,
) -> Response:
    """Candles of a Bybit spot pair, as Bybit gives them: newest first, all strings.

    Without `start_time` they are the `limit` candles up to `end_time`; the newest one may still be open, and is at
    most 2 seconds old. To page back, ask again with `end_time` one millisecond before the oldest `startMs`.
    """
    now_ms = round(services.clock.now().timestamp() * 1000)
    pair = symbol.strip().upper()
    if not pair.isascii() or not pair.isalnum():
        raise UnknownPairError(SOURCE, pair)
    most = MOST_CANDLES if limit is None else limit
    window = plan(symbol=pair, interval=interval, limit=most, start_ms=start_time, end_ms=end_time, now_ms=now_ms)
    rows = b"[]" if window is None else await services.market.klines.rows(window)
    return Response(rows, media_type="application/json")


def _joined(request: Request, name: str) -> bytes:
    """All the lines of a header as one list."""
    return ", ".join(request.headers.getlist(name)).encode("latin-1")
