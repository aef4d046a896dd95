"""Candles for API callers: Bybit's rows, each final one fetched once, and never more upstream calls than needed."""

import asyncio
import json
from collections import defaultdict
from collections.abc import Iterable
from concurrent.futures import Executor
from dataclasses import dataclass
from datetime import timedelta

from app.clock import Clock
from app.errors import UnknownPairError, UnprocessableError, UpstreamThrottledError, UpstreamTimeoutError
from app.market.bybit import MOST_CANDLES, SOURCE, Bybit, Candles
from app.market.candle_cache import FOREVER, CandleCache, Cell, Series
from app.market.intervals import INTERVALS, LATEST_MS, number_at, start_of

OPEN_SECONDS = 2.0
"""How old an unfinished candle may be when it is shown."""
ABSENT_SECONDS = 300.0
"""How long Bybit is not asked again for candles that it does not have."""
SETTLED_MS = 2000
"""A candle counts as final when Bybit's own clock is so far past its end."""
UNKNOWN_SECONDS = 60.0
"""How long Bybit is not asked again whether it has a pair that it did not know."""
MOST_UNKNOWN = 1000
MOST_FLIGHTS = 200
"""Upstream calls that may be under way or waiting for a thread."""
PATIENCE_SECONDS = 20.0


@dataclass(frozen=True, slots=True)
class Window:
    """Candles `first` to `last`, numbered as in `intervals`."""

    series: Series
    first: int
    last: int


@dataclass(frozen=True, slots=True)
class Flight:
    """An upstream call under way, for a whole window."""

    window: Window
    task: asyncio.Task[dict[int, Cell]]


def plan(
    *, symbol: str, interval: str, limit: int, start_ms: int | None, end_ms: int | None, now_ms: int
) -> Window | None:
    """Return which candles are meant, None where the range lies in the future.

    A range goes from the candle that holds its start to the one that holds its end, or now. Without a start it is the
    `limit` candles up to the end. Raises UnprocessableError for a range that can't be, or holds more than `limit`.
    """
    if interval not in INTERVALS:
        raise UnprocessableError(f"`interval` is one of {', '.join(INTERVALS)}, not {interval[:20]!r}.")
    if not 1 <= limit <= MOST_CANDLES:
        raise UnprocessableError(f"`limit` is a number from 1 to {MOST_CANDLES}, not {limit}.")
    for name, moment in (("start_time", start_ms), ("end_time", end_ms)):
        if moment is not None and not 0 <= moment <= LATEST_MS:
            raise UnprocessableError(f"`{name}` is in milliseconds since 1970, from 0 to {LATEST_MS}, not {moment}.")
    if start_ms is not None and end_ms is not None and start_ms > end_ms:
        raise UnprocessableError(f"`start_time` ({start_ms}) must not be after `end_time` ({end_ms}).")
    last = number_at(min(now_ms if end_ms is None else end_ms, now_ms), interval)
    if start_ms is None:
        return Window((symbol, interval), max(last - limit + 1, number_at(0, interval)), last)
    if start_ms > now_ms:
        return None
    first = number_at(start_ms, interval)
    if last - first + 1 > limit:
        raise UnprocessableError(
            f"From `start_time` to `end_time` (or now) there are {last - first + 1} candles of interval {interval}, "
            f"more than `limit` ({limit}, at most {MOST_CANDLES}). Ask for a shorter range, and page with `end_time`."
        )
    return Window((symbol, interval), first, last)


