"""What goes over the wire: encodings, validators, parts, the key, CORS and the document of it all."""

import gzip
import json
from typing import Any

import brotli
import pytest
import requests

from sandbox.exchange import Exchange
from tests.market.conftest import Serve
from tests.market.support import CANDLES, KEY, SNAPSHOT, MarketCaller, upstream_calls
from tests.support import ManualClock


@pytest.mark.parametrize("path", [SNAPSHOT, SNAPSHOT + "?symbols=BTCUSDT,ETHUSDT,SOLUSDT"])
def test_each_encoding_carries_the_same_document(market: MarketCaller, path: str) -> None:
    decoders = {"gzip": gzip.decompress, "br": brotli.decompress, "identity": bytes}
    documents = set()
    for encoding, decode in decoders.items():
        headers = {"X-API-Key": KEY, "Accept-Encoding": encoding}
        with requests.get(market.base_url + path, headers=headers, stream=True, timeout=30) as answer:
            body = answer.raw.read(decode_content=False)
            assert answer.headers.get("Content-Encoding", "identity") == encoding
            assert answer.headers["Content-Length"] == str(len(body))
            assert answer.headers["Vary"] == "Accept-Encoding"
            documents.add(decode(body))
    assert len(documents) == 1


@pytest.mark.parametrize(
    ("accepted", "sent"),
    [
        ("gzip, deflate, br, zstd", "br"),
        ("gzip;q=1.0, br;q=0.5", "gzip"),
        ("br;q=0, gzip", "gzip"),
        ("*", "br"),
        ("*;q=0.1, br;q=0", "gzip"),
        ("gzip;q=0", None),
        ("identity", None),
        ("", None),
        ("GZIP", "gzip"),
        ("xgzip, brr", None),
    ],
)
def test_the_callers_preference_chooses_the_encoding(market: MarketCaller, accepted: str, sent: str | None) -> None:
    assert market.get(SNAPSHOT, {"Accept-Encoding": accepted}).headers.get("Content-Encoding") == sent


@pytest.mark.parametrize("query", [{}, {"fields": "currentPrice"}])
def test_a_known_snapshot_is_a_304_without_a_body(
    market: MarketCaller, clock: ManualClock, query: dict[str, Any]
) -> None:
    etag = market.get(SNAPSHOT, **query).headers["ETag"]
    clock.advance(100)
    for tags in (etag, f'"other", {etag}', etag.removeprefix("W/"), "*"):
        answer = market.get(SNAPSHOT, {"If-None-Match": tags}, **query)
        assert (answer.status_code, answer.content) == (304, b"")
        assert answer.headers["ETag"] == etag
        assert (answer.headers["Cache-Control"], answer.headers["Age"]) == ("private, max-age=200", "100")
        assert "Content-Type" not in answer.headers
    assert market.get(SNAPSHOT, {"If-None-Match": '"other"'}, **query).status_code == 200


def test_headers_tell_the_age_and_the_time_left(market: MarketCaller, clock: ManualClock) -> None:
    first = market.get(SNAPSHOT).headers
    assert (first["Age"], first["Cache-Control"]) == ("0", "private, max-age=300")
    assert first["Last-Modified"] == "Sun, 01 Mar 2026 12:00:00 GMT"
    assert first["Content-Type"] == "application/json"
    clock.advance(120.9)
    later = market.get(SNAPSHOT).headers
    assert (later["Age"], later["Cache-Control"]) == ("120", "private, max-age=180")
    assert later["Last-Modified"] == first["Last-Modified"]


def test_parts_hold_what_was_asked_for(market: MarketCaller) -> None:
    whole = market.snapshot()
    assert market.snapshot(symbols=" ethusdt,BTCUSDT,,btcusdt") == {
        "ETHUSDT": whole["ETHUSDT"],
        "BTCUSDT": whole["BTCUSDT"],
    }
    prices = market.snapshot(fields="currentPrice, coinName")
    assert prices == {pair: {name: row[name] for name in ("coinName", "currentPrice")} for pair, row in whole.items()}
    assert market.snapshot(symbols="XUSDT", fields="marketCapUSD") == {"XUSDT": {"marketCapUSD": None}}


