"""Sign-up and login."""

from app.auth.auth_handler import CurrentUser, signJWT, unauthorized
from app.database import users
from app.models import LoginSchema, Token, UserSchema
from app.routers.dependencies import Svc
from app.routers.error_handlers import documented
from app.routers.slashes import SlashRouter
from app.services import Services

router = SlashRouter(prefix="/user", tags=["users"])


@router.post("/signup/", status_code=201, responses=documented(409, 413, 422, 503))
async def signup(wish: UserSchema, services: Svc) -> Token:
    """Make an account and return a token for it. The address is unique without regard to case."""
    password_hash = await services.passwords.hash(wish.password.get_secret_value())
    user_id = await users.create_user(
        services.database,
        username=wish.username,
        email=wish.email,
        password_hash=password_hash,
        now=services.clock.now(),
    )
    return _token(services, CurrentUser(user_id, wish.email))


@router.post("/login/", responses=documented(401, 413, 422, 503))
async def login(attempt: LoginSchema, services: Svc) -> Token:
    """Return a token. A wrong address and a wrong password get the same answer in the same time."""
    user = await users.find_user(services.database, email=attempt.email)
    password_hash = user["password_hash"] if user else None
    if not await services.passwords.verify(attempt.password.get_secret_value(), password_hash) or user is None:
        raise unauthorized("The email address or the password is wrong.")
    return _token(services, CurrentUser(user["_id"], user["email"]))


def _token(services: Services, user: CurrentUser) -> Token:
    ttl = services.settings.jwt_ttl_seconds
    token = signJWT(user, secret=services.settings.jwt_secret, now=services.clock.now(), ttl_seconds=ttl)
    return Token(access_token=token, expires_in=ttl)
