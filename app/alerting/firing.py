"""The one evaluator: which alerts an observation fires. Polls, candles and catching up all come through here."""

import logging
import time
from collections.abc import Collection, Sequence
from datetime import datetime

from app.database import firings
from app.database.client import SyncDB
from app.metrics import Metrics
from app.observations import Observation

logger = logging.getLogger(__name__)


def evaluate(
    database: SyncDB,
    observations: Sequence[Observation],
    *,
    now: datetime,
    candles_due: Collection[int] = (),
    metrics: Metrics | None = None,
) -> int:
    """Settle what waited for a first price, then fire what the observations touched; returns how many alerts fired.

    Older observations come first. Doing it again changes nothing, so a call that failed half-way is simply repeated.
    `now` becomes the alerts' `fired_at`. Of the coins in `candles_due` only those alerts fire to which older candles,
    that are still to be evaluated, can't matter.
    """
    started = time.perf_counter()
    fired = _evaluate(database, observations, now, candles_due)
    if fired:
        logger.info("alerts fired: %d (observations: %d, by %s)", fired, len(observations), observations[0].source)
    if metrics and observations:
        metrics.evaluated(observations[0].source, seconds=time.perf_counter() - started, fired=fired)
    return fired


def _evaluate(
    database: SyncDB, observations: Sequence[Observation], now: datetime, candles_due: Collection[int]
) -> int:
    # Looking through the index for coins without live alerts is not free: where many fired, it is full of leftovers.
    watched = firings.watched_coins(database) if observations else set()
    relevant = [seen for seen in observations if seen.coin_id in watched]
    if not relevant:
        return 0
    firings.settle(database, relevant, candles_due=candles_due)
    return firings.fire(database, relevant, now=now, candles_due=candles_due)
