"""`python -m bench [--quick] [--rows 1,5]`: run the benchmarks, print the table, write results and plots."""

import argparse
import logging
import os
import signal
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from bench import delivery, firing, http_api, market, memory, startup, wire
from bench.report import Row, machine_facts, say, table, write_results
from bench.stage import Stage, open_stage


@dataclass(frozen=True)
class Benchmark:
    """The rows that one function measures together."""

    rows: tuple[str, ...]
    run: Callable[[Stage], list[Row]]


BENCHMARKS = (
    Benchmark(("5",), market.run),
    Benchmark(("1", "1b"), firing.run_poll),
    Benchmark(("2",), firing.run_burst),
    Benchmark(("3", "3b"), delivery.run),
    Benchmark(("6",), http_api.run_fetch),
    Benchmark(("7",), http_api.run_create),
    Benchmark(("8",), http_api.run_logins),
    Benchmark(("10",), startup.run),
    Benchmark(("4",), wire.run),
    Benchmark(("9",), memory.run),  # the last one: it fires a tenth of the alerts
)


def main() -> None:
    """Run what was asked for."""
    options = _options()
    _log_nowhere()
    wanted = set(options.rows.split(",")) if options.rows else None
    chosen = [each for each in BENCHMARKS if wanted is None or wanted & set(each.rows)]
    rows: list[Row] = []
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # every process is ended on that way out, too
    with (
        tempfile.TemporaryDirectory(prefix="cryptoticker-bench-") as folder,
        open_stage(Path(folder), quick=options.quick) as stage,
    ):
        os.environ["MPLCONFIGDIR"] = folder  # matplotlib would keep a cache of fonts at home
        machine = machine_facts(quick=options.quick, mongod=_mongod_version(stage))
        for each in chosen:
            rows += _measured(each, stage)
    rows.sort(key=lambda row: (int(row.row.rstrip("b")), row.row))
    write_results(rows, machine)
    print(table(rows))


def _measured(benchmark: Benchmark, stage: Stage) -> Sequence[Row]:
    say(f"row {', '.join(benchmark.rows)} ...")
    started = time.perf_counter()
    rows = benchmark.run(stage)
    say(f"  ({time.perf_counter() - started:.0f} s)")
    return rows


def _mongod_version(stage: Stage) -> str:
    return str(stage.database("admin").client.server_info()["version"])


def _log_nowhere() -> None:
    """The service logs each mail: that costs what it costs, but nobody wants to read it here."""
    logging.basicConfig(level=logging.INFO, filename=os.devnull)


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="./run bench", description="Measure the service against named baselines.")
    parser.add_argument("--quick", action="store_true", help="small sizes, under two minutes")
    parser.add_argument("--rows", metavar="1,5", help="only these rows of the table")
    return parser.parse_args()


if __name__ == "__main__":
    main()
