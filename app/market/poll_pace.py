"""When prices may be polled: not while CoinMarketCap told us to stay away, nor faster than a key's plan carries."""

import logging
import math
from datetime import datetime, timedelta

from app.clock import Clock
from app.market.coinmarketcap import CoinMarketCap
from app.market.credits import Credits

logger = logging.getLogger(__name__)

FIRST_PAUSE = timedelta(seconds=60)
LONGEST_PAUSE = timedelta(minutes=15)
PACE_CHANGE = 1.25
"""How much the pace of polling has to change, either way, to be worth a line in the log."""


class PollPace:
    """Belongs to the thread that polls. `seconds` is how far apart polls are, `budget` why that is more than usual."""

    def __init__(self, *, client: CoinMarketCap, credits_of_key: Credits, clock: Clock, usual: float) -> None:
        self.seconds = usual
        self.budget: str | None = None
        self._usual = usual
        self._client = client
        self._credits = credits_of_key
        self._clock = clock
        self._polled_at = -math.inf
        self._silent_until = clock.monotonic()
        self._left_when_refused: int | None = None
        self._pause = FIRST_PAUSE

    def may_poll(self, *, calls: int) -> bool:
        """Whether to poll now, with so many calls; then the next poll is that much later."""
        if self._is_silent() or not self._is_affordable(calls):
            return False
        self._polled_at = self._clock.monotonic()
        return True

    def answered(self) -> None:
        """Note that CoinMarketCap gives prices: the next pause is a short one again."""
        self._pause = FIRST_PAUSE

    def refuse_until(self, retry_at: datetime | None) -> float:
        """Stay silent until then or, where no time was named, ever longer; returns for how many seconds."""
        wait = retry_at - self._clock.now() if retry_at else self._pause
        if retry_at is None:
            self._pause = min(self._pause * 2, LONGEST_PAUSE)
        self._silent_until = self._clock.monotonic() + wait.total_seconds()
        return wait.total_seconds()

    def _is_silent(self) -> bool:
        """Whether we are to stay away still. A key that has more credits than when it was refused may ask again."""
        if self._clock.monotonic() >= self._silent_until:
            self._left_when_refused = None
            return False
        self._credits.look(self._client)
        left = self._credits.month_left
        if self._left_when_refused is None:
            self._left_when_refused = left
        if left is None or self._left_when_refused is None or left <= self._left_when_refused:
            return True
        logger.warning("the key has %d credits left, up from %d: asking again", left, self._left_when_refused)
        self._silent_until = self._clock.monotonic()
        self._left_when_refused = None
        return False

    def _is_affordable(self, calls: int) -> bool:
        """Whether a poll now lets the key's credits last; the usual pace is what is tried."""
        self._credits.look(self._client)
        pace = self._credits.pace(calls=calls)
        if pace.seconds <= self._usual:
            self._go_at(self._usual, None)
            return True
        usual = f"instead of every {self._usual:g} s"
        self._go_at(pace.seconds, f"polling every {pace.seconds:.0f} s {usual}: {pace.reason}")
        return self._clock.monotonic() >= self._polled_at + pace.seconds

    def _go_at(self, seconds: float, budget: str | None) -> None:
        if not 1 / PACE_CHANGE < seconds / self.seconds < PACE_CHANGE:
            logger.warning("%s", budget or f"polling every {seconds:g} s again: the key's credits last")
        self.seconds, self.budget = seconds, budget
