"""What the running service is made of; the lifespan puts it together, routers find it on `request.state.services`."""

from dataclasses import dataclass
from typing import TYPE_CHECKING

from app.auth.security import PasswordHasher
from app.clock import Clock
from app.config import Settings
from app.database.client import AsyncDB

if TYPE_CHECKING:
    from app.job_scheduler import SchedulerThread


@dataclass(frozen=True, slots=True)
class Services:
    """One of each, for the life of the application."""

    settings: Settings
    clock: Clock
    database: AsyncDB
    passwords: PasswordHasher
    scheduler: "SchedulerThread"
