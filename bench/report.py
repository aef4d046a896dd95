"""What was measured: as a table, as bench/results.json, and the machine that it was measured on."""

import json
import os
import platform
import statistics
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

BENCH = Path(__file__).resolve().parent
RESULTS = BENCH / "results.json"
PLOTS = BENCH / "plots"


@dataclass(frozen=True, slots=True)
class Row:
    """One line of the table; `value` is the figure that `target` speaks of, `measured` and `baseline` it is made of."""

    row: str
    name: str
    value: float
    unit: str
    measured: float
    baseline: float | None
    target: str
    holds: bool


def at_least(row: str, name: str, value: float, least: float, *, measured: float, baseline: float, unit: str) -> Row:
    """A row whose figure should be large."""
    return Row(row, name, value, unit, measured, baseline, f"at least {least:g}", value >= least)


def at_most(row: str, name: str, value: float, most: float, *, measured: float, baseline: float, unit: str) -> Row:
    """A row whose figure should be small."""
    return Row(row, name, value, unit, measured, baseline, f"at most {most:g}", value <= most)


def median(values: Sequence[float]) -> float:
    """The middle of several runs."""
    return float(statistics.median(values))


def percentile(values: Sequence[float], share: float) -> float:
    """The value that `share` of all don't exceed (nearest rank)."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, max(0, round(share * len(ordered) + 0.5) - 1))]


def say(text: str) -> None:
    """Tell how far the run is."""
    print(text, flush=True)


def table(rows: Sequence[Row]) -> str:
    """The rows as aligned text."""
    lines = [("row", "work", "value", "target", "measured", "baseline", "holds")]
    for row in rows:
        baseline = "-" if row.baseline is None else f"{row.baseline:.4g}"
        verdict = "yes" if row.holds else "NO"
        value = f"{row.value:.3g} {row.unit}"
        lines.append((row.row, row.name, value, row.target, f"{row.measured:.4g}", baseline, verdict))
    widths = [max(len(line[column]) for line in lines) for column in range(len(lines[0]))]
    return "\n".join("  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)) for line in lines)


def write_results(rows: Sequence[Row], machine: dict[str, Any]) -> None:
    """Write bench/results.json, whole or not at all."""
    document = {"machine": machine, "rows": [_rounded(asdict(row)) for row in rows]}
    part = RESULTS.with_suffix(".part")
    part.write_text(json.dumps(document, indent=1) + "\n")
    part.replace(RESULTS)


def machine_facts(*, quick: bool, mongod: str) -> dict[str, Any]:
    """What the figures depend on."""
    return {
        "form": "quick" if quick else "full",
        "at": datetime.now(UTC).isoformat(timespec="seconds"),
        "system": f"{platform.system()} {platform.release()} {platform.machine()}",
        "processor": _processor(),
        "cores": os.cpu_count(),
        "memory_gb": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 1024**3, 1),
        "load_average": [round(load, 2) for load in os.getloadavg()],
        "python": platform.python_version(),
        "mongod": mongod,
    }


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), "")


def _rounded(row: dict[str, Any]) -> dict[str, Any]:
    return {name: float(f"{value:.5g}") if isinstance(value, float) else value for name, value in row.items()}
