"""The whole object against recorded figures: real coins and pair names, Bybit's testnet, and rows that are broken.

What is expected is computed here, in decimals, by code of its own. Where the figures come from: tests/data/README.md.
"""

import json
import re
from collections.abc import Callable, Iterable
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest

from sandbox.exchange import Exchange
from sandbox.faults import JSON, Fault
from tests.market.support import LISTINGS_PATH, ONE_EACH, MarketCaller, upstream_calls

Row = dict[str, Any]
Change = Callable[[Row], Any]

DATA = Path(__file__).parents[1] / "data"
QUOTE_COINS = re.compile("(USDT|USDC|USDE|USD1|RLUSD|XUSD|EUR|BRL|TRY|PLN|DAI|MNT|BTC|ETH|SOL)$")
STOCK = re.compile("(AAPL|AMZN|COIN|CRCL|GOOGL|HOOD|MCD|META|NVDA|TSLA)XUSDT")
NO_COINS = {"xstocks", "commodity", "stock", "forex"}
SHARES = ("1", "1.03", "0.97", "1.08", "0.92")
"""Of CoinMarketCap's price: Bybit's. The first three are close enough."""
COIN_FIELDS = ("coinName", "coinLogoURL", "marketCapUSD", "marketCapRank")
PAGE = 5000


def recorded(name: str) -> Any:
    return json.loads((DATA / name).read_text())


def columns(name: str) -> list[Row]:
    table = recorded(name)
    return [dict(zip(table["columns"], row, strict=True)) for row in table["rows"]]


def recorded_coins() -> list[Row]:
    return columns("coinmarketcap_listings_20210629.json")


def listing(coin: Row) -> Row:
    """The coin as v3 listings tell it."""
    figures = {name: coin.get(name) for name in ("price", "volume_24h", "percent_change_24h", "market_cap")}
    in_usd = {"id": 2781, "symbol": "USD", **figures, "tvl": None, "last_updated": "2021-06-29T00:23:02.000Z"}
    names = {name: coin[name] for name in ("id", "name", "symbol", "cmc_rank")}
    return {**names, "slug": str(coin["id"]), "tags": [], "platform": None, "quote": [in_usd]}


def instrument(symbol: str, base: str, quote: str = "USDT", kind: str = "") -> Row:
    names = {"symbol": symbol, "baseCoin": base, "quoteCoin": quote}
    return {"symbolId": 9, **names, "innovation": "0", "status": "Trading", "symbolType": kind}


def ticker(symbol: str, price: str, change: str = "0.0068", volume: str = "797.5") -> Row:
    figures = {"lastPrice": price, "price24hPcnt": change, "volume24h": volume}
    return {"symbol": symbol, "bid1Price": "", "ask1Price": "0", **figures, "usdIndexPrice": ""}


def text(number: Decimal) -> str:
    return format(number, "f")


def is_near(coin: Row, price: Decimal) -> bool:
    return abs(Decimal(str(coin["price"])) - price) <= price * Decimal("0.05")


def expected(instruments: Iterable[Row], tickers: Iterable[Row], coins: list[Row]) -> dict[str, Row]:
    """What the endpoint must say of these figures, as far as they are sound."""
    told = {row["symbol"]: row for row in tickers}
    pairs = {}
    for row in instruments:
        if row["quoteCoin"] != "USDT" or row.get("symbolType") in NO_COINS:
            continue
        figures = told.get(row["symbol"], {"lastPrice": ""})
        price = Decimal(figures["lastPrice"] or 0)
        shared = [coin for coin in coins if coin["symbol"].upper() == row["baseCoin"].upper()]
        near = sorted((coin for coin in shared if is_near(coin, price)), key=lambda coin: coin["cmc_rank"] or 10**9)
        coin = near[0] if near else None
        pairs[row["symbol"]] = {
            "coinName": coin and coin["name"],
            "currentPrice": figures["lastPrice"] if price else None,
            "priceChange24hPcnt": figures.get("price24hPcnt"),
            "volume24h": figures.get("volume24h"),
            "coinLogoURL": coin and f"https://s2.coinmarketcap.com/static/img/coins/64x64/{coin['id']}.png",
            "marketCapUSD": coin and coin["market_cap"],
            "marketCapRank": coin and coin["cmc_rank"],
        }
    return pairs


