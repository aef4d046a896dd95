"""What routes ask for, as annotated aliases."""

from typing import Annotated

from fastapi import Depends, Request

from app.services import Services


async def get_services(request: Request) -> Services:
    """The application's services, put on the request by the lifespan. Not async, FastAPI would call it in a thread."""
    services: Services = request.state.services
    return services


Svc = Annotated[Services, Depends(get_services)]
