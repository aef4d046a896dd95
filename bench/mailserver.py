"""`python -m bench.mailserver PORT SECONDS`: an SMTP server in a process of its own, which takes every mail and keeps
none. It says so after so many seconds: servers that put a mail on a disk or look at it first take some.

aiosmtpd, as the sandbox's mailbox, without what the mailbox does to each mail.
"""

import asyncio
import signal
import sys

import uvloop
from aiosmtpd.smtp import SMTP, Envelope, Session


class Acceptor:
    """Takes every mail."""

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds

    async def handle_DATA(self, _server: SMTP, _session: Session, _envelope: Envelope) -> str:  # noqa: N802
        """Say so."""
        if self._seconds:
            await asyncio.sleep(self._seconds)
        return "250 OK"


async def serve(port: int, seconds: float) -> None:
    """Take mails until SIGTERM."""
    loop = asyncio.get_running_loop()
    over = asyncio.Event()
    loop.add_signal_handler(signal.SIGTERM, over.set)
    server = await loop.create_server(
        lambda: SMTP(Acceptor(seconds), enable_SMTPUTF8=True, loop=loop), "127.0.0.1", port
    )
    print("ready", flush=True)
    await over.wait()
    server.close()


if __name__ == "__main__":
    uvloop.run(serve(int(sys.argv[1]), float(sys.argv[2])))