def split(name: str) -> tuple[str, str, str, str]:
    """A real pair's name, base coin, quote coin and kind; nothing in the recording is ambiguous."""
    base, quote, _ = QUOTE_COINS.split(name)
    return name, base, quote, "xstocks" if STOCK.fullmatch(name) else ""


def namesakes() -> list[Row]:
    """Coins that share a ticker: ranked above the recorded one at three times its price, or below it at its price."""
    best = {coin["symbol"]: coin for coin in reversed(recorded_coins())}
    found = []
    for index, row in enumerate(columns("coinmarketcap_namesakes_20230223.json")):
        other = best[row["symbol"]]
        factor, rank = ((3, other["cmc_rank"] - 1), (1, None), (1, other["cmc_rank"] + 1))[index % 3]
        figures = {"price": other["price"] * factor, "market_cap": 1.5e9, "cmc_rank": rank}
        found.append({"id": row["id"], "name": row["name"], "symbol": row["symbol"], **figures})
    return found


def bybit_market() -> tuple[list[Row], list[Row]]:
    """All real pairs, at prices that follow CoinMarketCap's where the coin was known in 2021, and some others."""
    best = {coin["symbol"].upper(): coin for coin in reversed(recorded_coins())}
    # Neither by how it ends: the first is a coin against USDT, the second one against a coin called TUSDT.
    odd = [instrument("SOL-TETHER", "SOL"), instrument("ADATUSDT", "ADA", "TUSDT")]
    real = [instrument(*split(name)) for name in recorded("bybit_spot_names_20260211.json")]
    others = [instrument(f"{base}USDT", base) for base in ("LYXE", "KIN", "SAFEMOON", "REV", "DG")]
    instruments = [*real, *odd, *others, instrument("GOLDUSDT", "GOLD", kind="commodity")]
    for index, row in enumerate(instruments):
        row["symbolType"] = row["symbolType"] or ("", "", "innovation", "adventure")[index % 4]
    tickers = [priced(row, best.get(row["baseCoin"].upper()), index) for index, row in enumerate(instruments)]
    return instruments, [row for index, row in enumerate(tickers) if index % 25 != 24][::-1]


def priced(pair: Row, coin: Row | None, index: int) -> Row:
    price = text(Decimal(index + 1) / 8)
    if coin:
        price = text(Decimal(str(coin["price"])) * Decimal(SHARES[index % 5]))
    if index % 50 in (12, 37):
        price = "" if index % 50 == 12 else "0"
    change = text((Decimal(str(coin["percent_change_24h"] if coin else 0)) / 100).quantize(Decimal("0.0001")))
    return ticker(pair["symbol"], price, change, text(Decimal(str(coin["volume_24h"] if coin else index))))


def rows_of_bybit(rows: list[Any]) -> Fault:
    result = {"category": "spot", "list": rows}
    return Fault.changed(lambda body: body | {"result": result})


def page_of_listings(rows: list[Any]) -> Fault:
    return Fault.changed(lambda body: body | {"data": rows})


def serve_figures(exchange: Exchange, instruments: list[Any], tickers: list[Any], *pages: list[Any]) -> None:
    """Make both upstreams say these rows; listings page by page, in the order in which they are asked for."""
    exchange.faults.add("instruments-info", rows_of_bybit(instruments))
    exchange.faults.add("tickers", rows_of_bybit(tickers))
    for page in pages:
        exchange.faults.add(LISTINGS_PATH, page_of_listings(page), times=1)


def small_market() -> tuple[list[Row], list[Row], list[Row]]:
    """Forty real coins, each with a pair at its own price."""
    coins = recorded_coins()[:40]
    tickers = [ticker(f"{coin['symbol']}USDT", text(Decimal(str(coin["price"])))) for coin in coins]
    return [instrument(f"{coin['symbol']}USDT", coin["symbol"]) for coin in coins], tickers, coins


def assert_same(joined: dict[str, Row], truth: dict[str, Row]) -> None:
    assert joined == truth
    assert json.dumps(joined, sort_keys=True) == json.dumps(truth, sort_keys=True), "true is not 1"


def matched(pairs: dict[str, Row]) -> set[str]:
    return {pair for pair, row in pairs.items() if row["coinName"] is not None}


