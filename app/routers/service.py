"""Whether the service works, for people and probes."""

from fastapi import Response

from app.health import Health, check_health
from app.routers.dependencies import Svc
from app.routers.slashes import SlashRouter

router = SlashRouter(tags=["service"])


@router.get("/")
async def greet() -> dict[str, str]:
    """Say hello and where to go on."""
    return {
        "service": "CryptoTicker",
        "message": "Set a price for a coin and get a mail when the market reaches it.",
        "docs": "/docs",
        "health": "/health",
    }


@router.get("/health", responses={503: {"model": Health, "description": "Requests can't be served right now"}})
async def health(services: Svc, response: Response) -> Health:
    """What works and what doesn't: 200 as long as requests are served and prices are being watched."""
    state = await check_health(services)
    response.status_code = 200 if state.status != "down" else 503
    return state
