"""The one evaluator: which alerts an observation fires. Polls, candles and catching up all come through here."""

import logging
from collections.abc import Sequence
from datetime import datetime

from app.database import firings
from app.database.client import SyncDB
from app.observations import Observation

logger = logging.getLogger(__name__)


def evaluate(database: SyncDB, observations: Sequence[Observation], *, now: datetime) -> int:
    """Settle what waited for a first price, then fire what the observations touched; returns how many alerts fired.

    `observations` hold at most one per coin; call it with older ones first. Doing it again changes nothing, so a call
    that failed half-way is simply repeated. `now` becomes the alerts' `fired_at`.
    """
    # Looking through the index for coins without live alerts is not free: where many fired, it is full of leftovers.
    watched = firings.watched_coins(database) if observations else set()
    relevant = [seen for seen in observations if seen.coin_id in watched]
    if not relevant:
        return 0
    firings.settle(database, relevant)
    fired = firings.fire(database, relevant, now=now)
    if fired:
        logger.info("%d alerts fired on observations of %d coins", fired, len(observations))
    return fired
