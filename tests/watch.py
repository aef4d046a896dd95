"""The watching half of the service, driven by hand: polls and candles by a clock that a test moves."""

from contextlib import AbstractContextManager, ExitStack, closing
from typing import Self

from bson import ObjectId

from app.alerting.candles_first import CandlesFirst
from app.alerting.catch_up import CatchUp
from app.config import Settings
from app.database import alerts
from app.database.client import SyncDB
from app.errors import UpstreamError
from app.market.bybit import Bybit
from app.market.coinmarketcap import CoinMarketCap
from app.market.credits import Credits
from app.market.meter import Meter
from app.models import Direction
from app.ticker import Ticker
from sandbox.exchange import Exchange
from tests.support import ManualClock, make_settings


class Watch(AbstractContextManager["Watch"]):
    """One process that polls and follows candles; `restart` is its crash and its successor."""

    def __init__(self, exchange: Exchange, database: SyncDB, clock: ManualClock, poll_seconds: float = 20.0) -> None:
        self.settings: Settings = make_settings(poll_seconds=poll_seconds)
        self.fired = 0
        self._database = database
        self._clock = clock
        self._stack = ExitStack()
        self._coinmarketcap = self._stack.enter_context(
            closing(CoinMarketCap(base_url=exchange.url, api_key="", clock=clock))
        )
        self._bybit = self._stack.enter_context(
            closing(Bybit(base_url=exchange.url, clock=clock, meter=Meter("bybit", clock)))
        )
        self.restart()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._catch_up.close()
        self._stack.close()

    def restart(self) -> None:
        """Begin with nothing in memory. The predecessor's leases have run out or are given back."""
        self._database.leases.delete_many({})
        candles_first = CandlesFirst(database=self._database, clock=self._clock)
        self._ticker = Ticker(
            settings=self.settings,
            database=self._database,
            client=self._coinmarketcap,
            credits_of_key=Credits(clock=self._clock, meter=Meter("coinmarketcap", self._clock)),
            clock=self._clock,
            candles_first=candles_first,
        )
        self._catch_up = CatchUp(
            settings=self.settings,
            database=self._database,
            bybit=self._bybit,
            clock=self._clock,
            candles_first=candles_first,
        )

    def poll(self) -> None:
        """What the scheduler does every `poll_seconds`."""
        self.fired += self._ticker.poll()

    def follow_candles(self) -> None:
        """What the candle thread does every second; Bybit may fail."""
        try:
            self.fired += self._catch_up.run()
        except UpstreamError:
            return

    def run(self, minutes: int) -> None:
        """Watch for a while."""
        for _ in range(minutes * 3):
            self._clock.advance(20)
            self.poll()
            self.follow_candles()

    def arm(self, target: float, coin_id: int = 1, direction: Direction = "above", *, touch: bool = True) -> ObjectId:
        """Set an alert right now."""
        alert = alerts.new_alert(
            user_id=ObjectId(),
            email="somebody@example.com",
            coin={"_id": coin_id, "symbol": "X"},
            target=target,
            direction=direction,
            touch=touch,
            current_price=1.0,
            now=self._clock.now(),
        )
        self._database.alerts.insert_one(alert)
        made: ObjectId = alert["_id"]
        return made