def test_an_unknown_pair_is_named(market: MarketCaller) -> None:
    answer = market.get(SNAPSHOT, symbols="BTCUSDT,NOSUCHUSDT,AAPLXUSDT")
    assert answer.status_code == 404
    assert answer.json() == {"detail": "Bybit has no spot USDT pair 'NOSUCHUSDT', 'AAPLXUSDT'."}


def test_an_unknown_figure_is_answered_with_those_that_exist(market: MarketCaller) -> None:
    answer = market.get(SNAPSHOT, fields="currentPrice,volume")
    assert answer.status_code == 422
    assert "'volume'" in answer.json()["detail"]
    assert "volume24h" in answer.json()["detail"]


@pytest.mark.parametrize("path", [SNAPSHOT, SNAPSHOT + "/", CANDLES, CANDLES + "/"])
@pytest.mark.parametrize(
    ("headers", "problem"),
    [({}, "missing"), ({"X-API-Key": "wrong"}, "wrong"), ({"X-API-Key": KEY + "x"}, "wrong"), ({"X-API-Key": ""}, "")],
)
def test_without_the_key_nothing_is_told(
    market: MarketCaller, exchange: Exchange, path: str, headers: dict[str, str], problem: str
) -> None:
    answer = requests.get(market.base_url + path, headers=headers, timeout=30)
    assert answer.status_code == 401
    assert problem in answer.json()["detail"]
    assert "X-API-Key" in answer.headers["WWW-Authenticate"]
    assert exchange.requests == []


def test_a_key_of_other_bytes_than_ascii_is_wrong(market: MarketCaller) -> None:
    answer = requests.get(market.base_url + SNAPSHOT, headers={"X-API-Key": "schlüssel".encode()}, timeout=30)
    assert answer.status_code == 401


@pytest.mark.parametrize("key", ["", KEY])
def test_without_a_key_in_the_settings_everybody_is_refused(serve: Serve, key: str) -> None:
    with serve() as caller:
        caller.snapshot()  # which the next service has at hand
    with serve(crypto_api_key="") as caller:
        answer = caller.get(SNAPSHOT, {"X-API-Key": key})
    assert answer.status_code == 401
    assert "CRYPTO_API_KEY is not set" in answer.json()["detail"]


def test_with_and_without_the_slash_it_is_the_same(market: MarketCaller, exchange: Exchange) -> None:
    assert market.get(SNAPSHOT + "/").json() == market.get(SNAPSHOT).json()
    query: dict[str, Any] = {"symbol": "BTCUSDT", "interval": "1"}
    assert market.get(CANDLES + "/", **query).json() == market.get(CANDLES, **query).json()
    assert set(upstream_calls(exchange).values()) == {1}


def test_browsers_are_refused_by_default(market: MarketCaller) -> None:
    asked = {"Origin": "https://app.example.com", "Access-Control-Request-Method": "GET"}
    assert "Access-Control-Allow-Origin" not in market.get(SNAPSHOT, asked).headers
    preflight = requests.options(market.base_url + SNAPSHOT, headers=asked, timeout=30)
    assert "Access-Control-Allow-Origin" not in preflight.headers


def test_origins_in_the_settings_may_read(serve: Serve) -> None:
    origin = "https://app.example.com"
    with serve(cors_origins=(origin,)) as caller:
        for _ in range(2):
            headers = caller.get(SNAPSHOT, {"Origin": origin}).headers
            assert headers["Access-Control-Allow-Origin"] == origin
            assert headers["Vary"] == "Accept-Encoding, Origin"
            assert "X-Snapshot-Stale" in headers["Access-Control-Expose-Headers"]
        assert "Access-Control-Allow-Origin" not in caller.get(SNAPSHOT, {"Origin": "https://evil.example"}).headers
        asked = {
            "Origin": origin,
            "Access-Control-Request-Method": "GET",
            "Access-Control-Request-Headers": "x-api-key",
        }
        assert requests.options(caller.base_url + SNAPSHOT, headers=asked, timeout=30).status_code == 200


