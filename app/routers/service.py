"""Whether the service works, for people and probes."""

from fastapi import Response

from app.health import Health, Liveness, Readiness, check_health, check_liveness, check_readiness
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


@router.get(
    "/health/live", responses={503: {"model": Liveness, "description": "A thread has died or hangs: restart it"}}
)
async def live(services: Svc, response: Response) -> Liveness:
    """Whether this process works: 503 when restarting it would help. Neither the database nor anybody else is asked."""
    state = check_liveness(services.settings, services.scheduler, services.threads)
    response.status_code = 200 if state.status == "ok" else 503
    return state


@router.get(
    "/health/ready", responses={503: {"model": Readiness, "description": "MongoDB does not answer: send nobody here"}}
)
async def ready(services: Svc, response: Response) -> Readiness:
    """Whether this process can serve requests now: 503 while MongoDB doesn't answer it within two seconds."""
    state = await check_readiness(services)
    response.status_code = 200 if state.status == "ok" else 503
    return state
