"""Connections to MongoDB, and the indexes that the queries and the invariants stand on."""

from typing import Any

import pymongo
from pymongo import ASCENDING, DESCENDING, AsyncMongoClient, IndexModel, MongoClient
from pymongo.asynchronous.database import AsyncDatabase
from pymongo.database import Database

Document = dict[str, Any]
AsyncDB = AsyncDatabase[Document]
SyncDB = Database[Document]

SOCKET_TIMEOUT_MS = 8_000
"""For one answer of MongoDB. pymongo tries a read or a single write once more when its connection or primary is lost;
timeoutMS would retry without end until it runs out, and raises OverflowError after some thousand quick failures."""
SELECTION_TIMEOUT_MS = 5_000
"""For finding a primary. A new one is usually elected within it, so that a request just takes that much longer."""
CONNECT_TIMEOUT_MS = 3_000
INDEX_TIMEOUT_SECONDS = 3600.0
BULK_TIMEOUT_SECONDS = 30.0
"""For operations that may write a great many documents. One that is cut short is simply run again."""

OPTIONS: dict[str, Any] = {
    "tz_aware": True,
    "w": "majority",
    "socketTimeoutMS": SOCKET_TIMEOUT_MS,
    "serverSelectionTimeoutMS": SELECTION_TIMEOUT_MS,
    "connectTimeoutMS": CONNECT_TIMEOUT_MS,
    "waitQueueTimeoutMS": SELECTION_TIMEOUT_MS,
}

KEPT_DAYS = 400
"""How long alerts that are over, and the records of how coins were watched, are kept."""
KEPT_SECONDS = KEPT_DAYS * 86_400

LIVE = {"status": "created"}
IN_OUTBOX = {"notification.due_at": {"$exists": True}}

INDEXES: dict[str, list[IndexModel]] = {
    "users": [IndexModel([("email_key", ASCENDING)], name="email", unique=True)],
    "alerts": [
        # What a price is compared with. `status` leads so that the watched coins can be read off the index alone.
        IndexModel(
            [("status", ASCENDING), ("coin_id", ASCENDING), ("direction", ASCENDING), ("target", ASCENDING)],
            name="armed",
            partialFilterExpression=LIVE,
        ),
        # One live alert per user, coin, target and direction; one that may still become either claims both.
        IndexModel(
            [("user_id", ASCENDING), ("coin_id", ASCENDING), ("target", ASCENDING), ("directions", ASCENDING)],
            name="one_live",
            unique=True,
            partialFilterExpression=LIVE,
        ),
        IndexModel(
            [("user_id", ASCENDING), ("created_at", DESCENDING), ("_id", DESCENDING)],
            name="newest_first",
        ),
        # Alerts made before a price of their coin was known; few, and only until the next poll.
        IndexModel(
            [("unsettled", ASCENDING), ("coin_id", ASCENDING)],
            name="unsettled",
            partialFilterExpression={"unsettled": True},
        ),
        IndexModel(
            [("notification.due_at", ASCENDING), ("fired_at", ASCENDING)],
            name="outbox",
            partialFilterExpression=IN_OUTBOX,
        ),
        # Alerts that are over, a good while later; one whose mail could not be delivered stays.
        IndexModel(
            [("deleted_at", ASCENDING)],
            name="deleted",
            partialFilterExpression={"status": "deleted"},
            expireAfterSeconds=KEPT_SECONDS,
        ),
        IndexModel(
            [("notification.sent_at", ASCENDING)],
            name="sent",
            partialFilterExpression={"notification.state": "sent"},
            expireAfterSeconds=KEPT_SECONDS,
        ),
    ],
    # How a coin was watched, for the receipts of alerts; found by an alert's span, forgotten in the end.
    **{
        collection: [
            IndexModel([("coin_id", ASCENDING), ("end", ASCENDING)], name="of_coin"),
            IndexModel([("end", ASCENDING)], name="forgotten", expireAfterSeconds=KEPT_SECONDS),
        ]
        for collection in ("followed", "holes")
    },
    "coins": [
        IndexModel([("ticker", ASCENDING), ("active", ASCENDING), ("rank", ASCENDING)], name="ticker"),
        IndexModel([("active", ASCENDING), ("rank", ASCENDING)], name="rank"),
    ],
}


def connect(url: str) -> MongoClient[Document]:
    """Client of the background threads. Connects lazily; times are read back as aware UTC."""
    return MongoClient(url, appname="cryptoticker-worker", **OPTIONS)


def connect_async(url: str) -> AsyncMongoClient[Document]:
    """Client of the web side; it belongs to the event loop that first uses it."""
    return AsyncMongoClient(url, appname="cryptoticker-web", **OPTIONS)


async def ping(database: AsyncDB) -> None:
    """Return once MongoDB's primary has answered. Raises PyMongoError if none does."""
    await database.command("ping")


def create_indexes(database: SyncDB) -> None:
    """Make every index that is not there yet; several copies of the service may do so at once."""
    with pymongo.timeout(INDEX_TIMEOUT_SECONDS):
        for collection, indexes in INDEXES.items():
            database[collection].create_indexes(indexes)
