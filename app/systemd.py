"""Telling systemd how the service is: sd_notify(3)'s protocol, a datagram to the socket that systemd names."""

import logging
import os
import socket

logger = logging.getLogger(__name__)

TELL_SECONDS = 10
"""How often; WatchdogSec in deploy/crypto-ticker.service allows for several that come late."""


async def tell_ready() -> None:
    """Say that requests are answered and that the event loop turns. Without systemd it does nothing."""
    address = os.environ.get("NOTIFY_SOCKET", "")
    if not address:
        return
    if address.startswith("@"):  # Linux's abstract namespace
        address = "\0" + address[1:]
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK) as sender:
            sender.sendto(b"READY=1\nWATCHDOG=1", address)
    except OSError as error:
        logger.warning("systemd could not be told that all is well: %s", error)
