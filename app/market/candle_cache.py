"""Candles that are known already: final ones for as long as there is room, others for as long as they may be shown."""

import math
from collections import OrderedDict
from collections.abc import Iterable
from typing import NamedTuple

BLOCK = 1000
"""Candles are kept and forgotten in blocks of so many."""
MOST_BLOCKS = 250
"""About 60 MB when all are full."""
FOREVER = math.inf

Series = tuple[str, str]
"""A pair and an interval."""


class Cell(NamedTuple):
    """A candle as JSON text, None where Bybit has none; shown until `good_until` on the monotonic clock."""

    text: bytes | None
    good_until: float


class CandleCache:
    """Cells by series and candle number; what was not used for longest makes room."""

    def __init__(self) -> None:
        self._blocks: OrderedDict[tuple[str, str, int], dict[int, Cell]] = OrderedDict()

    def read(self, series: Series, first: int, last: int, now: float) -> dict[int, Cell]:
        """Return the cells from `first` to `last` that may still be shown."""
        found: dict[int, Cell] = {}
        for number in range(first // BLOCK, last // BLOCK + 1):
            block = self._blocks.get((*series, number))
            if block is None:
                continue
            self._blocks.move_to_end((*series, number))
            low, high = max(first, number * BLOCK), min(last, number * BLOCK + BLOCK - 1)
            found |= {
                at: cell
                for at in range(low, high + 1)
                if (cell := block.get(at)) is not None and cell.good_until >= now
            }
        return found

    def write(self, series: Series, cells: Iterable[tuple[int, Cell]]) -> None:
        """Keep the cells."""
        for at, cell in cells:
            key = (*series, at // BLOCK)
            self._blocks.setdefault(key, {})[at] = cell
            self._blocks.move_to_end(key)
        while len(self._blocks) > MOST_BLOCKS:
            self._blocks.popitem(last=False)
