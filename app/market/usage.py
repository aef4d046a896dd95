"""Keeps in MongoDB what was asked of the upstreams, for /health."""

import asyncio
import logging
from collections.abc import Sequence
from dataclasses import asdict

from pymongo.errors import PyMongoError

from app.clock import Clock
from app.database import feeds
from app.database.client import AsyncDB, Document
from app.market.meter import Meter

logger = logging.getLogger(__name__)

RECORD_SECONDS = 15.0


class UsageRecorder:
    """Writes down what the meters counted; several copies of the service add up."""

    def __init__(self, *, database: AsyncDB, meters: Sequence[Meter], clock: Clock) -> None:
        self._database = database
        self._meters = meters
        self._clock = clock

    async def record(self) -> None:
        """Write down what is new. While MongoDB is away what was counted stays with the meters."""
        day = self._clock.now().date().isoformat()
        for meter in self._meters:
            tally = meter.take()
            changes = {name: value for name, value in asdict(tally).items() if value is not None}
            calls, credits_used = changes.pop("calls"), changes.pop("credits")
            if not calls and not changes:
                continue
            try:
                await feeds.add_usage(
                    self._database,
                    source=meter.source,
                    day=day,
                    calls=calls,
                    credits_used=credits_used,
                    changes=changes,
                )
            except PyMongoError as error:
                meter.put_back(tally)
                logger.warning("MongoDB did not take the usage of %s: %s", meter.source, type(error).__name__)

    async def today(self, source: str) -> Document:
        """Return an upstream's document as it would be if everything were written down; `usage` is today's."""
        stored = await feeds.feed(self._database, source=source)
        day = self._clock.now().date().isoformat()
        used = stored.get("usage", {})
        calls, credits_used = (used["calls"], used["credits"]) if used.get("day") == day else (0, 0)
        for tally in (meter.peek() for meter in self._meters if meter.source == source):
            stored |= {name: value for name, value in asdict(tally).items() if value is not None}
            calls, credits_used = calls + tally.calls, credits_used + tally.credits
        return stored | {"usage": {"day": day, "calls": calls, "credits": credits_used}}

    async def record_regularly(self) -> None:
        """Record until cancelled."""
        while True:
            await asyncio.sleep(RECORD_SECONDS)
            await self.record()
