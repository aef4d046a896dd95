"""Setting an alert: which coin, which direction, and from which moment on it counts."""

from datetime import datetime, timedelta

from app.alerting.turns import Turns
from app.auth.auth_handler import CurrentUser
from app.clock import MILLISECOND, Clock
from app.config import Settings
from app.database import alerts, coins
from app.database.client import AsyncDB, Document
from app.errors import ConflictError
from app.market.coins import resolve
from app.models import AlertSchema, Direction

NEARLY_FULL = 32
"""How many free places are few enough for a user's simultaneous requests to take their turns."""


async def create_alert(
    database: AsyncDB, wish: AlertSchema, *, user: CurrentUser, settings: Settings, clock: Clock, turns: Turns
) -> Document:
    """Store the alert and return it.

    MAX_ALERTS_PER_USER is exact within one process: the last places are given out one at a time.
    Raises UnprocessableError or UnavailableError for a coin that can't be told, ConflictError for one that is already
    set or is one too many.
    """
    if await _free_places(database, user, settings) > NEARLY_FULL:
        return await _store(database, wish, user=user, settings=settings, clock=clock)
    async with turns.of(user.user_id):
        if not await _free_places(database, user, settings):
            most = settings.max_alerts_per_user
            raise ConflictError(f"You have {most} live alerts, the most that this service allows. Delete one first.")
        return await _store(database, wish, user=user, settings=settings, clock=clock)


async def _free_places(database: AsyncDB, user: CurrentUser, settings: Settings) -> int:
    most = settings.max_alerts_per_user
    return most - await alerts.count_live(database, user_id=user.user_id, limit=most)


async def _store(
    database: AsyncDB, wish: AlertSchema, *, user: CurrentUser, settings: Settings, clock: Clock
) -> Document:
    # The time before the price: a price from after it is found, and made good for, by _count_from_last_price.
    now = _creation_time(clock)
    coin = await resolve(database, wish.symbol)
    price = _known_price(coin, now, settings)
    alert = alerts.new_alert(
        user_id=user.user_id,
        email=user.email,
        coin=coin,
        target=wish.targetPrice,
        direction=wish.direction or _infer_direction(wish.targetPrice, price),
        touch=wish.touch,
        current_price=price,
        now=now,
    )
    await alerts.insert_alert(database, alert)
    await _count_from_last_price(database, alert, wish, clock)
    return alert


async def _count_from_last_price(database: AsyncDB, alert: Document, wish: AlertSchema, clock: Clock) -> None:
    """Close the gap between choosing `created_at` and the alert being visible to the evaluator.

    A price seen in that gap may have been evaluated without this alert. The poller stores a price before it evaluates
    it, so such a price is found here, and the alert is restated as created after it and at it: no observation since
    its creation is missed, and its direction follows from the price at its creation.
    """
    seen = await coins.last_price(database, coin_id=alert["coin_id"])
    if seen is not None and seen.at >= alert["created_at"]:
        direction = wish.direction or _infer_direction(wish.targetPrice, seen.price)
        now = max(_creation_time(clock), seen.at + MILLISECOND)
        await alerts.restate_alert(database, alert, now=now, price=seen.price, direction=direction)


def _creation_time(clock: Clock) -> datetime:
    """Now, rounded up to the millisecond: rounding down could let a price from just before fire the alert."""
    return clock.now() + MILLISECOND


def _known_price(coin: Document, now: datetime, settings: Settings) -> float | None:
    """The coin's price, unless it is so old that it would fire nothing either."""
    seen_at = coin.get("price_seen_at")
    limit = timedelta(seconds=settings.stale_after_seconds)
    fresh = seen_at is not None and abs(now - seen_at) <= limit  # a clock that was set back leaves later ones behind
    return coin["price"] if fresh else None


def _infer_direction(target: float, price: float | None) -> Direction | None:
    if price is None:
        return None
    return "above" if target >= price else "below"
