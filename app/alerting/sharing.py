"""What simultaneous requests share: calls of the database, and turns where two at once would collide."""

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from typing import Generic, TypeVar
from weakref import WeakValueDictionary

from bson import ObjectId

T = TypeVar("T")
V = TypeVar("V")


class Turns:
    """One lock per user, for as long as somebody holds or wants it."""

    def __init__(self) -> None:
        self._locks: WeakValueDictionary[ObjectId, asyncio.Lock] = WeakValueDictionary()

    def of(self, user_id: ObjectId) -> asyncio.Lock:
        """The user's lock."""
        return self._locks.setdefault(user_id, asyncio.Lock())


class Shared(Generic[T, V]):
    """One call of the database at a time, for all who want one by then: a busy moment costs a few, not one a request.

    Who comes while a call is under way shares the next one: nobody gets what was read before they asked.
    """

    def __init__(self, call: Callable[[list[T]], Awaitable[Sequence[V]]]) -> None:
        self._call = call
        self._items: list[T] = []
        self._next: asyncio.Task[Sequence[V]] | None = None
        self._calling = asyncio.Lock()

    async def __call__(self, item: T) -> V:
        """Return what a call that began after this one found for `item`. Raises what that call raises."""
        if not self._calling.locked() and not self._items:
            async with self._calling:
                return (await self._call([item]))[0]
        place = len(self._items)
        self._items.append(item)
        self._next = self._next or asyncio.create_task(self._call_next())
        results = await asyncio.shield(self._next)  # one caller who leaves must not take the others' call along
        return results[place]

    async def _call_next(self) -> Sequence[V]:
        async with self._calling:
            items, self._items, self._next = self._items, [], None
            return await self._call(items)
