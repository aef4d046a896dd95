"""Bearer tokens: JWTs signed with HS256."""

import time
from dataclasses import dataclass
from datetime import datetime, timedelta
from functools import lru_cache
from typing import Any

import jwt
from bson import ObjectId

from app.errors import UnauthorizedError

ALGORITHM = "HS256"
REQUIRED_CLAIMS = ["exp", "iat", "sub"]
MOST_TOKENS = 10_000
"""So many verified tokens are remembered, in memory: the same one comes with each request of a user."""


@dataclass(frozen=True, slots=True)
class CurrentUser:
    """Whom a token speaks for. `email` is the address of sign-up, which never changes."""

    user_id: ObjectId
    email: str


def signJWT(user: CurrentUser, *, secret: str, now: datetime, ttl_seconds: int) -> str:
    """Return a token for `user`, valid from `now` (aware UTC) for `ttl_seconds`."""
    claims = {"sub": str(user.user_id), "email": user.email, "iat": now, "exp": now + timedelta(seconds=ttl_seconds)}
    return jwt.encode(claims, secret, algorithm=ALGORITHM)


def decodeJWT(token: str, *, secret: str) -> CurrentUser:
    """Return whom `token` speaks for.

    Raises UnauthorizedError for a token that is malformed, unsigned, signed otherwise, expired, or lacks a claim.
    """
    user, expires_at = _verified(token, secret)
    if time.time() >= expires_at:
        raise _expired()
    return user


@lru_cache(maxsize=MOST_TOKENS)
def _verified(token: str, secret: str) -> tuple[CurrentUser, float]:
    """Whom a token that holds speaks for, and until when (Unix time). One that does not hold is never remembered."""
    try:
        claims: dict[str, Any] = jwt.decode(token, secret, algorithms=[ALGORITHM], options={"require": REQUIRED_CLAIMS})
    except jwt.ExpiredSignatureError as error:
        raise _expired() from error
    except jwt.InvalidTokenError as error:
        raise unauthorized("The token is not valid. Log in again at POST /user/login/.") from error
    if not ObjectId.is_valid(claims["sub"]) or not isinstance(claims.get("email"), str):
        raise unauthorized("The token is not valid. Log in again at POST /user/login/.")
    return CurrentUser(user_id=ObjectId(claims["sub"]), email=claims["email"]), float(claims["exp"])


def _expired() -> UnauthorizedError:
    return unauthorized("The token has expired. Log in again at POST /user/login/.")


def unauthorized(detail: str) -> UnauthorizedError:
    """A 401 that tells the client which scheme to use (RFC 6750, section 3)."""
    return UnauthorizedError(detail, headers={"WWW-Authenticate": "Bearer"})
