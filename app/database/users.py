"""Queries on `users`: `{_id, username, email, email_key, password_hash, created_at}`."""

from datetime import datetime

from bson import ObjectId
from pymongo.errors import DuplicateKeyError

from app.database.client import AsyncDB, Document
from app.errors import ConflictError
from app.models import mail_address


def email_key(email: str) -> str:
    """The form in which addresses are compared and kept unique: as at sign-up, without regard to case."""
    try:
        return mail_address(email).lower()
    except ValueError:  # nobody's: it equals none that is stored
        return email.lower()


async def create_user(database: AsyncDB, *, username: str, email: str, password_hash: bytes, now: datetime) -> ObjectId:
    """Store a user and return the new id.

    Raises ConflictError if the address is taken; the unique index decides between simultaneous sign-ups.
    """
    user_id = ObjectId()
    user: Document = {
        "_id": user_id,
        "username": username,
        "email": email,
        "email_key": email_key(email),
        "password_hash": password_hash,
        "created_at": now,
    }
    try:
        await database.users.insert_one(user)
    except DuplicateKeyError as error:
        raise ConflictError("This email address already has an account. Log in at POST /user/login/.") from error
    return user_id


async def find_user(database: AsyncDB, *, email: str) -> Document | None:
    """Return the user with this address, in any case, or None."""
    return await database.users.find_one({"email_key": email_key(email)})