def test_every_real_pair_and_every_figure(market: MarketCaller, exchange: Exchange) -> None:
    shared = namesakes()
    coins = [*shared[:12], *recorded_coins(), *shared[12:]]
    instruments, tickers = bybit_market()
    serve_figures(exchange, instruments, tickers, [listing(coin) for coin in coins])
    joined = market.snapshot()
    truth = expected(instruments, tickers, coins)
    assert_same(joined, truth)
    assert (len(joined), len(matched(joined)), len(coins)) == (470, 60, 174)
    assert list(joined) == sorted(joined)
    assert matched(joined) >= {"LYXEUSDT", "KINUSDT", "DGUSDT"}, "LYXe, a price of 4.344771474e-05, one of two DGs"
    assert joined.keys() >= {"AVAXUSDT", "TRXUSDT", "XUSDT", "HUSDT", "1INCHUSDT", "SOL-TETHER", "ELONUSDT"}
    assert not joined.keys() & {"AAPLXUSDT", "NVDAXUSDT", "GOLDUSDT", "ADATUSDT", "ADAUSDC", "BTCXUSD", "HMNT"}
    assert upstream_calls(exchange) == ONE_EACH


def test_one_pair_spelt_out(market: MarketCaller, exchange: Exchange) -> None:
    instruments, tickers, coins = small_market()
    serve_figures(exchange, instruments, tickers, [listing(coin) for coin in coins])
    joined = market.snapshot()
    assert_same(joined, expected(instruments, tickers, coins))
    assert len(matched(joined)) == 40
    assert joined["BTCUSDT"] == {
        "coinName": "Bitcoin",
        "currentPrice": "34639.39567221676",
        "priceChange24hPcnt": "0.0068",
        "volume24h": "797.5",
        "coinLogoURL": "https://s2.coinmarketcap.com/static/img/coins/64x64/1.png",
        "marketCapUSD": 649289249853.1792,
        "marketCapRank": 1,
    }
    parts = market.snapshot(symbols="ETHUSDT", fields="marketCapUSD,coinName")
    assert parts == {"ETHUSDT": {"coinName": "Ethereum", "marketCapUSD": 244930214230.4319}}


def test_the_testnets_rows_as_they_were(market: MarketCaller, exchange: Exchange) -> None:
    """Its prices are fiction: hardly any is near the coin's. Bids of "" and "0", leveraged tokens, volumes of "0"."""
    testnet, coins = recorded("bybit_spot_testnet_20230307.json"), recorded_coins()
    instruments, tickers = testnet["instruments"], testnet["tickers"]
    serve_figures(exchange, instruments, tickers, [listing(coin) for coin in coins])
    joined = market.snapshot()
    assert_same(joined, expected(instruments, tickers, coins))
    assert (len(joined), matched(joined)) == (47, {"NEARUSDT"})
    assert joined["NEARUSDT"]["currentPrice"] == "2"
    assert joined["BTC3LUSDT"]["currentPrice"] == "69.6969"
    assert joined["BTCUSDT"] == {
        "coinName": None,
        "currentPrice": "22418.78",
        "priceChange24hPcnt": "0.0037",
        "volume24h": "3210.626453",
        "coinLogoURL": None,
        "marketCapUSD": None,
        "marketCapRank": None,
    }
    assert "ANKRUSDT" not in joined, "its ticker was recorded, its instrument was not"


@pytest.mark.parametrize(
    ("base", "price", "name"),
    [
        ("REV", "0.0080", "Revain"),
        ("REV", "0.1700", "RChain"),
        ("REV", "0.0800", None),
        ("DG", "115.4", "Decentral Games"),
        ("DG", "0.26", "DeGate"),
        ("DG", "57.8", None),
    ],
)
def test_real_namesakes_are_told_apart_by_price(
    market: MarketCaller, exchange: Exchange, base: str, price: str, name: str | None
) -> None:
    """Each ticker is that of two coins in CoinMarketCap's listings of one day."""
    instruments, tickers = [instrument(f"{base}USDT", base), instrument("BTCUSDT", "BTC")], [ticker("BTCUSDT", "34700")]
    tickers.append(ticker(f"{base}USDT", price))
    serve_figures(exchange, instruments, tickers, [listing(coin) for coin in recorded_coins()])
    joined = market.snapshot()
    assert_same(joined, expected(instruments, tickers, recorded_coins()))
    assert joined[f"{base}USDT"]["coinName"] == name


