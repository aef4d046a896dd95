"""What systemd is told, and what it is told to forbid."""

import os
import re
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import pytest

from app.systemd import TELL_SECONDS
from tests.support import SECRET

ROOT = Path(__file__).parent.parent
UNIT = ROOT / "deploy" / "crypto-ticker.service"
ANALYZE = shutil.which("systemd-analyze")
WORST_EXPOSURE = "15"
"""In tenths; systemd-analyze calls up to 2.0 "OK"."""

needs_analyze = pytest.mark.skipif(ANALYZE is None, reason="there is no systemd-analyze: apt-get install systemd")


@contextmanager
def told(path: str) -> Iterator[socket.socket]:
    """systemd's end of the conversation."""
    with closing(socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)) as listener:
        listener.bind(path)
        listener.settimeout(60)
        yield listener


@pytest.mark.parametrize("abstract", [False, True])
def test_systemd_is_told_when_requests_are_answered(
    tmp_path: Path, mongo_url: str, database_name: str, abstract: bool
) -> None:
    path = f"\0{database_name}" if abstract else str(tmp_path / "notify")
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
    settings = {
        **{"JWT_SECRET": SECRET, "MONGO_URL": mongo_url, "MONGO_DB": database_name, "HOST": "127.0.0.1"},
        **{"PORT": str(port), "COINMARKETCAP_URL": "http://127.0.0.1:9", "BYBIT_URL": "http://127.0.0.1:9"},
        **{"NOTIFY_SOCKET": path.replace("\0", "@"), "PATH": os.environ["PATH"]},
    }
    with (
        told(path) as listener,
        subprocess.Popen([sys.executable, "-m", "app"], cwd=ROOT, env=settings, stderr=subprocess.DEVNULL) as service,
    ):
        try:
            assert listener.recv(1000) == b"READY=1\nWATCHDOG=1"
            with closing(socket.create_connection(("127.0.0.1", port), timeout=10)) as caller:
                caller.sendall(b"GET / HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")
                assert caller.recv(100).startswith(b"HTTP/1.1 200")
        finally:
            service.send_signal(signal.SIGTERM)
        assert service.wait(30) == 0


@needs_analyze
def test_systemd_understands_the_unit(tmp_path: Path) -> None:
    unit = tmp_path / UNIT.name
    text, replaced = re.subn(r"^ExecStart=\S+", f"ExecStart={sys.executable}", UNIT.read_text(), flags=re.MULTILINE)
    assert replaced == 1
    unit.write_text(text)
    said = subprocess.run([str(ANALYZE), "verify", "--man=no", str(unit)], capture_output=True, text=True, timeout=60)
    assert (said.returncode, [line for line in said.stderr.splitlines() if UNIT.name in line]) == (0, [])


@needs_analyze
def test_the_unit_leaves_the_service_few_ways_to_do_harm() -> None:
    command = [str(ANALYZE), "security", "--offline=true", f"--threshold={WORST_EXPOSURE}", str(UNIT)]
    said = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert said.returncode == 0, said.stdout


def test_the_watchdog_is_fed_several_times_before_it_bites() -> None:
    watchdog = re.search(r"^WatchdogSec=(\d+)$", UNIT.read_text(), flags=re.MULTILINE)
    assert watchdog
    assert int(watchdog[1]) >= 3 * TELL_SECONDS
