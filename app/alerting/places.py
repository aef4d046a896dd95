"""How many more alerts a user may set before the live ones have to be counted again."""

from collections import OrderedDict
from dataclasses import dataclass

from bson import ObjectId

NEARLY_FULL = 32
"""How many free places are few enough for a user's simultaneous requests to take their turns, and count each time."""
SHARE = 4
"""Of what is free beyond that a process gives out a fourth uncounted: so many copies can do so at the same time."""
COUNT_HOLDS_SECONDS = 1.0
MOST_USERS = 10_000


@dataclass(slots=True)
class Grant:
    """So many places may be given out until then, by the monotonic clock."""

    left: int
    until: float


class Places:
    """What was counted lately, for so many users."""

    def __init__(self) -> None:
        self._grants: OrderedDict[ObjectId, Grant] = OrderedDict()

    def take(self, user_id: ObjectId, *, now: float) -> bool:
        """Give out one of the places that were counted lately; False if there is none."""
        grant = self._grants.get(user_id)
        if grant is None or grant.left <= 0 or now >= grant.until:
            return False
        grant.left -= 1
        return True

    def grant(self, user_id: ObjectId, *, free: int, now: float) -> None:
        """Remember how many places were just counted to be free."""
        self._grants[user_id] = Grant((free - NEARLY_FULL) // SHARE, now + COUNT_HOLDS_SECONDS)
        self._grants.move_to_end(user_id)
        if len(self._grants) > MOST_USERS:
            self._grants.popitem(last=False)
