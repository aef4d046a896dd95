"""Big pages are parsed by another process, to the same result as here."""

import json
from typing import Any

import pytest

from app.market.sieve import BIG_BYTES, sift, sift_aside


def page(count: int) -> bytes:
    rows: list[Any] = [
        {"id": n, "symbol": f"c{n}", "name": "é" * 99, "quote": [{"symbol": "USD", "price": 6.315931e-8}, None]}
        for n in range(count)
    ]
    return json.dumps({"status": {"error_code": "0", "credit_count": 20}, "data": [*rows, None, 5, {}]}).encode()


def test_only_wanted_rows_stay_and_all_are_counted() -> None:
    sifted = sift(page(3), {"C1"})
    assert sifted["row_count"] == 6
    assert sifted["status"]["credit_count"] == 20
    (row,) = sifted["data"]
    assert (row["id"], row["symbol"], row["quote"]) == (
        1,
        "c1",
        [{"symbol": "USD", "price": 6.315931e-8, "market_cap": None}],
    )


def test_a_big_page_comes_out_of_the_other_process_as_it_would_here() -> None:
    big = page(5000)
    assert len(big) > BIG_BYTES
    wanted = {"C1", "C4999", "NOSUCH"}
    assert sift_aside(big, wanted) == sift(big, wanted)
    assert len(sift(big, wanted)["data"]) == 2


@pytest.mark.parametrize("content", [b"<html>" * BIG_BYTES, b'{"data": [' + b"[" * BIG_BYTES])
def test_a_big_page_that_is_no_json_is_nothing(content: bytes) -> None:
    assert sift_aside(content, {"C1"}) is None


def test_where_no_process_can_be_started_it_is_parsed_here() -> None:
    assert sift_aside(page(5000), {"C7"}, python="/no/such/python")["data"][0]["id"] == 7


@pytest.mark.parametrize(
    "content", [b"[]", b"null", b'{"data": {}}', b'{"data": null}', b'{"status": {"error_code": 1008}}']
)
def test_what_is_no_page_is_left_as_it_is(content: bytes) -> None:
    assert sift(content, {"C1"}) == json.loads(content)
