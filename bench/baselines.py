"""The servers that the service is compared with: `python -m bench.baselines NAME PORT`, settings in the environment.

Served by uvicorn with the options that the service itself uses.
"""

import json
import os
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any

import uvicorn
from bson import ObjectId
from fastapi import Body, FastAPI
from pymongo import DESCENDING, AsyncMongoClient
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response
from starlette.routing import Route
from starlette.types import ASGIApp

from app.models import MarketPair


async def _up(_request: Request) -> Response:
    return PlainTextResponse("up")


def bare_bytes() -> ASGIApp:
    """A bare Starlette route for each form of the snapshot: the same bytes, and nothing decided about the request."""
    plain = Path(os.environ["BENCH_PLAIN"]).read_bytes()
    zipped = Path(os.environ["BENCH_GZIP"]).read_bytes()
    etag = os.environ["BENCH_ETAG"]

    async def send_plain(_request: Request) -> Response:
        return Response(plain, media_type="application/json")

    async def send_gzip(_request: Request) -> Response:
        return Response(zipped, media_type="application/json", headers={"Content-Encoding": "gzip"})

    async def send_304(_request: Request) -> Response:
        return Response(status_code=304, headers={"ETag": etag})

    return Starlette(
        routes=[
            Route("/up", _up),
            Route("/plain", send_plain),
            Route("/gzip", send_gzip),
            Route("/304", send_304),
        ]
    )


def usual_market() -> ASGIApp:
    """The usual way: a dict returned through a response model."""
    pairs: dict[str, Any] = json.loads(Path(os.environ["BENCH_PLAIN"]).read_bytes())
    app = FastAPI()

    @app.get("/plain", response_model=dict[str, MarketPair])
    async def aggregated_data() -> Any:
        return pairs

    app.add_route("/up", _up)
    return app


def bare_fetch() -> ASGIApp:
    """One find of a page, no auth, no model."""
    app, collection = _with_alerts()
    owner = ObjectId(os.environ["BENCH_USER"])

    @app.get("/fetch")
    async def fetch() -> list[dict[str, Any]]:
        newest = [("created_at", DESCENDING), ("_id", DESCENDING)]
        page: list[dict[str, Any]] = await collection().find({"user_id": owner}).sort(newest).limit(50).to_list()
        for alert in page:
            alert["_id"] = str(alert["_id"])
            alert["user_id"] = str(alert["user_id"])
        return page

    return app


def bare_create() -> ASGIApp:
    """One insert of an alert, acknowledged by a majority, into a collection without further indexes."""
    app, collection = _with_alerts()
    alert = json.loads(os.environ["BENCH_ALERT"])

    @app.post("/create", status_code=201)
    async def create(wish: Annotated[dict[str, Any], Body()]) -> dict[str, Any]:
        stored = {**alert, "target": wish["targetPrice"], "_id": ObjectId(), "created_at": datetime.now(UTC)}
        await collection().insert_one(stored)
        return {**stored, "_id": str(stored["_id"])}

    return app


def _with_alerts() -> tuple[FastAPI, Callable[[], Any]]:
    """An application with a client of MongoDB, and a way to its collection."""
    opened: list[Any] = []

    @asynccontextmanager
    async def lifespan(_app: FastAPI) -> AsyncIterator[None]:
        client: AsyncMongoClient[dict[str, Any]] = AsyncMongoClient(
            os.environ["MONGO_URL"], w="majority", tz_aware=True
        )
        opened.append(client[os.environ["MONGO_DB"]][os.environ.get("BENCH_COLLECTION", "alerts")])
        yield
        await client.close()

    app = FastAPI(lifespan=lifespan)
    app.add_route("/up", _up)
    return app, lambda: opened[0]


APPS: dict[str, Callable[[], ASGIApp]] = {
    "bare_bytes": bare_bytes,
    "usual_market": usual_market,
    "bare_fetch": bare_fetch,
    "bare_create": bare_create,
}


def main() -> None:
    """Serve until told to stop."""
    name, port = sys.argv[1:]
    uvicorn.run(
        APPS[name](),
        host="127.0.0.1",
        port=int(port),
        log_config=None,
        access_log=False,
        server_header=False,
    )


if __name__ == "__main__":
    main()