class Klines:
    """The one source of candles for API callers; belongs to the event loop."""

    def __init__(
        self, *, bybit: Bybit, clock: Clock, pool: Executor, patience_seconds: float = PATIENCE_SECONDS
    ) -> None:
        self._bybit = bybit
        self._clock = clock
        self._pool = pool
        self._patience_seconds = patience_seconds
        self._cache = CandleCache()
        self._flights: defaultdict[Series, list[Flight]] = defaultdict(list)
        self._flying = 0
        self._unknown: dict[str, float] = {}

    async def rows(self, window: Window) -> bytes:
        """Return the window's candles as a JSON list, newest first.

        Raises UpstreamError (one of its kinds) if some of them are missing and can't be fetched.
        """
        self._check_known(window.series[0])
        known = self._cache.read(window.series, window.first, window.last, self._clock.monotonic())
        missing = [number for number in range(window.first, window.last + 1) if number not in known]
        if missing:
            known |= await self._fetch(window.series, missing)
        found = (known[number].text for number in range(window.last, window.first - 1, -1) if number in known)
        return b"[" + b",".join(text for text in found if text is not None) + b"]"

    def _check_known(self, symbol: str) -> None:
        now = self._clock.monotonic()
        if self._unknown.get(symbol, now) > now:
            raise UnknownPairError(SOURCE, symbol)
        if len(self._unknown) > MOST_UNKNOWN:
            self._unknown.clear()

    async def _fetch(self, series: Series, missing: list[int]) -> dict[int, Cell]:
        """Fetch these candles, together with whoever is fetching some of them already."""
        shared = [flight for flight in self._flights.get(series, ()) if _overlap(flight.window, missing)]
        coming = {number for flight in shared for number in range(flight.window.first, flight.window.last + 1)}
        runs = _runs(number for number in missing if number not in coming)
        tasks = [flight.task for flight in shared] + [self._start(Window(series, *run)).task for run in runs]
        try:
            async with asyncio.timeout(self._patience_seconds):
                # Shielded: a caller who gives up must not end the flight for the others.
                fetched = await asyncio.gather(*(asyncio.shield(task) for task in tasks))
        except TimeoutError as error:
            raise UpstreamTimeoutError(SOURCE, f"no candles within {self._patience_seconds:g} s") from error
        return {number: cell for cells in fetched for number, cell in cells.items()}

    def _start(self, window: Window) -> Flight:
        if self._flying >= MOST_FLIGHTS:
            reason = "too many of this service's own calls are under way"
            raise UpstreamThrottledError(SOURCE, reason, self._clock.now() + timedelta(seconds=OPEN_SECONDS))
        flight = Flight(window, asyncio.create_task(self._fly(window), name=f"candles {window}"))
        self._flights[window.series].append(flight)
        self._flying += 1
        flight.task.add_done_callback(lambda _: self._land(flight))
        return flight

    def _land(self, flight: Flight) -> None:
        self._flying -= 1
        flights = self._flights[flight.window.series]
        flights.remove(flight)
        if not flights:
            del self._flights[flight.window.series]
        if not flight.task.cancelled():
            flight.task.exception()  # seen, also where every caller has gone

    async def _fly(self, window: Window) -> dict[int, Cell]:
        asked = self._clock.monotonic()
        loop = asyncio.get_running_loop()
        try:
            candles = await loop.run_in_executor(self._pool, self._ask, window)
        except UnknownPairError as error:
            self._unknown[error.symbol] = asked + UNKNOWN_SECONDS
            raise
        cells = _cells(window, candles, asked)
        self._cache.write(window.series, cells.items())
        return cells

    def _ask(self, window: Window) -> Candles:
        symbol, interval = window.series
        return self._bybit.klines(
            symbol,
            interval,
            max(0, start_of(window.first, interval)),
            start_of(window.last + 1, interval) - 1,
            window.last - window.first + 1,
            for_caller=True,
        )


def _cells(window: Window, candles: Candles, asked: float) -> dict[int, Cell]:
    """What a reply says about every candle of the window; rows outside it are ignored."""
    interval = window.series[1]
    rows = {number_at(int(row[0]), interval): row for row in candles.rows}
    cells: dict[int, Cell] = {}
    for number in range(window.first, window.last + 1):
        row = rows.get(number)
        text = None if row is None else json.dumps(row, separators=(",", ":")).encode()
        is_final = start_of(number + 1, interval) + SETTLED_MS <= candles.at_ms
        seconds = OPEN_SECONDS if not is_final else FOREVER if text is not None else ABSENT_SECONDS
        cells[number] = Cell(text, asked + seconds)
    return cells


def _overlap(window: Window, missing: list[int]) -> bool:
    return any(window.first <= number <= window.last for number in missing)


def _runs(numbers: Iterable[int]) -> list[tuple[int, int]]:
    """Whole stretches of rising numbers, as (first, last)."""
    runs: list[tuple[int, int]] = []
    for number in numbers:
        if runs and runs[-1][1] == number - 1:
            runs[-1] = (runs[-1][0], number)
        else:
            runs.append((number, number))
    return runs