def test_openapi_tells_shape_headers_and_errors(market: MarketCaller) -> None:
    document = requests.get(market.base_url + "/openapi.json", timeout=30).json()
    snapshot = document["paths"][SNAPSHOT]["get"]
    assert {"200", "304", "401", "404", "422", "503"} <= snapshot["responses"].keys()
    assert {"ETag", "Age", "Cache-Control", "X-Snapshot-Stale"} <= snapshot["responses"]["200"]["headers"].keys()
    shape = snapshot["responses"]["200"]["content"]["application/json"]["schema"]
    assert shape["additionalProperties"] == {"$ref": "#/components/schemas/MarketPair"}
    candles = document["paths"][CANDLES]["get"]
    assert {"200", "401", "404", "422", "502", "503", "504"} <= candles["responses"].keys()
    assert snapshot["security"] == candles["security"] == [{"APIKeyHeader": []}]
    assert json.dumps(document).count("720") >= 1


def test_health_counts_calls_and_credits_of_both_upstreams(
    serve: Serve, exchange: Exchange, clock: ManualClock
) -> None:
    with serve(coinmarketcap_api_key="a-key") as caller:
        caller.snapshot()
        caller.candles(symbol="BTCUSDT", interval="1")
        caller.get(CANDLES, symbol="NOSUCH", interval="1")
        upstreams = caller.get("/health").json()["upstreams"]
    assert upstreams["bybit"] == {
        "last_success_at": "2026-03-01T12:00:00Z",
        "last_error_at": None,
        "last_error": None,
        "calls_today": 4,
        "credits_today": 0,
        "credits_left": None,
    }
    assert upstreams["coinmarketcap"]["calls_today"] == 2  # listings and the key's credits
    assert upstreams["coinmarketcap"]["credits_today"] == exchange.plan.used_today == 1
    assert upstreams["coinmarketcap"]["credits_left"] == exchange.plan.monthly_credits  # read before they were used
    clock.advance(13 * 3600)
    exchange.stop()
    with serve() as caller:
        caller.get(CANDLES, symbol="BTCUSDT", interval="1")
        bybit = caller.get("/health").json()["upstreams"]["bybit"]
    assert bybit["calls_today"] >= 1
    assert bybit["calls_today"] < 4  # a new day
    assert bybit["last_success_at"] == "2026-03-01T12:00:00Z"
    assert "no connection" in bybit["last_error"]


@pytest.mark.parametrize("path", [SNAPSHOT, SNAPSHOT + "/", SNAPSHOT + "?fields=currentPrice", CANDLES])
@pytest.mark.parametrize("headers", [{}, {"X-API-Key": KEY[:-1]}, {"X-API-Key": KEY.upper()}, {"Authorization": KEY}])
def test_a_snapshot_at_hand_is_not_for_those_without_the_key(
    market: MarketCaller, path: str, headers: dict[str, str]
) -> None:
    etag = market.get(SNAPSHOT).headers["ETag"]
    answer = requests.get(market.base_url + path, headers=headers | {"If-None-Match": etag}, timeout=30)
    assert answer.status_code == 401
    assert "ETag" not in answer.headers


def test_the_tag_is_weak_since_it_stands_for_every_encoding(market: MarketCaller) -> None:
    tags = {market.get(SNAPSHOT, {"Accept-Encoding": encoding}).headers["ETag"] for encoding in ("br", "gzip", "")}
    assert len(tags) == 1
    assert tags.pop().startswith('W/"')
