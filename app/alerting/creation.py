"""Setting an alert: which coin, which direction, and from which moment on it counts."""

from datetime import datetime, timedelta
from functools import partial

from app.alerting.places import NEARLY_FULL, Places
from app.alerting.sharing import Shared, Turns
from app.auth.auth_handler import CurrentUser
from app.clock import MILLISECOND, Clock
from app.config import Settings
from app.database import alerts, coins
from app.database.client import AsyncDB, Document
from app.errors import ConflictError
from app.market.coins import explain_unknown
from app.models import AlertSchema, Direction


class AlertCreator:
    """Sets alerts; belongs to one event loop."""

    def __init__(self, *, database: AsyncDB, settings: Settings, clock: Clock) -> None:
        self._database = database
        self._settings = settings
        self._clock = clock
        self._turns = Turns()
        self._places = Places()
        self._find_coin = Shared(partial(coins.find_by_tickers, database))
        self._insert = Shared(partial(alerts.insert_alerts, database))
        self._last_price = Shared(partial(coins.last_prices, database))

    async def create(self, wish: AlertSchema, *, user: CurrentUser) -> Document:
        """Store the alert and return it.

        MAX_ALERTS_PER_USER is exact within one process: the last places are given out one at a time.
        Raises UnprocessableError or UnavailableError for a coin that can't be told, ConflictError for one that is
        already set or is one too many.
        """
        if self._places.take(user.user_id, now=self._clock.monotonic()):
            return await self._store(wish, user)
        if await self._count_free(user) > NEARLY_FULL:
            return await self._store(wish, user)
        async with self._turns.of(user.user_id):
            if not await self._count_free(user):
                most = self._settings.max_alerts_per_user
                raise ConflictError(
                    f"You have {most} live alerts, the most that this service allows. Delete one first."
                )
            return await self._store(wish, user)

    async def _count_free(self, user: CurrentUser) -> int:
        counted_at = self._clock.monotonic()
        most = self._settings.max_alerts_per_user
        free = most - await alerts.count_live(self._database, user_id=user.user_id, limit=most)
        self._places.grant(user.user_id, free=free, now=counted_at)
        return free

    async def _store(self, wish: AlertSchema, user: CurrentUser) -> Document:
        # The time before the price: a price from after it is found, and made good for, by _count_from_last_price.
        now = _creation_time(self._clock)
        coin = await self._find_coin(wish.symbol) or await explain_unknown(self._database, wish.symbol)
        price = _known_price(coin, now, self._settings)
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
        if not await self._insert(alert):
            raise await alerts.twin_error(self._database, alert)
        await self._count_from_last_price(alert, wish)
        return alert

    async def _count_from_last_price(self, alert: Document, wish: AlertSchema) -> None:
        """Close the gap between choosing `created_at` and the alert being visible to the evaluator.

        A price seen in that gap may have been evaluated without this alert. The poller stores a price before it
        evaluates it, so such a price is found here, and the alert is restated as created after it and at it: no
        observation since its creation is missed, and its direction follows from the price at its creation.
        """
        seen = await self._last_price(alert["coin_id"])
        if seen is not None and seen.at >= alert["created_at"]:
            direction = wish.direction or _infer_direction(wish.targetPrice, seen.price)
            now = max(_creation_time(self._clock), seen.at + MILLISECOND)
            await alerts.restate_alert(self._database, alert, now=now, price=seen.price, direction=direction)


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
