"""The market's state: which coins and pairs exist, and what they cost at this moment."""

import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import UTC, datetime

from sandbox import feeds
from sandbox.candles import Candle, History, to_ms

Clock = Callable[[], datetime]
Platform = dict[str, int | str]


def utc_now() -> datetime:
    """The real clock."""
    return datetime.now(UTC)


@dataclass(frozen=True)
class Coin:
    """A coin as CoinMarketCap lists it; `platform` is the chain of a token, `last_updated` None is always now."""

    id: int
    symbol: str
    name: str
    slug: str
    rank: int | None
    active: bool
    supply: float
    max_supply: float | None
    platform: Platform | None
    last_updated: datetime | None
    history: History


@dataclass(frozen=True)
class Pair:
    """A spot pair as Bybit lists it; it costs `rate` times what its history says."""

    symbol: str
    base: str
    quote: str
    history: History
    rate: float = 1.0
    symbol_type: str = ""
    xstock_multiplier: str | None = None

    @property
    def price(self) -> float:
        """The last price in the quote coin."""
        return self.priced(self.history.price)

    def priced(self, price: float) -> float:
        """A price of the history in this pair's quote coin."""
        return price if self.rate == 1.0 else float(f"{price * self.rate:.10g}")


def by_rank(coins: Iterable[Coin]) -> list[Coin]:
    """The best rank first, coins without a rank last."""
    return sorted(coins, key=lambda coin: (coin.rank is None, coin.rank or 0, coin.id))


class Market:
    """Every coin and pair. All methods may be called from any thread while the exchange answers requests.

    A coin is named by its CoinMarketCap id, a pair by its symbol; a coin and its pairs share one price.
    """

    def __init__(self, now: Clock = utc_now) -> None:
        self.now = now
        self.coins: dict[int, Coin] = {}
        self.pairs: dict[str, Pair] = {}
        self._lock = threading.RLock()

    @contextmanager
    def moment(self) -> Iterator[datetime]:
        """Hold the market still and tell what time it is: every price that moves by itself has moved up to then."""
        with self._lock:
            now = self.now()
            listed: list[Coin | Pair] = [*self.coins.values(), *self.pairs.values()]
            for each in listed:
                each.history.advance(to_ms(now))
            yield now

    def add_coin(
        self,
        coin_id: int,
        symbol: str,
        name: str,
        *,
        rank: int | None,
        price: float,
        active: bool = True,
        pair: str | None = None,
        slug: str | None = None,
        supply: float = 1_000_000_000.0,
        max_supply: float | None = None,
        platform: Platform | None = None,
        last_updated: datetime | None = None,
    ) -> None:
        """List a coin at `price` USD, and with `pair` (such as BTCUSDT) on Bybit too.

        An id that is listed already is replaced, and its pairs go with it.
        """
        with self.moment() as now:
            self.remove_coin(coin_id)
            history = History(float(price), to_ms(now))
            slug = slug or name.lower().replace(" ", "-")
            self.coins[coin_id] = Coin(
                coin_id, symbol, name, slug, rank, active, supply, max_supply, platform, last_updated, history
            )
            if pair is not None:
                self.pairs[pair] = Pair(pair, symbol, pair.removeprefix(symbol), history)

    def add_pair(
        self,
        symbol: str,
        base: str,
        quote: str,
        *,
        coin_id: int | None = None,
        rate: float = 1.0,
        price: float = 1.0,
        symbol_type: str = "",
        xstock_multiplier: str | None = None,
    ) -> None:
        """List a pair at `rate` times the price of a coin or, without `coin_id`, at a `price` of its own."""
        with self.moment() as now:
            history = History(float(price), to_ms(now)) if coin_id is None else self.coins[coin_id].history
            self.pairs[symbol] = Pair(symbol, base, quote, history, rate, symbol_type, xstock_multiplier)

    def remove_coin(self, coin_id: int) -> None:
        """Delist a coin and its pairs; one that is not listed is fine."""
        with self._lock:
            coin = self.coins.pop(coin_id, None)
            for pair in [pair for pair in self.pairs.values() if coin and pair.history is coin.history]:
                self.remove_pair(pair.symbol)

    def remove_pair(self, symbol: str) -> None:
        """Delist a pair; one that is not listed is fine."""
        with self._lock:
            self.pairs.pop(symbol, None)

    def set_price(self, listed: int | str, price: float, last_updated: datetime | None = None) -> None:
        """A trade at this price, now; `last_updated` None: CoinMarketCap always says the price is from just now.

        Ends a replay or a walk. KeyError: no such coin or pair.
        """
        with self.moment() as now:
            history = self._history(listed)
            history.follow(())
            history.trade(to_ms(now), float(price))
            if isinstance(listed, int):
                self.coins[listed] = replace(self.coins[listed], last_updated=last_updated)

    def load_candles(self, listed: int | str, candles: Iterable[Candle]) -> None:
        """Give a coin or pair a past, in one-minute candles; the last close becomes its price."""
        with self.moment() as now:
            self._history(listed).load(candles, to_ms(now))

    def replay(self, listed: int | str, candles: list[Candle], speed: float = 60.0) -> None:
        """From now on the price follows these candles, `speed` times as fast as they were recorded."""
        with self.moment() as now:
            self._history(listed).follow(feeds.replay(candles, to_ms(now), speed))

    def walk(self, listed: int | str, step: float = 0.001, seed: int = 7, every_seconds: float = 1.0) -> None:
        """From now on the price walks at random: the same seed and start walk the same way.

        It moves by about `step` of itself each `every_seconds` of the market's clock.
        """
        with self.moment() as now:
            history = self._history(listed)
            history.follow(feeds.walk(history.price, to_ms(now), step, seed, round(every_seconds * 1000)))

    def worth(self) -> float:
        """What all the coins are worth together, in USD."""
        return sum(coin.history.price * coin.supply for coin in self.coins.values())

    def _history(self, listed: int | str) -> History:
        return self.coins[listed].history if isinstance(listed, int) else self.pairs[listed].history