@pytest.mark.parametrize("code", ['"error_code":"0",', '"error_code":0,', ""])
def test_a_tiny_price_in_exponent_form_and_every_form_of_no_error(
    market: MarketCaller, exchange: Exchange, code: str
) -> None:
    """As it stood in the reply: Dogelon Mars at 6.315931e-8."""
    dogelon = next(coin for coin in recorded_coins() if coin["symbol"] == "ELON")
    body = json.dumps([listing(dogelon)]).replace("6.315931e-08", "6.315931e-8")
    assert "6.315931e-8" in body
    status = f'{{"timestamp":"2021-06-29T00:23:45.130Z",{code}"error_message":"","elapsed":1,"credit_count":1}}'
    serve_figures(exchange, [instrument("ELONUSDT", "ELON")], [ticker("ELONUSDT", "0.00000006315931")])
    exchange.faults.add(LISTINGS_PATH, Fault.answer(200, f'{{"status":{status},"data":{body}}}', JSON))
    row = market.snapshot()["ELONUSDT"]
    assert (row["coinName"], row["currentPrice"]) == ("Dogelon Mars", "0.00000006315931")
    assert (row["marketCapUSD"], row["marketCapRank"]) == (30750185.92069111, 509)


def quote(**figures: Any) -> Change:
    return lambda row: row | {"quote": [row["quote"][0] | figures]}


def fields(**changed: Any) -> Change:
    return lambda row: row | changed


def without(name: str) -> Change:
    return lambda row: {key: value for key, value in row.items() if key != name}


NO_COIN: list[Change] = [
    quote(price=None),
    quote(price=0),
    quote(price=-1.0),
    quote(price=True),
    quote(price="1.5"),
    quote(price=float("nan")),
    quote(price=float("inf")),
    quote(price=10**400),
    quote(symbol="EUR"),
    quote(symbol=None),
    fields(quote=[]),
    fields(quote=None),
    fields(quote=[None, 7, "USD"]),
    lambda row: row | {"quote": {"USD": row["quote"][0]}},  # as v1 and v2 have it
    lambda row: row | {"quote": row["quote"] * 2},
    without("quote"),
    without("id"),
    fields(id="1"),
    fields(id=0),
    fields(id=None),
    fields(name=None),
    fields(name=["Bitcoin"]),
    fields(symbol=None),
    fields(symbol=["BTC"]),
    without("symbol"),
    lambda row: None,
    lambda row: [row],
    lambda row: "Bitcoin",
    lambda row: 7,
    lambda row: {},
]
BAD_CAPS: list[Any] = [None, "1e9", -1, float("nan"), float("inf"), []]
NO_CAP: list[Change] = [quote(market_cap=cap) for cap in BAD_CAPS]
BAD_RANKS: list[Any] = [None, "5", 0, -1, 2.5, True, 10**400]
NO_RANK: list[Change] = [without("cmc_rank"), *(fields(cmc_rank=rank) for rank in BAD_RANKS)]


@pytest.mark.parametrize(
    ("changes", "lost"),
    [(NO_COIN, COIN_FIELDS), (NO_CAP, ["marketCapUSD"]), (NO_RANK, ["marketCapRank"])],
    ids=["no coin", "no cap", "no rank"],
)
def test_a_broken_listing_costs_its_own_figures_and_no_others(
    market: MarketCaller, exchange: Exchange, changes: list[Change], lost: list[str]
) -> None:
    instruments, tickers, coins = small_market()
    rows = [listing(coin) for coin in coins]
    truth = expected(instruments, tickers, coins)
    for place, change in enumerate(changes, start=3):
        rows[place] = change(rows[place])
        truth[f"{coins[place]['symbol']}USDT"] |= dict.fromkeys(lost)
    serve_figures(exchange, instruments, tickers, rows)
    assert_same(market.snapshot(), truth)
    assert market.get("/health").json()["upstreams"]["coinmarketcap"]["last_error"] is None


def test_caps_of_zero_and_whole_numbers_are_kept(market: MarketCaller, exchange: Exchange) -> None:
    instruments, tickers, coins = small_market()
    coins[3] |= {"market_cap": 0}
    coins[4] |= {"market_cap": 42785558725}
    serve_figures(exchange, instruments, tickers, [listing(coin) for coin in coins])
    assert_same(market.snapshot(), expected(instruments, tickers, coins))


