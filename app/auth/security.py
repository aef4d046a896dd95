"""Password hashing with bcrypt, in a small thread pool of its own so that a flood of logins slows logins alone."""

import asyncio
import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

import bcrypt

from app.errors import UnavailableError
from app.models import BCRYPT_MAX_BYTES

T = TypeVar("T")

MOST_WAITING = 256
"""Hashes queued or running; at 14 rounds (about a second each) more would wait for minutes anyway."""


class PasswordHasher:
    """bcrypt at `rounds`. Call `close` when done."""

    def __init__(self, rounds: int) -> None:
        self._rounds = rounds
        # bcrypt releases the GIL: one thread keeps one core busy, and the other cores belong to everyone else.
        self._pool = ThreadPoolExecutor(max(1, (os.cpu_count() or 1) // 2), thread_name_prefix="bcrypt")
        self._waiting = 0
        # A well-formed hash that no password makes: checking against it costs what checking a real one costs.
        self._decoy = bcrypt.gensalt(rounds) + b"." * 31

    async def hash(self, password: str) -> bytes:
        """Hash a password of at most 72 bytes. Raises UnavailableError when too many are waiting."""
        return await self._run(lambda: bcrypt.hashpw(password.encode(), bcrypt.gensalt(self._rounds)))

    async def verify(self, password: str, hashed: bytes | None) -> bool:
        """Tell whether `password` made `hashed`.

        None stands for an account that does not exist: the answer is False, after the same work as for one that does.
        """
        raw = password.encode(errors="surrogatepass")  # even text that is no text must cost the same
        fits = len(raw) <= BCRYPT_MAX_BYTES and b"\0" not in raw
        candidate = raw if fits else b""
        matches = await self._run(lambda: bcrypt.checkpw(candidate, hashed or self._decoy))
        return matches and fits and hashed is not None

    def close(self) -> None:
        """Drop what waits and end the threads."""
        self._pool.shutdown(wait=False, cancel_futures=True)

    async def _run(self, work: Callable[[], T]) -> T:
        if self._waiting >= MOST_WAITING:
            raise UnavailableError("Too many sign-ins at once. Try again shortly.", retry_after=10)
        self._waiting += 1
        try:
            return await asyncio.get_running_loop().run_in_executor(self._pool, work)
        finally:
            self._waiting -= 1
