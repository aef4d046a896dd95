"""Who is calling: the bearer token's user, or the holder of the market endpoints' API key."""

from typing import Annotated, Any

from fastapi import Depends
from fastapi.security import HTTPBearer
from starlette.requests import HTTPConnection

from app.auth.auth_handler import CurrentUser, decodeJWT, unauthorized
from app.services import Services


class JWTBearer(HTTPBearer):
    """FastAPI's bearer scheme (so that /docs shows its Authorize button), resolved to a CurrentUser."""

    def __init__(self) -> None:
        super().__init__(bearerFormat="JWT", auto_error=False, description="The access_token of a login or sign-up")

    async def __call__(self, request: HTTPConnection) -> Any:
        """Return the CurrentUser; raises UnauthorizedError without a valid token."""
        credentials = await super().__call__(request)
        if credentials is None:
            raise unauthorized("Send the header `Authorization: Bearer <access_token>`; log in at POST /user/login/.")
        services: Services = request.state.services
        return decodeJWT(credentials.credentials, secret=services.settings.jwt_secret)


TokenUser = Annotated[CurrentUser, Depends(JWTBearer())]
