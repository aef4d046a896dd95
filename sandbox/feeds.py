"""Where prices that move by themselves come from: ticks in time order, pulled as time passes."""

import math
import random
from collections.abc import Iterator
from itertools import count, pairwise

from sandbox.candles import MINUTE_MS, Candle, Tick


def replay(candles: list[Candle], start_ms: int, speed: float) -> Iterator[Tick]:
    """Candles as four ticks each, from `start_ms` on and `speed` times as fast as they were recorded.

    The order inside a candle is open, low, high, close when it rose and open, high, low, close when it fell.
    """
    span_ms = min((b.start_ms - a.start_ms for a, b in pairwise(candles)), default=MINUTE_MS)
    for candle in candles:
        turns = (candle.low, candle.high) if candle.close >= candle.open else (candle.high, candle.low)
        for quarter, price in enumerate((candle.open, *turns, candle.close)):
            recorded_ms = candle.start_ms - candles[0].start_ms + quarter * span_ms / 4
            yield Tick(start_ms + int(recorded_ms / speed), price, candle.volume / 4)


def walk(price: float, start_ms: int, step: float, seed: int, every_ms: int) -> Iterator[Tick]:
    """An endless random walk: each tick is the last one times e to a normal deviate of width `step`."""
    dice = random.Random(seed)
    for at_ms in count(start_ms + every_ms, every_ms):
        price *= math.exp(dice.gauss(0.0, step))
        yield Tick(at_ms, float(f"{price:.8g}"), round(dice.random(), 4))
