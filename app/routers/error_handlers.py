"""The one place where errors become HTTP answers, each `{"detail": ...}`."""

import logging
import math
from datetime import datetime
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from pymongo.errors import PyMongoError

from app.errors import (
    RequestError,
    UnknownPairError,
    UpstreamError,
    UpstreamThrottledError,
    UpstreamTimeoutError,
)
from app.logs import request_id
from app.models import ErrorBody
from app.services import Services

logger = logging.getLogger(__name__)

DATABASE_RETRY_SECONDS = 5
UPSTREAM_RETRY_SECONDS = 60


def install_error_handlers(app: FastAPI) -> None:
    """Teach `app` how each kind of error is answered."""
    app.exception_handler(RequestError)(_request_error)
    app.exception_handler(UpstreamError)(_upstream_error)
    app.exception_handler(RequestValidationError)(_validation_error)
    app.exception_handler(PyMongoError)(_database_error)
    app.exception_handler(Exception)(_internal_error)


def documented(*status_codes: int) -> dict[int | str, dict[str, Any]]:
    """The `responses` of a route that may answer with these errors, for OpenAPI."""
    return {code: {"model": ErrorBody} for code in status_codes}


async def _request_error(_request: Request, error: RequestError) -> JSONResponse:
    return JSONResponse({"detail": error.detail}, error.status_code, headers=error.headers)


async def _upstream_error(request: Request, error: UpstreamError) -> JSONResponse:
    """404 for a pair that isn't, 503 when told to wait, 504 for being late; anything else of an upstream is a 502."""
    if isinstance(error, UpstreamThrottledError):
        services: Services = request.state.services
        headers = {"Retry-After": str(_seconds_until(error.retry_at, services.clock.now()))}
        return JSONResponse({"detail": error.detail}, 503, headers=headers)
    if isinstance(error, UnknownPairError):
        return JSONResponse({"detail": error.detail}, 404)
    logger.warning("%s %s: %s", request.method, request.url.path, error)
    return JSONResponse({"detail": error.detail}, 504 if isinstance(error, UpstreamTimeoutError) else 502)


def _seconds_until(moment: datetime | None, now: datetime) -> int:
    return UPSTREAM_RETRY_SECONDS if moment is None else max(1, math.ceil((moment - now).total_seconds()))


async def _validation_error(_request: Request, error: RequestValidationError) -> JSONResponse:
    """Say what is wrong and where, but never echo the input: it may hold a password, or text that UTF-8 can't carry."""
    problems = [
        {
            "type": problem["type"],
            "loc": [_printable(part) for part in problem["loc"]],
            "msg": _printable(problem["msg"]),
        }
        for problem in error.errors()
    ]
    return JSONResponse({"detail": problems}, 422)


async def _database_error(request: Request, error: PyMongoError) -> JSONResponse:
    logger.error("%s %s: MongoDB: %s: %s", request.method, request.url.path, type(error).__name__, error)
    return JSONResponse(
        {"detail": "The database does not answer just now. Try again in a few seconds."},
        503,
        headers={"Retry-After": str(DATABASE_RETRY_SECONDS)},
    )


async def _internal_error(_request: Request, _error: Exception) -> JSONResponse:
    """Starlette answers this one outside of all middleware, and passes the error on: uvicorn logs its traceback."""
    identifier = request_id.get()
    detail = f"This should not have happened. The service's log tells more, under the request id {identifier}."
    return JSONResponse({"detail": detail}, 500, headers={"X-Request-ID": identifier})


def _printable(part: str | int) -> str | int:
    return part if isinstance(part, int) else part.encode("utf-8", "backslashreplace").decode()
