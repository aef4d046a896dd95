"""The join, against figures that are computed here from the sandbox's own state."""

from typing import Any

import pytest

from app.errors import UpstreamError
from app.market.aggregated import bybit_figures, join, match_coins
from app.market.coinmarketcap_rows import Listing
from sandbox.bybit import plain
from sandbox.exchange import Exchange
from tests.market.conftest import Serve
from tests.market.support import LISTINGS_PATH, MarketCaller

UNISWAP, UNI_ON_SUI = 7083, 33433
LOGO = "https://s2.coinmarketcap.com/static/img/coins/64x64/{}.png"


def expected(exchange: Exchange) -> dict[str, Any]:
    """What the service should say, from what the sandbox is made of."""
    coins = {coin.history: coin for coin in exchange.market.coins.values()}
    rows = {}
    for pair in exchange.market.pairs.values():
        if pair.quote != "USDT" or pair.symbol_type:
            continue
        coin = coins.get(pair.history)
        rows[pair.symbol] = {
            "coinName": coin.name if coin else None,
            "currentPrice": plain(pair.price),
            "priceChange24hPcnt": "0",
            "volume24h": "0",
            "coinLogoURL": LOGO.format(coin.id) if coin else None,
            "marketCapUSD": coin.history.price * coin.supply if coin else None,
            "marketCapRank": coin.rank if coin else None,
        }
    return rows


def test_every_pair_is_joined_as_computed_independently(market: MarketCaller, exchange: Exchange) -> None:
    joined = market.snapshot()
    assert joined == expected(exchange)
    assert len(joined) == 29
    assert list(joined) == sorted(joined)


def test_pairs_are_told_by_their_quote_coin_and_kind(market: MarketCaller, exchange: Exchange) -> None:
    exchange.market.add_pair("FOOUSDT", "FOOUSD", "T", price=1)  # ends in USDT, quoted in T
    exchange.market.add_pair("NEWUSDT", "NEW", "USDT", price=1, symbol_type="innovation")
    exchange.market.add_pair("ZONEUSDT", "ZONE", "USDT", price=1, symbol_type="adventure")
    exchange.market.add_pair("GOLDUSDT", "GOLD", "USDT", price=1, symbol_type="commodity")
    joined = market.snapshot()
    assert {"NEWUSDT", "ZONEUSDT", "XUSDT"} <= joined.keys()
    assert not {"FOOUSDT", "GOLDUSDT", "AAPLXUSDT", "BTCEUR", "ETHBTC"} & joined.keys()
    assert joined["XUSDT"]["coinName"] is None


def test_of_namesakes_the_one_with_bybits_price_is_meant(market: MarketCaller, exchange: Exchange) -> None:
    exchange.market.remove_pair("UNIUSDT")
    exchange.market.add_pair("UNIUSDT", "UNI", "USDT", coin_id=UNI_ON_SUI)
    assert market.snapshot()["UNIUSDT"]["coinLogoURL"] == LOGO.format(UNI_ON_SUI)


def test_the_better_ranked_namesake_is_not_taken_for_its_rank(market: MarketCaller, exchange: Exchange) -> None:
    exchange.market.remove_pair("UNIUSDT")
    exchange.market.add_pair("UNIUSDT", "UNI", "USDT", price=0.5)
    row = market.snapshot()["UNIUSDT"]
    assert row["currentPrice"] == "0.5"
    assert [row[name] for name in ("coinName", "coinLogoURL", "marketCapUSD", "marketCapRank")] == [None] * 4


@pytest.mark.parametrize(("price", "is_meant"), [(1.0499, True), (0.9501, True), (1.0501, False), (0.9499, False)])
def test_prices_agree_within_five_percent(price: float, is_meant: bool) -> None:
    figures, bases = bybit_figures([_instrument("ABC")], [_ticker("ABCUSDT", "1")])
    coins = match_coins(figures, bases, [_listing(1, "ABC", price)])
    assert (join(figures, coins)["ABCUSDT"]["coinName"] is not None) == is_meant


def test_of_several_that_agree_the_best_ranked_is_meant() -> None:
    figures, bases = bybit_figures([_instrument("ABC")], [_ticker("ABCUSDT", "1")])
    listings = [
        _listing(1, "ABC", 1.0, rank=None),
        _listing(2, "ABC", 1.01, rank=900),
        _listing(3, "ABC", 1.0, rank=901),
    ]
    assert match_coins(figures, bases, listings)["ABCUSDT"]["coinLogoURL"] == LOGO.format(2)


def test_tickers_of_both_sides_are_compared_without_case() -> None:
    figures, bases = bybit_figures([_instrument("USDE")], [_ticker("USDEUSDT", "0.999")])
    assert match_coins(figures, bases, [_listing(5, "USDe", 1.0)])["USDEUSDT"]["coinName"] == "Coin 5"


def test_a_pair_without_a_price_is_listed_with_nulls_and_harms_no_other() -> None:
    names = [f"C{number}" for number in range(20)]
    tickers = [_ticker(f"{name}USDT", "1") for name in names[1:]] + [_ticker("C0USDT", "")]
    figures, bases = bybit_figures(map(_instrument, names), tickers)
    pairs = join(figures, match_coins(figures, bases, [_listing(1, "C0", 1.0), _listing(2, "C1", 1.0)]))
    assert (pairs["C0USDT"]["currentPrice"], pairs["C0USDT"]["coinName"]) == (None, None)
    assert (pairs["C1USDT"]["currentPrice"], pairs["C1USDT"]["coinName"]) == ("1", "Coin 2")


def test_tickers_are_matched_by_name_and_too_few_are_refused() -> None:
    with pytest.raises(UpstreamError, match="price only 1 of 2"):
        bybit_figures([_instrument("A"), _instrument("B")], [_ticker("BUSDT", "1"), _ticker("CANDYUSDT", "2")])


def test_every_page_is_fetched_that_may_hold_a_pairs_coin(serve: Serve, exchange: Exchange) -> None:
    """6,000 coins are two pages; the coin of one pair stands on the second."""
    market = exchange.market
    rows = {1_000_000 + n: market.coins[1] for n in range(5_960)}
    for coin_id, coin in rows.items():
        market.coins[coin_id] = type(coin)(
            coin_id,
            f"F{coin_id}",
            "Filler",
            "filler",
            40 + coin_id - 1_000_000,
            True,
            1.0,
            None,
            None,
            None,
            coin.history,
        )
    market.add_coin(77, "LATE", "Latecomer", rank=9_000, price=2.0, pair="LATEUSDT")
    with serve() as caller:
        assert caller.snapshot()["LATEUSDT"]["coinName"] == "Latecomer"
    asked = [request.params for request in exchange.asked(LISTINGS_PATH)]
    assert [(params["start"], params["limit"]) for params in asked] == [("1", "5000"), ("5001", "5000")]


def _instrument(base: str) -> dict[str, Any]:
    return {"symbol": f"{base}USDT", "baseCoin": base, "quoteCoin": "USDT", "status": "Trading", "symbolType": ""}


def _ticker(symbol: str, price: str) -> dict[str, Any]:
    return {"symbol": symbol, "lastPrice": price, "price24hPcnt": "0.01", "volume24h": "5"}


def _listing(coin_id: int, symbol: str, price: float, rank: int | None = 7) -> Listing:
    return Listing(coin_id, symbol, f"Coin {coin_id}", rank, price, 1e9)
