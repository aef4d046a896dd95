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
    if not observations:
        return 0
    firings.settle(database, observations)
    fired = firings.fire(database, observations, now=now)
    if fired:
        logger.info("%d alerts fired on observations of %d coins", fired, len(observations))
    return fired
