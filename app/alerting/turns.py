"""One request of a user at a time, where two at once would get in each other's way."""

import asyncio
from weakref import WeakValueDictionary

from bson import ObjectId


class Turns:
    """One lock per user, for as long as somebody holds or wants it."""

    def __init__(self) -> None:
        self._locks: WeakValueDictionary[ObjectId, asyncio.Lock] = WeakValueDictionary()

    def of(self, user_id: ObjectId) -> asyncio.Lock:
        """The user's lock."""
        return self._locks.setdefault(user_id, asyncio.Lock())
