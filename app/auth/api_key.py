"""The key of the market endpoints."""

import hmac
from typing import Annotated

from fastapi import Depends, Request
from fastapi.security import APIKeyHeader

from app.errors import UnauthorizedError
from app.services import Services

HEADER = "X-API-Key"
CHALLENGE = {"WWW-Authenticate": f'ApiKey header="{HEADER}"'}

_scheme = APIKeyHeader(name=HEADER, auto_error=False, description="The service's CRYPTO_API_KEY")


def key_holds(given: bytes | None, expected: str) -> bool:
    """Whether the header's bytes are the key, in a time that doesn't tell how far they agree. An unset key never is."""
    return bool(expected) and given is not None and hmac.compare_digest(given, expected.encode())


def check_api_key(request: Request, given: Annotated[str | None, Depends(_scheme)]) -> None:
    """Raise UnauthorizedError unless the request carries the key."""
    services: Services = request.state.services
    expected = services.settings.crypto_api_key
    if key_holds(None if given is None else given.encode("latin-1"), expected):
        return
    if not expected:
        raise UnauthorizedError("The market endpoints are closed: CRYPTO_API_KEY is not set on the server.", CHALLENGE)
    problem = f"The header {HEADER} is missing" if given is None else f"The key in {HEADER} is wrong"
    raise UnauthorizedError(f"{problem}. Send the service's CRYPTO_API_KEY in it.", CHALLENGE)


NeedsApiKey = Depends(check_api_key)
