"""Setting an alert: which coin, which direction, and from which moment on it counts."""

from datetime import datetime, timedelta

from app.auth.auth_handler import CurrentUser
from app.clock import MILLISECOND, Clock
from app.config import Settings
from app.database import alerts, coins
from app.database.client import AsyncDB, Document
from app.errors import ConflictError
from app.market.coins import resolve
from app.models import AlertSchema, Direction


async def create_alert(
    database: AsyncDB, wish: AlertSchema, *, user: CurrentUser, settings: Settings, clock: Clock
) -> Document:
    """Store the alert and return it.

    Raises UnprocessableError or UnavailableError for a coin that can't be told, ConflictError for one that is already
    set or is one too many.
    """
    coin = await resolve(database, wish.symbol)
    await _check_room(database, user, settings)
    now = _creation_time(clock)
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
    await _count_from_last_price(database, alert, clock)
    return alert


async def _check_room(database: AsyncDB, user: CurrentUser, settings: Settings) -> None:
    most = settings.max_alerts_per_user
    if await alerts.count_live(database, user_id=user.user_id, limit=most) >= most:
        raise ConflictError(f"You have {most} live alerts, the most that this service allows. Delete one first.")


async def _count_from_last_price(database: AsyncDB, alert: Document, clock: Clock) -> None:
    """Close the gap between choosing `created_at` and the alert being visible to the evaluator.

    A price seen in that gap may have been evaluated without this alert. The poller stores a price before it evaluates
    it, so such a price is found here, and the alert then counts from after it: no observation since its creation is
    missed.
    """
    seen_at = await coins.price_seen_at(database, coin_id=alert["coin_id"])
    if seen_at is not None and seen_at >= alert["created_at"]:
        await alerts.restart_alert(database, alert, now=_creation_time(clock))


def _creation_time(clock: Clock) -> datetime:
    """Now, rounded up to the millisecond: rounding down could let a price from just before fire the alert."""
    return clock.now() + MILLISECOND


def _known_price(coin: Document, now: datetime, settings: Settings) -> float | None:
    """The coin's price, unless it is so old that it would fire nothing either."""
    seen_at = coin.get("price_seen_at")
    fresh = seen_at is not None and now - seen_at <= timedelta(seconds=settings.stale_after_seconds)
    return coin["price"] if fresh else None


def _infer_direction(target: float, price: float | None) -> Direction | None:
    if price is None:
        return None
    return "above" if target >= price else "below"