def test_broken_rows_of_bybit_cost_no_other_pair(market: MarketCaller, exchange: Exchange) -> None:
    instruments, tickers, coins = small_market()
    truth = expected(instruments, tickers, coins)
    for place, change in enumerate(("", None, "n/a"), start=5):
        tickers[place]["price24hPcnt"] = change
        truth[tickers[place]["symbol"]]["priceChange24hPcnt"] = None
    tickers[8] |= {"volume24h": 5}
    truth[tickers[8]["symbol"]]["volume24h"] = None
    for place, price in enumerate(("NaN", None), start=9):
        tickers[place]["lastPrice"] = price
        truth[tickers[place]["symbol"]] |= dict.fromkeys(("currentPrice", *COIN_FIELDS))
    stray: list[Any] = [None, 7, "BTCUSDT", [], {}, {"symbol": None}, ticker("CANDYUSDT", "1")]
    broken = [instruments[0] | {"symbol": None}, instrument("AUSDT", "A") | {"baseCoin": 1}, {"symbol": "BUSDT"}]
    rows: list[Any] = [None, 7, "BTCUSDT", [], {}, *broken, *instruments]
    serve_figures(exchange, rows, [*stray, *tickers, *stray], [listing(coin) for coin in coins])
    assert_same(market.snapshot(), truth)


@pytest.mark.parametrize("cap", [10**400, True], ids=["too big", "true"])
def test_a_cap_that_is_no_number_of_dollars_is_null(market: MarketCaller, exchange: Exchange, cap: Any) -> None:
    instruments, tickers, coins = small_market()
    truth = expected(instruments, tickers, coins)
    truth["BTCUSDT"]["marketCapUSD"] = None
    coins[0]["market_cap"] = cap
    serve_figures(exchange, instruments, tickers, [listing(coin) for coin in coins])
    assert_same(market.snapshot(), truth)


def test_half_a_character_in_a_coins_name_harms_no_other_coin(market: MarketCaller, exchange: Exchange) -> None:
    """JSON may write one half of a pair of surrogates, which UTF-8 has no bytes for."""
    instruments, tickers, coins = small_market()
    truth = expected(instruments, tickers, coins)
    coins[0]["name"] = "Bit\ud83dcoin"
    serve_figures(exchange, instruments, tickers, [listing(coin) for coin in coins])
    assert_same({**market.snapshot(), "BTCUSDT": {}}, {**truth, "BTCUSDT": {}})


def test_spaces_around_a_coins_ticker_are_no_part_of_it(market: MarketCaller, exchange: Exchange) -> None:
    instruments, tickers, coins = small_market()
    truth = expected(instruments, tickers, coins)
    coins[0]["symbol"] = " BTC "
    serve_figures(exchange, instruments, tickers, [listing(coin) for coin in coins])
    assert_same(market.snapshot(), truth)


@pytest.mark.parametrize(
    ("instruments", "tickers"),
    [
        ([instrument("AUSDT", "A") | {"symbolType": ["xstocks"]}], []),
        ([instrument("AUSDT", "A") | {"status": {}}], []),
        ([], [ticker("AUSDT", "1") | {"symbol": ["AUSDT"]}]),
        ([instrument("A\ud83dUSDT", "A\ud83d")], []),
    ],
    ids=["list of kinds", "object of status", "list of names", "half a character"],
)
def test_a_pair_in_another_shape_costs_no_other_pair(
    market: MarketCaller, exchange: Exchange, instruments: list[Row], tickers: list[Row]
) -> None:
    good, prices, coins = small_market()
    serve_figures(exchange, [*instruments, *good], [*tickers, *prices], [listing(coin) for coin in coins])
    joined, truth = market.snapshot(), expected(good, prices, coins)
    assert_same({pair: joined[pair] for pair in truth}, truth)


def test_listings_on_two_pages(market: MarketCaller, exchange: Exchange) -> None:
    """Every other coin stands on the second page; one has slipped from the first to the second meanwhile."""
    instruments, tickers, coins = small_market()
    rows = [listing(coin) for coin in coins]
    filler = {"price": 1.0, "market_cap": 1.0, "cmc_rank": 700}
    fillers = [
        listing({"id": 100_000 + number, "name": "Filler", "symbol": f"F{number}", **filler})
        for number in range(PAGE - 20)
    ]
    serve_figures(exchange, instruments, tickers, [*rows[::2], *fillers], [rows[38], *rows[1::2]])
    joined = market.snapshot()
    assert_same(joined, expected(instruments, tickers, coins))
    assert len(matched(joined)) == 40
    asked = [request.params for request in exchange.asked(LISTINGS_PATH)]
    assert [(params["start"], params["limit"]) for params in asked] == [("1", "5000"), ("5001", "5000")]
