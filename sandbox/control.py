"""Control over HTTP, for when the exchange runs as a process of its own."""

import dataclasses
import json
from collections.abc import Awaitable, Callable
from typing import Any, Protocol

from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from sandbox.coins import Market, by_rank
from sandbox.faults import Fault, Faults

Endpoint = Callable[[Request], Awaitable[Response]]


class Controlled(Protocol):
    """What the control needs of the exchange."""

    market: Market
    faults: Faults

    @property
    def requests(self) -> list[Any]:
        """Dataclasses of what was asked."""


FAULTS: dict[str, Callable[..., Fault]] = {
    "answer": Fault.answer,
    "cmc": Fault.cmc,
    "bybit": Fault.bybit,
    "too_frequent": Fault.too_frequent,
    "geo_block": Fault.geo_block,
    "cloudflare": Fault.cloudflare,
    "empty_429": Fault.empty_429,
    "html": Fault.html,
    "not_json": Fault.not_json,
    "hang": Fault.hang,
    "drop": Fault.drop,
    "truncate": Fault.truncate,
    "cut_off": Fault.cut_off,
    "drip": Fault.drip,
    "price": Fault.price,
    "stale": Fault.stale,
    "wrong_ids": Fault.wrong_ids,
}
"""What {"kind": ...} may say; the constructors' parameters stand beside it, such as {"kind": "cmc", "code": 1008}."""


def control_routes(exchange: Controlled) -> list[Route]:
    """POST /sandbox/price, POST /sandbox/fault, DELETE /sandbox/faults and GET /sandbox/requests."""

    async def set_price(request: Request) -> Response:
        order = await request.json()
        listed = order["id"] if "id" in order else _named(exchange.market, order["symbol"])
        exchange.market.set_price(listed, float(order["price"]))
        return JSONResponse({"listed": listed, "price": float(order["price"])})

    async def add_fault(request: Request) -> Response:
        order = await request.json()
        path, times, kind = order.pop("path", "/"), order.pop("times", None), order.pop("kind")
        exchange.faults.add(path, FAULTS[kind](**order), times)
        return JSONResponse({"path": path, "kind": kind, "times": times})

    async def clear_faults(_request: Request) -> Response:
        exchange.faults.clear()
        return Response(status_code=204)

    async def tell_requests(_request: Request) -> Response:
        asked = [dataclasses.asdict(request) for request in exchange.requests]
        return Response(json.dumps(asked, default=str), media_type="application/json")

    return [
        Route("/sandbox/price", _or_400(set_price), methods=["POST"]),
        Route("/sandbox/fault", _or_400(add_fault), methods=["POST"]),
        Route("/sandbox/faults", clear_faults, methods=["DELETE"]),
        Route("/sandbox/requests", tell_requests, methods=["GET"]),
    ]


def _named(market: Market, symbol: str) -> int | str:
    if symbol in market.pairs:
        return symbol
    return by_rank(coin for coin in market.coins.values() if coin.symbol == symbol)[0].id


def _or_400(endpoint: Endpoint) -> Endpoint:
    async def guarded(request: Request) -> Response:
        try:
            return await endpoint(request)
        except (LookupError, TypeError, ValueError) as error:
            return JSONResponse({"detail": f"{type(error).__name__}: {error}"}, 400)

    return guarded
