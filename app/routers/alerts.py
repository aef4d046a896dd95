"""Alerts of the token's user: create, delete, fetch."""

from typing import Annotated, Any, get_args
from urllib.parse import urlencode

from fastapi import Query, Request, Response
from pydantic_core import to_json

from app.alerting.listing import list_alerts
from app.alerting.receipts import coverage_of
from app.auth.auth_handler import CurrentUser
from app.auth.bearer import TokenUser
from app.database import alerts
from app.database.client import Document
from app.database.users import email_key
from app.errors import ForbiddenError, UnprocessableError
from app.models import Alert, AlertReference, AlertSchema, AlertStatus, Coverage, Notification
from app.routers.dependencies import Svc
from app.routers.error_handlers import documented
from app.routers.slashes import SlashRouter

router = SlashRouter(prefix="/alerts", tags=["alerts"])

STATUSES: tuple[AlertStatus, ...] = get_args(AlertStatus)


@router.post("/create/", status_code=201, response_model=Alert, responses=documented(401, 403, 409, 413, 422, 503))
async def create(wish: AlertSchema, user: TokenUser, services: Svc) -> Response:
    """Set an alert. It counts from `created_at` on; what the market did before never fires it."""
    _check_own(wish.email, user)
    alert = await services.creator.create(wish, user=user)
    return _json(_public(alert), 201)


@router.post("/delete/", response_model=Alert, responses=documented(401, 404, 409, 413, 422, 503))
async def delete(reference: AlertReference, user: TokenUser, services: Svc) -> Response:
    """Delete a live alert. Repeating it is fine; one that has fired can't be deleted (409)."""
    alert = await alerts.delete_alert(
        services.database, user_id=user.user_id, alert_id=reference.alert_id, now=services.clock.now()
    )
    return _json(_public(alert))


@router.get("/fetch/", response_model=list[Alert], responses=documented(401, 403, 422, 503))
async def fetch(
    request: Request,
    user: TokenUser,
    services: Svc,
    email: Annotated[str | None, Query(max_length=254, description="The caller's own address")] = None,
    filterStr: Annotated[
        str, Query(max_length=64, description="One or several, with commas, of: created, triggered, deleted")
    ] = "",
    page: Annotated[int, Query(ge=1, le=100_000)] = 1,
    per_page: Annotated[int, Query(ge=1, le=200)] = 50,
) -> Response:
    """List alerts, newest first. `X-Total-Count` says how many there are, `Link` (RFC 8288) where other pages are."""
    _check_own(email, user)
    statuses = _statuses(filterStr)
    found, total = await list_alerts(
        services.database,
        services.totals,
        user_id=user.user_id,
        statuses=statuses,
        page=page,
        per_page=per_page,
        now=services.clock.now(),
    )
    headers = {"X-Total-Count": str(total)}
    if links := _links(request, page=page, last=max(1, -(-total // per_page))):
        headers["Link"] = links
    return _json([_public(alert) for alert in found], headers=headers)


@router.get("/coverage/", responses=documented(401, 404, 422, 503))
async def tell_coverage(
    user: TokenUser, services: Svc, alert_id: Annotated[str, Query(min_length=1, max_length=64)]
) -> Coverage:
    """Tell what has been watched for an alert since it was created, by which source, and what was not, and why."""
    alert = await alerts.find_alert(services.database, user_id=user.user_id, alert_id=alert_id)
    return await coverage_of(services.database, alert, settings=services.settings, clock=services.clock)


def _check_own(email: str | None, user: CurrentUser) -> None:
    if email is not None and email_key(email) != email_key(user.email):
        raise ForbiddenError("`email` must be your own address. Leave it out, or use the one you signed up with.")


def _statuses(filter_str: str) -> list[AlertStatus]:
    names = filter_str.split(",") if filter_str else []
    statuses = [status for status in STATUSES if status in names]
    if unknown := sorted(set(names) - set(statuses)):
        raise UnprocessableError(f"filterStr knows {', '.join(STATUSES)} (several with commas), not {unknown[0]!r}.")
    return statuses


def _links(request: Request, *, page: int, last: int) -> str:
    targets = {"first": 1, "prev": page - 1, "next": page + 1, "last": last}
    wanted = {name: number for name, number in targets.items() if 1 <= number <= last and number != page}
    if not wanted:
        return ""
    others = [(name, value) for name, value in request.query_params.multi_items() if name != "page"]
    url = request.url.replace(query=urlencode([*others, ("page", "")]))
    return ", ".join(f'<{url}{number}>; rel="{relation}"' for relation, number in wanted.items())


def _json(content: Any, status_code: int = 200, headers: dict[str, str] | None = None) -> Response:
    """What FastAPI would make of a model, without making one: docs/decisions/0011-speed.md."""
    return Response(to_json(content), status_code, headers, media_type="application/json")


def _public(alert: Document) -> dict[str, Any]:
    """The alert document as its owner sees it: the fields of models.Alert, in their order."""
    notification = alert["notification"]
    return {
        "alert_id": str(alert["_id"]),
        "status": alert["status"],
        "symbol": alert["symbol"],
        "coin_id": alert["coin_id"],
        "direction": alert["direction"],
        "touch": alert["touch"],
        "targetPrice": alert["target"],
        "currentPrice": alert["currentPrice"],
        "email": alert["email"],
        "created_at": alert["created_at"],
        "triggered_at": alert["triggered_at"],
        "triggered_price": alert["triggered_price"],
        "triggered_source": alert["triggered_source"],
        "deleted_at": alert["deleted_at"],
        "notification": notification and {name: notification[name] for name in Notification.model_fields},
    }
