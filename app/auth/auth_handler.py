"""Bearer tokens: JWTs signed with HS256."""

from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

import jwt
from bson import ObjectId

from app.errors import UnauthorizedError

ALGORITHM = "HS256"
REQUIRED_CLAIMS = ["exp", "iat", "sub"]


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
    try:
        claims: dict[str, Any] = jwt.decode(token, secret, algorithms=[ALGORITHM], options={"require": REQUIRED_CLAIMS})
    except jwt.ExpiredSignatureError as error:
        raise unauthorized("The token has expired. Log in again at POST /user/login/.") from error
    except jwt.InvalidTokenError as error:
        raise unauthorized("The token is not valid. Log in again at POST /user/login/.") from error
    if not ObjectId.is_valid(claims["sub"]) or not isinstance(claims.get("email"), str):
        raise unauthorized("The token is not valid. Log in again at POST /user/login/.")
    return CurrentUser(user_id=ObjectId(claims["sub"]), email=claims["email"])


def unauthorized(detail: str) -> UnauthorizedError:
    """A 401 that tells the client which scheme to use (RFC 6750, section 3)."""
    return UnauthorizedError(detail, headers={"WWW-Authenticate": "Bearer"})
