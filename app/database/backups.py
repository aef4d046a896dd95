"""A copy of the whole database as it was at one instant, as a stream of BSON documents in gzip, and the way back.

The stream: `{format, version, made_at}`, then `{in: collection, document}` for each document, then
`{counts: {collection: documents}}`, without which it is not whole. Indexes are not in it: every start makes them.
"""

import gzip
import zlib
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from datetime import datetime
from itertools import groupby, islice
from typing import BinaryIO, cast

import bson
import pymongo
from bson.codec_options import CodecOptions
from bson.errors import InvalidBSON
from bson.raw_bson import RawBSONDocument

from app.database.client import BULK_TIMEOUT_SECONDS, SyncDB, create_indexes
from app.errors import BackupError

FORMAT, VERSION = "cryptoticker backup", 1
LEFT_OUT = {"leases", "market"}
"""What copies of the service that are gone held, and market data that is fetched anew."""
GZIP_LEVEL = 6
BATCH = 1000
CHUNK_BYTES = 1 << 20
RAW = CodecOptions(document_class=RawBSONDocument)


def write(database: SyncDB, stream: BinaryIO, *, now: datetime) -> int:
    """Write the stream; returns how many documents there were. The service may run meanwhile.

    All reads see the instant of the first one. MongoDB keeps such an instant for five minutes by default; what takes
    longer raises OperationFailure. Raises PyMongoError.
    """
    number = -2  # the head and the end
    with gzip.GzipFile("", "wb", GZIP_LEVEL, stream) as archive:
        for piece in dump(database, now=now):
            archive.write(piece)
            number += 1
    return number


def dump(database: SyncDB, *, now: datetime) -> Iterator[bytes]:
    """Yield the stream, document by document, not compressed."""
    raw = database.with_options(codec_options=RAW)
    counts: Counter[str] = Counter()
    yield bson.encode({"format": FORMAT, "version": VERSION, "made_at": now})
    with database.client.start_session(snapshot=True) as session:
        for name in sorted(set(database.list_collection_names()) - LEFT_OUT):
            for document in raw[name].find({}, session=session):
                counts[name] += 1
                yield bson.encode({"in": name, "document": document})
    yield bson.encode({"counts": counts})


def check(stream: BinaryIO) -> Counter[str]:
    """Read the stream to its end; returns how many documents each collection has in it.

    Raises BackupError if it is not a backup, of a newer version, damaged or cut short.
    """
    counts: Counter[str] = Counter()
    _verify_checksum(stream)
    entries = _read(stream)
    head = next(entries, None)
    if head is None or head.get("format") != FORMAT:
        raise BackupError("this file is no backup of CryptoTicker")
    if head["version"] > VERSION:
        raise BackupError("this backup was made by a newer version of CryptoTicker: upgrade first")
    for entry in entries:
        if "counts" in entry:
            if dict(entry["counts"]) == counts:
                return counts
            break
        counts[entry["in"]] += 1
    raise BackupError("this backup was cut short or damaged")


def load(database: SyncDB, stream: BinaryIO) -> None:
    """Put the documents of a checked stream into a database that has none, with the indexes. Raises PyMongoError."""
    create_indexes(database)
    documents = (entry for entry in _read(stream) if "in" in entry)
    raw = database.with_options(codec_options=RAW)
    for name, entries in groupby(documents, key=lambda entry: str(entry["in"])):
        for batch in _batches(entry["document"] for entry in entries):
            with pymongo.timeout(BULK_TIMEOUT_SECONDS):
                raw[name].insert_many(batch, ordered=False)


def holds_data(database: SyncDB) -> bool:
    """Whether anybody has an account or an alert in it."""
    return any(database[name].find_one({}, {"_id": 1}) for name in ("users", "alerts"))


def is_in_use(database: SyncDB, *, now: datetime) -> bool:
    """Whether a copy of the service holds a lease; one that was killed does for up to a minute and a half."""
    return database.leases.find_one({"until": {"$gt": now}}) is not None


def clear(database: SyncDB) -> None:
    """Remove every document and every index."""
    for name in database.list_collection_names():
        database.drop_collection(name)


def _verify_checksum(stream: BinaryIO) -> None:
    """Apart from reading, so that nobody has to make sense of what is damaged. Rewinds the stream."""
    with _refusing_damage(), gzip.open(stream) as plain:
        while plain.read(CHUNK_BYTES):
            pass
    stream.seek(0)


def _read(stream: BinaryIO) -> Iterator[RawBSONDocument]:
    with _refusing_damage(), gzip.open(stream) as plain:
        yield from bson.decode_file_iter(cast(BinaryIO, plain), RAW)


@contextmanager
def _refusing_damage() -> Iterator[None]:
    try:
        yield
    except (InvalidBSON, EOFError, OSError, zlib.error) as error:  # all but the first come of gzip
        raise BackupError("this file is no backup of CryptoTicker, or was cut short or damaged") from error


def _batches(documents: Iterable[RawBSONDocument]) -> Iterator[list[RawBSONDocument]]:
    remaining = iter(documents)
    while batch := list(islice(remaining, BATCH)):
        yield batch
