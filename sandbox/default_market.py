"""A market to start with: real coins under their real CoinMarketCap ids, at plausible prices."""

from datetime import UTC, datetime
from typing import NamedTuple

from sandbox.coins import Clock, Market, Platform, utc_now

ETHEREUM: Platform = {"id": 1027, "name": "Ethereum", "symbol": "ETH", "slug": "ethereum"}
SUI_NETWORK: Platform = {
    "id": 176,
    "name": "Sui Network",
    "symbol": "SUI",
    "slug": "sui",
    "token_address": "0x2::uni::UNI",
}


class _Listing(NamedTuple):
    id: int
    symbol: str
    name: str
    slug: str
    price: float
    supply: float
    max_supply: float | None = None
    on_ethereum: bool = False
    on_bybit: bool = True


_BY_RANK = [
    _Listing(1, "BTC", "Bitcoin", "bitcoin", 100_000.0, 20_095_137, 21_000_000),
    _Listing(1027, "ETH", "Ethereum", "ethereum", 3_500.0, 122_116_138.36278665),
    _Listing(825, "USDT", "Tether", "tether", 1.0001, 185e9, on_ethereum=True, on_bybit=False),
    _Listing(52, "XRP", "XRP", "xrp", 2.31, 60e9, 100e9),
    _Listing(1839, "BNB", "BNB", "bnb", 905.5, 137.7e6),
    _Listing(5426, "SOL", "Solana", "solana", 187.42, 552e6),
    _Listing(3408, "USDC", "USDC", "usd-coin", 0.9999, 76e9, on_ethereum=True),
    _Listing(74, "DOGE", "Dogecoin", "dogecoin", 0.19701, 152e9),
    _Listing(1958, "TRX", "TRON", "tron", 0.3071, 94.7e9),
    _Listing(2010, "ADA", "Cardano", "cardano", 0.6512, 36.5e9, 45e9),
    _Listing(1975, "LINK", "Chainlink", "chainlink", 18.05, 697e6, 1e9, on_ethereum=True),
    _Listing(1831, "BCH", "Bitcoin Cash", "bitcoin-cash", 512.7, 20e6, 21e6),
    _Listing(512, "XLM", "Stellar", "stellar", 0.3155, 32e9, 50_001_806_812),
    _Listing(5805, "AVAX", "Avalanche", "avalanche", 20.41, 427e6, 715.7e6),
    _Listing(2, "LTC", "Litecoin", "litecoin", 96.4, 76.5e6, 84e6),
    _Listing(4642, "HBAR", "Hedera", "hedera", 0.1903, 42.5e9, 50e9),
    _Listing(11419, "TON", "Toncoin", "toncoin", 2.22, 2.5e9),
    _Listing(5994, "SHIB", "Shiba Inu", "shiba-inu", 0.00001012, 589e12, on_ethereum=True),
    _Listing(6636, "DOT", "Polkadot", "polkadot-new", 3.08, 1.6e9),
    _Listing(328, "XMR", "Monero", "monero", 338.9, 18.4e6, on_bybit=False),
    _Listing(7083, "UNI", "Uniswap", "uniswap", 6.35, 630e6, 1e9, on_ethereum=True),
    _Listing(4943, "DAI", "Dai", "multi-collateral-dai", 0.9998, 5.4e9, on_ethereum=True),
    _Listing(7278, "AAVE", "Aave", "aave", 227.3, 15.2e6, 16e6, on_ethereum=True),
    _Listing(24478, "PEPE", "Pepe", "pepe", 0.000006952, 420.69e12, 420.69e12, on_ethereum=True),
    _Listing(6535, "NEAR", "NEAR Protocol", "near-protocol", 2.27, 1.2e9),
    _Listing(1321, "ETC", "Ethereum Classic", "ethereum-classic", 15.83, 153e6, 210.7e6),
    _Listing(8916, "ICP", "Internet Computer", "internet-computer", 3.11, 538e6),
    _Listing(3794, "ATOM", "Cosmos", "cosmos", 3.19, 473e6),
    _Listing(4030, "ALGO", "Algorand", "algorand", 0.1824, 8.8e9, 10e9),
    _Listing(2280, "FIL", "Filecoin", "filecoin", 1.63, 696e6, 1.96e9),
]


def default_market(now: Clock = utc_now) -> Market:
    """Thirty coins ranked from 1, two more that are called UNI too, and a few pairs with awkward names."""
    market = Market(now)
    for rank, listing in enumerate(_BY_RANK, start=1):
        market.add_coin(
            listing.id,
            listing.symbol,
            listing.name,
            slug=listing.slug,
            rank=rank,
            price=listing.price,
            supply=listing.supply,
            max_supply=listing.max_supply,
            platform={**ETHEREUM, "token_address": f"0x{listing.id:040x}"} if listing.on_ethereum else None,
            pair=f"{listing.symbol}USDT" if listing.on_bybit else None,
        )
    _add_namesakes(market)
    _add_awkward_pairs(market)
    return market


def _add_namesakes(market: Market) -> None:
    market.add_coin(33433, "UNI", "UNI", slug="uni-sui", rank=3170, price=3.1e-7, platform=SUI_NETWORK)
    last_trade = datetime(2018, 3, 1, tzinfo=UTC)
    market.add_coin(126, "UNI", "UniteCoin", rank=None, price=0.0002, active=False, last_updated=last_trade)


def _add_awkward_pairs(market: Market) -> None:
    market.add_pair("BTCEUR", "BTC", "EUR", coin_id=1, rate=0.86)
    market.add_pair("ETHBTC", "ETH", "BTC", coin_id=1027, rate=1e-5)
    market.add_pair("XUSDT", "X", "USDT", price=0.0421)  # the coin X, not the quote coin XUSD
    market.add_pair("AAPLXUSDT", "AAPLX", "USDT", price=231.4, symbol_type="xstocks", xstock_multiplier="1")
