"""What the running service is made of; the lifespan puts it together, routers find it on `request.state.services`."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Protocol

from app.alerting.creation import AlertCreator
from app.alerting.listing import Totals
from app.auth.security import PasswordHasher
from app.clock import Clock
from app.config import Settings
from app.database.client import AsyncDB
from app.market.market_data import MarketData


class Running(Protocol):
    """A background thread, as far as /health looks at it."""

    name: str

    def is_alive(self) -> bool:
        """Whether it runs."""


class Beating(Running, Protocol):
    """One that also tells how it goes."""

    @property
    def heartbeat_age(self) -> float:
        """Seconds since it last went round its loop."""


@dataclass(frozen=True, slots=True)
class Services:
    """One of each, for the life of the application."""

    settings: Settings
    clock: Clock
    database: AsyncDB
    passwords: PasswordHasher
    market: MarketData
    scheduler: Beating
    threads: Sequence[Running]
    """All of them, the scheduler included."""
    creator: AlertCreator
    totals: Totals = field(default_factory=Totals)
