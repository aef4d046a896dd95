"""Row 10: from the command to the first 200 of /health, against starting mongod alone."""

import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from app.database.embedded import EmbeddedMongo
from bench.report import Row, median, say
from bench.stage import ROOT, Stage, end, free_port, wait_for_answer

MOST_MORE = 2.0
COPIED = ("app", "run", ".env.example", "requirements.txt", "requirements-local.txt")


def run(stage: Stage) -> list[Row]:
    """Each start is the first one: with an empty data folder, in a copy of the project."""
    ours, theirs = [], []
    for number in range(stage.size(5, 2)):
        theirs.append(_start_mongod(stage.folder / f"mongod_{number}"))
        ours.append(_start_service(stage.folder / f"copy_{number}"))
    measured, baseline = median(ours), median(theirs)
    say(f"  {measured:.2f} s, mongod alone {baseline:.2f} s")
    value = measured - baseline
    what = "./run local to the first 200 of /health, more than mongod alone"
    return [Row("10", what, value, "s", measured, baseline, f"at most {MOST_MORE:g}", value <= MOST_MORE)]


def _start_mongod(folder: Path) -> float:
    started = time.perf_counter()
    with EmbeddedMongo(folder):
        return time.perf_counter() - started


def _start_service(folder: Path) -> float:
    with _copied(folder) as command:
        port = free_port()
        environment = {**os.environ, "HOST": "127.0.0.1", "PORT": str(port)}
        # Nobody listens there. An upstream that hangs would add what a start waits for its first poll: a second.
        environment |= {"COINMARKETCAP_URL": "http://127.0.0.1:9", "BYBIT_URL": "http://127.0.0.1:9"}
        log = folder / "start.log"
        started = time.perf_counter()
        with (
            log.open("wb") as out,
            subprocess.Popen(command, cwd=folder, env=environment, stdout=out, stderr=out) as child,
        ):
            try:
                wait_for_answer(child, f"http://127.0.0.1:{port}/health", log)
                return time.perf_counter() - started
            finally:
                end(child)


@contextmanager
def _copied(folder: Path) -> Iterator[list[str]]:
    """A copy of the project, so that its .env and data/ are not those of whoever measures; yields the command."""
    folder.mkdir()
    for name in COPIED:
        source = ROOT / name
        copy = shutil.copytree if source.is_dir() else shutil.copy
        copy(source, folder / name)
    if (Path(sys.prefix) / "made-by-run").exists():
        (folder / ".venv").symlink_to(sys.prefix)
        yield ["./run", "local"]
    else:  # a Python that `./run` did not install: the same without the script's own checks
        secret = "JWT_SECRET=a-secret-of-benchmarks-that-is-long-enough\n"
        (folder / ".env").write_text(secret)
        yield [sys.executable, "-m", "app"]
