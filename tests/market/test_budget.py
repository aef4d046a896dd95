"""Bybit's limits: never more than the budget, ten minutes of silence after a ban, and waiting as long as it says."""

import threading

import pytest

from app.errors import UpstreamBlockedError, UpstreamError, UpstreamThrottledError
from app.market.budget import MOST_FOR_CALLERS, MOST_REQUESTS, WINDOW_SECONDS, RequestBudget
from sandbox.exchange import Exchange
from sandbox.faults import Fault
from tests.market.support import CANDLES, SNAPSHOT, MarketCaller
from tests.support import ManualClock

BYBITS_OWN_LIMIT = 600


def spent(budget: RequestBudget, *, for_caller: bool) -> int:
    """Spend until refused."""
    count = 0
    try:
        while True:
            budget.spend(for_caller=for_caller)
            count += 1
    except UpstreamThrottledError:
        return count


def test_no_window_of_five_seconds_holds_more_than_the_budget(clock: ManualClock) -> None:
    budget = RequestBudget("bybit", clock)
    granted: list[float] = []
    for _ in range(200):
        granted += [clock.monotonic()] * spent(budget, for_caller=False)
        clock.advance(0.173)
    most = max(sum(at <= moment < at + WINDOW_SECONDS for moment in granted) for at in granted)
    assert most == MOST_REQUESTS < BYBITS_OWN_LIMIT


def test_threads_share_one_budget(clock: ManualClock) -> None:
    budget = RequestBudget("bybit", clock)
    counts: list[int] = []
    threads = [threading.Thread(target=lambda: counts.append(spent(budget, for_caller=False))) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sum(counts) == MOST_REQUESTS


def test_callers_leave_some_for_alerts_and_are_told_when_to_come_back(clock: ManualClock) -> None:
    budget = RequestBudget("bybit", clock)
    assert spent(budget, for_caller=True) == MOST_FOR_CALLERS
    clock.advance(2)
    assert spent(budget, for_caller=False) == MOST_REQUESTS - MOST_FOR_CALLERS
    with pytest.raises(UpstreamThrottledError) as refused:
        budget.spend(for_caller=False)
    assert refused.value.retry_at is not None
    assert (refused.value.retry_at - clock.now()).total_seconds() == WINDOW_SECONDS - 2


def test_a_longer_silence_is_not_cut_short(clock: ManualClock) -> None:
    budget = RequestBudget("bybit", clock)
    budget.silence(600, lambda until: UpstreamThrottledError("bybit", "ban", until))
    budget.silence(2, lambda _: UpstreamBlockedError("bybit", "block"))
    clock.advance(599)
    with pytest.raises(UpstreamThrottledError, match="ban"):
        budget.spend(for_caller=False)
    clock.advance(1)
    budget.spend(for_caller=False)


def test_candles_beyond_the_budget_are_a_503_with_the_time_to_wait(market: MarketCaller, exchange: Exchange) -> None:
    bybit = market.data.bybit
    for _ in range(MOST_FOR_CALLERS):
        bybit.klines("BTCUSDT", "1", 0, 60_000, 1, for_caller=True)
    answer = market.get(CANDLES, symbol="BTCUSDT", interval="1")
    assert answer.status_code == 503
    assert 1 <= int(answer.headers["Retry-After"]) <= 5
    assert len(exchange.asked("/kline")) == MOST_FOR_CALLERS
    assert market.get(SNAPSHOT).status_code == 200


def test_a_ban_silences_every_call_for_ten_minutes(
    market: MarketCaller, exchange: Exchange, clock: ManualClock
) -> None:
    exchange.faults.add("/v5/", Fault.too_frequent(), times=1)
    assert market.get(CANDLES, symbol="BTCUSDT", interval="1").headers["Retry-After"] == "600"
    clock.advance(599)
    assert market.get(CANDLES, symbol="ETHUSDT", interval="5").status_code == 503
    assert market.get(SNAPSHOT).status_code == 503
    assert len(exchange.asked("/v5/")) == 1
    clock.advance(1)
    assert market.get(CANDLES, symbol="BTCUSDT", interval="1").status_code == 200
    clock.advance(5)  # the pause after the snapshot's own failure
    assert market.get(SNAPSHOT).status_code == 200


@pytest.mark.parametrize(("offset_ms", "seconds"), [(1500, 1.5), (-10_000, 0.0), (10**9, 60.0), (None, 2.0)])
def test_a_rate_limit_lasts_as_long_as_it_says(
    market: MarketCaller, exchange: Exchange, clock: ManualClock, offset_ms: int | None, seconds: float
) -> None:
    """A reset in the past is none, one far away is not believed, and the header may be missing."""
    reset = (
        {}
        if offset_ms is None
        else {"X-Bapi-Limit-Reset-Timestamp": str(round(clock.now().timestamp() * 1000) + offset_ms)}
    )
    exchange.faults.add("/tickers", Fault.bybit(10006, headers=reset), times=1)
    bybit = market.data.bybit
    with pytest.raises(UpstreamThrottledError) as refused:
        bybit.tickers()
    assert refused.value.retry_at is not None
    assert (refused.value.retry_at - clock.now()).total_seconds() == seconds
    if seconds:
        clock.advance(seconds - 0.1)
        with pytest.raises(UpstreamError):
            bybit.tickers()
        assert len(exchange.asked("/tickers")) == 1
    clock.advance(0.2)
    assert bybit.tickers()
