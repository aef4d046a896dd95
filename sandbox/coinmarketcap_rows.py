"""One coin as each of CoinMarketCap's endpoints tells it."""

from datetime import datetime, timedelta
from typing import Any

from sandbox.candles import to_ms
from sandbox.coins import Coin

USD = {"id": 2781, "symbol": "USD"}
BIRTH = "2013-04-28T00:00:00.000Z"
MINEABLE = {"slug": "mineable", "name": "Mineable", "category": "OTHERS"}
LINKS = (
    "website", "twitter", "message_board", "chat", "facebook", "explorer",
    "reddit", "technical_doc", "source_code", "announcement",
)  # fmt: skip
HOUR_MINUTES = 60
DAY_MINUTES = 24 * HOUR_MINUTES
CHANGES_MINUTES = {
    "1h": HOUR_MINUTES,
    "24h": DAY_MINUTES,
    "7d": 7 * DAY_MINUTES,
    "30d": 30 * DAY_MINUTES,
    "60d": 60 * DAY_MINUTES,
    "90d": 90 * DAY_MINUTES,
}


def stamp(moment: datetime) -> str:
    """A moment as CoinMarketCap writes it: UTC, milliseconds, Z."""
    return moment.strftime("%Y-%m-%dT%H:%M:%S.") + f"{moment.microsecond // 1000:03}Z"


def quoted(coin: Coin, worth: float, now: datetime) -> dict[str, Any]:
    """A row of quotes: what a listing has, whether it is active or a fiat, and its tags as objects."""
    return _row(coin, worth, now) | {"is_active": int(coin.active), "is_fiat": 0, "tags": [MINEABLE]}


def listed(coin: Coin, worth: float, now: datetime) -> dict[str, Any]:
    """A row of listings; `worth` is what all coins of the market are worth, in USD."""
    return _row(coin, worth, now) | {"tags": [MINEABLE["slug"]]}


def _row(coin: Coin, worth: float, now: datetime) -> dict[str, Any]:
    quote = _quote(coin, worth, now)
    return {
        "id": coin.id,
        "name": coin.name,
        "symbol": coin.symbol,
        "slug": coin.slug,
        "infinite_supply": coin.max_supply is None,
        "circulating_supply": coin.supply,
        "total_supply": coin.supply,
        "max_supply": coin.max_supply,
        "date_added": BIRTH,
        "num_market_pairs": 500,
        "cmc_rank": coin.rank,
        "last_updated": quote["last_updated"],
        "tvl_ratio": None,
        "platform": coin.platform,
        "self_reported_circulating_supply": None,
        "self_reported_market_cap": None,
        "minted_market_cap": quote["minted_market_cap"],
        "quote": [quote],
    }


def _quote(coin: Coin, worth: float, now: datetime) -> dict[str, Any]:
    history = coin.history
    market_cap = history.price * coin.supply
    volume = market_cap * 0.03
    changes = {span: history.change_percent(minutes, to_ms(now)) for span, minutes in CHANGES_MINUTES.items()}
    return {
        **USD,
        "price": history.price,
        "volume_24h": volume,
        "volume_change_24h": 0.0,
        "cex_volume_24h": volume,
        "dex_volume_24h": 0.0,
        **{f"percent_change_{span}": round(change, 8) for span, change in changes.items()},
        "market_cap": market_cap,
        "market_cap_dominance": round(market_cap / worth * 100, 4) if worth else 0.0,
        "fully_diluted_market_cap": history.price * (coin.max_supply or coin.supply),
        "minted_market_cap": market_cap,
        "tvl": None,
        "last_updated": stamp(coin.last_updated or now),
    }


def mapped(coin: Coin, now: datetime) -> dict[str, Any]:
    """A row of the map; an inactive coin has no rank and tells no history."""
    span = {"first_historical_data": BIRTH, "last_historical_data": stamp(now - timedelta(minutes=1))}
    return {
        "id": coin.id,
        "name": coin.name,
        "symbol": coin.symbol,
        "slug": coin.slug,
        "rank": coin.rank,
        "is_active": int(coin.active),
        **(span if coin.active else {}),
        "platform": coin.platform,
    }


def described(coin: Coin) -> dict[str, Any]:
    """A coin's entry in info."""
    return {
        "id": coin.id,
        "name": coin.name,
        "symbol": coin.symbol,
        "category": "coin" if coin.platform is None else "token",
        "description": f"{coin.name} ({coin.symbol}) is a cryptocurrency.",
        "slug": coin.slug,
        "logo": f"https://s2.coinmarketcap.com/static/img/coins/64x64/{coin.id}.png",
        "subreddit": "",
        "notice": "",
        "tags": [MINEABLE["slug"]],
        "tag-names": [MINEABLE["name"]],
        "tag-groups": [MINEABLE["category"]],
        "urls": {link: [] for link in LINKS},
        "platform": coin.platform,
        "date_added": BIRTH,
        "twitter_username": "",
        "is_hidden": 0,
        "date_launched": BIRTH,
        "contract_address": [],
        "self_reported_circulating_supply": None,
        "self_reported_tags": None,
        "self_reported_market_cap": None,
        "infinite_supply": coin.max_supply is None,
    }
