"""The one place where errors become HTTP answers, each `{"detail": ...}`."""

import logging
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from pymongo.errors import PyMongoError

from app.errors import RequestError
from app.models import ErrorBody

logger = logging.getLogger(__name__)

DATABASE_RETRY_SECONDS = 5


def install_error_handlers(app: FastAPI) -> None:
    """Teach `app` how each kind of error is answered."""
    app.exception_handler(RequestError)(_request_error)
    app.exception_handler(RequestValidationError)(_validation_error)
    app.exception_handler(PyMongoError)(_database_error)


def documented(*status_codes: int) -> dict[int | str, dict[str, Any]]:
    """The `responses` of a route that may answer with these errors, for OpenAPI."""
    return {code: {"model": ErrorBody} for code in status_codes}


async def _request_error(_request: Request, error: RequestError) -> JSONResponse:
    return JSONResponse({"detail": error.detail}, error.status_code, headers=error.headers)


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


def _printable(part: str | int) -> str | int:
    return part if isinstance(part, int) else part.encode("utf-8", "backslashreplace").decode()
