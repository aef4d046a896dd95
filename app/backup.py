"""`python -m app.backup save FILE` and `python -m app.backup restore FILE [--replace]`; `-` stands for a pipe.

`--env ENV_FILE` names settings that don't stand in `.env`.
What FILE holds is told in app/database/backups.py. Without MONGO_URL they work on the embedded MongoDB's files.
"""

import argparse
import os
import shutil
import sys
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import BinaryIO

from pymongo.errors import PyMongoError

from app.clock import Clock
from app.config import PROJECT_ROOT, Settings, load_settings
from app.database import backups, notifications
from app.database.client import SyncDB, connect
from app.database.embedded import EmbeddedMongo, EmbeddedMongoError, EmbeddedMongoInUseError, running_url
from app.errors import BackupError, SettingsError

PIPE = "-"


def main() -> None:
    """Do what the command line says; where that can't be, say why in one line and exit with status 1."""
    options = _options()
    try:
        settings = load_settings(options.env)
        with reach_database(settings, may_be_running=options.command == "save") as database:
            if options.command == "save":
                told = save(database, options.file)
            else:
                told = restore(database, options.file, replace=options.replace)
        sys.stderr.write(told + "\n")
    except (SettingsError, EmbeddedMongoError, BackupError) as error:
        sys.exit(f"cryptoticker: {error}")
    except PyMongoError as error:
        sys.exit(f"cryptoticker: MongoDB ended this ({type(error).__name__}: {error})")
    except OSError as error:
        sys.exit(f"cryptoticker: {error.filename or options.file}: {error.strerror}")


def save(database: SyncDB, file: str) -> str:
    """Write a backup, readable for its owner only; returns what to tell. An older file is replaced once it is whole."""
    now = Clock().now()
    if file == PIPE:
        number = backups.write(database, sys.stdout.buffer, now=now)
    else:
        part = Path(f"{file}.part")
        with os.fdopen(os.open(part, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "wb") as stream:
            number = backups.write(database, stream, now=now)
            stream.flush()
            os.fsync(stream.fileno())
        part.replace(file)
    return f"Saved {number} documents."


def restore(database: SyncDB, file: str, *, replace: bool = False) -> str:
    """Bring a backup back; returns what to tell. Raises BackupError, before anything was changed."""
    with _opened(file) as stream:
        counts = backups.check(stream)
        if backups.is_in_use(database, now=Clock().now()):
            raise BackupError(
                "the service runs on this database: stop it first (after a kill, wait a minute and a half)"
            )
        if backups.holds_data(database) and not replace:
            raise BackupError(
                "this database holds accounts or alerts; --replace deletes them and brings back the backup's"
            )
        backups.clear(database)
        stream.seek(0)
        backups.load(database, stream)
        notifications.release_all(database, now=Clock().now())  # whoever was sending when it was saved
    return f"Restored {counts.total()} documents: {counts['users']} accounts, {counts['alerts']} alerts."


@contextmanager
def reach_database(settings: Settings, *, may_be_running: bool) -> Iterator[SyncDB]:
    """The database at MONGO_URL; without that the embedded one, also of a service that runs, if it may.

    Raises BackupError, EmbeddedMongoError and PyMongoError.
    """
    with ExitStack() as stack:
        url = settings.mongo_url or _start_or_find(settings.data_dir / "mongo", stack, may_be_running)
        database = stack.enter_context(connect(url))[settings.mongo_db]
        yield database


def _start_or_find(data_dir: Path, stack: ExitStack, may_be_running: bool) -> str:
    if may_be_running and not any(data_dir.glob("WiredTiger")):
        raise BackupError(f"there is nothing to save: MONGO_URL is not set, and {data_dir} holds no database")
    try:
        mongo = stack.enter_context(EmbeddedMongo(data_dir, busy_seconds=0))
    except EmbeddedMongoInUseError:
        url = running_url(data_dir) if may_be_running else None
        if url is None:
            raise
        return url
    return mongo.url


@contextmanager
def _opened(file: str) -> Iterator[BinaryIO]:
    """The file, or what comes down the pipe, which is read twice and so kept meanwhile."""
    if file != PIPE:
        with Path(file).open("rb") as stream:
            yield stream
        return
    with tempfile.TemporaryFile() as stream:
        shutil.copyfileobj(sys.stdin.buffer, stream)
        stream.seek(0)
        yield stream


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m app.backup", description="Save the database, or bring it back.")
    commands = parser.add_subparsers(dest="command", required=True)
    saving = commands.add_parser("save", help="write a backup; the service may run meanwhile")
    restoring = commands.add_parser("restore", help="bring a backup back, while the service is stopped")
    for command in (saving, restoring):
        command.add_argument("file", help="- for a pipe")
        command.add_argument("--env", type=Path, default=PROJECT_ROOT / ".env", help="where the settings stand (.env)")
    restoring.add_argument("--replace", action="store_true", help="delete the accounts and alerts that are there")
    return parser.parse_args()


if __name__ == "__main__":
    main()
