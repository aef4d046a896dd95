"""`python -m app`: serve in the foreground, until SIGINT or SIGTERM."""

import logging
import os
import signal
import socket
import sys
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace

import uvicorn
from pymongo.errors import PyMongoError

from app import logs, systemd
from app.clock import Clock
from app.config import Settings, load_settings
from app.database import leases, migrations, notifications
from app.database.client import connect
from app.database.embedded import EmbeddedMongo, EmbeddedMongoError
from app.errors import NewerDatabaseError, SettingsError
from app.exposition import serving_metrics
from app.main import create_app
from app.metrics import Metrics

logger = logging.getLogger(__name__)

BACKLOG = 2048
MONGO_WATCH_SECONDS = 1.0
GRACE_SECONDS = 5
"""How long a stop waits for requests under way, such as one whose body never comes."""


class StartError(Exception):
    """The service can't start; the text says what to do."""


def main() -> None:
    """Serve; where that can't be, say why in one line and exit with status 1."""
    # uvicorn re-raises the signal that ended it: as an exception, the ways out below and in serve() are still taken.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        settings = load_settings()
        logs.set_up(settings)
        serve(settings)
    except KeyboardInterrupt:
        return
    except (SettingsError, EmbeddedMongoError, NewerDatabaseError, StartError) as error:
        sys.exit(f"cryptoticker: {error}")


def serve(settings: Settings) -> None:
    """Serve until told to stop. Raises StartError or EmbeddedMongoError if something stands in the way."""
    with ExitStack() as stack:
        listener = stack.enter_context(_listen(settings))
        mongo = None
        if not settings.mongo_url:
            mongo = stack.enter_context(EmbeddedMongo(settings.data_dir / "mongo"))
            settings = replace(settings, mongo_url=mongo.url)
        _check_database(settings, is_ours_alone=mongo is not None)
        metrics = Metrics()
        stack.enter_context(_metrics_port(settings, metrics))
        _announce(settings)
        if mongo is not None:
            _end_with(mongo)
        config = uvicorn.Config(
            create_app(settings, metrics=metrics),
            log_config=None,
            access_log=False,
            server_header=False,
            forwarded_allow_ips=list(settings.trusted_proxies),
            callback_notify=systemd.tell_ready,
            timeout_notify=systemd.TELL_SECONDS,
            timeout_graceful_shutdown=GRACE_SECONDS,
        )
        uvicorn.Server(config).run(sockets=[listener])


def _listen(settings: Settings) -> socket.socket:
    """Take the port before anything else is started: a taken one should cost nobody a database."""
    family = socket.AF_INET6 if ":" in settings.host else socket.AF_INET
    try:
        return socket.create_server((settings.host, settings.port), family=family, backlog=BACKLOG)
    except OSError as error:
        raise StartError(
            f"can't listen on {settings.host}:{settings.port} ({error.strerror}). "
            "Stop what uses that port, or set HOST and PORT to another address."
        ) from error


@contextmanager
def _metrics_port(settings: Settings, metrics: Metrics) -> Iterator[None]:
    """Serve metrics, if there is a METRICS_PORT."""
    if settings.metrics_port is None:
        yield
        return
    host, port = settings.metrics_host, settings.metrics_port
    with ExitStack() as stack:
        try:
            stack.enter_context(serving_metrics(metrics, host=host, port=port))
        except OSError as error:
            raise StartError(
                f"can't serve metrics on {host}:{port} ({error.strerror}). Stop what uses that port, "
                "or set METRICS_HOST and METRICS_PORT to another address, or METRICS_PORT to nothing."
            ) from error
        yield


def _end_with(mongo: EmbeddedMongo) -> None:
    """End this process, with status 1, when its mongod ends: whoever started it can then start both again."""

    def watch() -> None:
        pause = threading.Event()
        while mongo.is_running():
            pause.wait(MONGO_WATCH_SECONDS)
        if mongo.pid is not None:  # else it was stopped, not killed
            logger.critical("the embedded MongoDB has ended, see %s: ending too", mongo.data_dir / "mongod.log")
            os._exit(1)

    threading.Thread(target=watch, name="mongod watch", daemon=True).start()


def _announce(settings: Settings) -> None:
    host = "localhost" if settings.host in {"0.0.0.0", "::"} else settings.host
    logger.info("CryptoTicker on http://%s:%d (see /docs and /health). Ctrl-C stops it.", host, settings.port)
    if not settings.smtp_host:
        logger.warning("SMTP_HOST is not set: nobody is mailed, mails go to %s/", settings.data_dir / "outbox")


def _check_database(settings: Settings, *, is_ours_alone: bool) -> None:
    try:
        with connect(settings.mongo_url) as client:
            client.admin.command("ping")
            migrations.check_version(client[settings.mongo_db])
            if is_ours_alone:  # a copy that was killed must not keep this one waiting for its leases
                leases.clear(client[settings.mongo_db])
                notifications.release_all(client[settings.mongo_db], now=Clock().now())
    except PyMongoError as error:
        raise StartError(
            f"no MongoDB answers at MONGO_URL ({type(error).__name__}). Start it, correct MONGO_URL in .env, "
            "or leave MONGO_URL empty to run an embedded one."
        ) from error


if __name__ == "__main__":
    main()
