"""What to do about times that lie in the future: they were written while the machine's clock was ahead.

Left alone, an alert "created" tomorrow fires on nothing until then, a mail waits, a watermark skips, a lease holds.
"""

from datetime import datetime, timedelta

from app.clock import DRIFT
from app.database.client import IN_OUTBOX, LIVE, SyncDB

LONGEST_WAIT = timedelta(hours=2)
"""No mail and no lease is ever put off for longer."""


def undo_future(database: SyncDB, *, now: datetime) -> int:
    """Bring every time that can't be right back to `now`; returns how many documents that took."""
    repairs = [
        database.alerts.update_many(LIVE | {"created_at": {"$gt": now + DRIFT}}, {"$set": {"created_at": now}}),
        database.alerts.update_many(
            {**IN_OUTBOX, "notification.due_at": {"$gt": now + LONGEST_WAIT}}, {"$set": {"notification.due_at": now}}
        ),
        database.watermarks.update_many(
            {"watermark": {"$gt": now + DRIFT}}, {"$set": {"watermark": now.replace(second=0, microsecond=0)}}
        ),
        database.leases.update_many({"until": {"$gt": now + LONGEST_WAIT}}, {"$set": {"until": now}}),
    ]
    return sum(repair.modified_count for repair in repairs)
