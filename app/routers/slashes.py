"""Routes that answer with and without the trailing slash, without a redirect (which would lose a POST's body)."""

from collections.abc import Callable
from typing import Any

from fastapi import APIRouter


class SlashRouter(APIRouter):
    """Every route has a twin with or without the slash; only the one that was written is documented."""

    def add_api_route(self, path: str, endpoint: Callable[..., Any], **options: Any) -> None:
        """Add the route and its twin."""
        super().add_api_route(path, endpoint, **options)
        twin = path.removesuffix("/") if path.endswith("/") else f"{path}/"
        if twin not in {"", "//"}:
            super().add_api_route(twin, endpoint, **{**options, "include_in_schema": False})
