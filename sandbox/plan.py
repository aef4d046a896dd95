"""A CoinMarketCap key's plan and what was used of it. It only counts: limits are enforced by adding a fault."""

from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any


@dataclass
class Plan:
    """Credits a month and requests a minute that the key has, and those used so far (days and months are UTC)."""

    monthly_credits: int = 10_000
    minute_requests: int = 30
    used_today: int = 0
    used_this_month: int = 0
    requests_this_minute: int = 0
    _last: datetime | None = None

    def charge(self, credits_used: int, now: datetime) -> None:
        """Count a request and its credits; what was counted in an earlier minute, day or month is gone."""
        last, self._last = self._last or now, now
        if last.replace(second=0, microsecond=0) != now.replace(second=0, microsecond=0):
            self.requests_this_minute = 0
        if last.date() != now.date():
            self.used_today = 0
        if (last.year, last.month) != (now.year, now.month):
            self.used_this_month = 0
        self.requests_this_minute += 1
        self.used_today += credits_used
        self.used_this_month += credits_used

    def shown(self, now: datetime) -> dict[str, Any]:
        """The data of key info."""
        reset = next_month(now)
        return {
            "plan": {
                "credit_limit_monthly": self.monthly_credits,
                "credit_limit_monthly_reset": _in_words(reset - now),
                "credit_limit_monthly_reset_timestamp": reset.strftime("%Y-%m-%dT00:00:00.000Z"),
                "rate_limit_minute": self.minute_requests,
            },
            "usage": {
                "current_minute": {
                    "requests_made": self.requests_this_minute,
                    "requests_left": max(0, self.minute_requests - self.requests_this_minute),
                },
                "current_day": {"credits_used": self.used_today},
                "current_month": {
                    "credits_used": self.used_this_month,
                    "credits_left": max(0, self.monthly_credits - self.used_this_month),
                },
            },
        }


def next_month(now: datetime) -> datetime:
    """The first midnight of the month after `now`."""
    midnight = now.replace(day=1, hour=0, minute=0, second=0, microsecond=0)
    return (midnight + timedelta(days=32)).replace(day=1)


def _in_words(left: timedelta) -> str:
    hours, minutes = divmod(left.seconds // 60, 60)
    return f"In {left.days} days, {hours} hours, {minutes} minutes"
