"""The plots, as SVG files in bench/plots/."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from bench.report import PLOTS


@contextmanager
def _figure(name: str, title: str, x: str, y: str) -> Iterator[Any]:
    import matplotlib as mpl  # not before MPLCONFIGDIR is set

    mpl.use("Agg")
    mpl.rcParams["svg.hashsalt"] = "cryptoticker"  # the same figures make the same file
    from matplotlib import pyplot as plt

    PLOTS.mkdir(exist_ok=True)
    figure, axes = plt.subplots(figsize=(7, 4), layout="constrained")
    axes.set(title=title, xlabel=x, ylabel=y)
    axes.grid(alpha=0.3)
    yield axes
    figure.savefig(PLOTS / f"{name}.svg", metadata={"Date": None})
    plt.close(figure)


def poll_cost(counts: Sequence[int], seconds: Sequence[float], usual: float) -> None:
    """Cost of a poll against the number of armed alerts."""
    with _figure("poll_cost", "Evaluating one poll over 500 coins", "armed alerts", "seconds") as axes:
        axes.loglog(counts, seconds, "o-", label="this service")
        axes.loglog(counts[-1:], [usual], "s", label="reading and comparing every alert")
        axes.legend()


def drain(ours: Sequence[tuple[float, int]], usual: Sequence[tuple[float, int]]) -> None:
    """Mails accepted over time; each point is (seconds, mails)."""
    with _figure("burst_drain", "Draining the outbox over one connection", "seconds", "mails accepted") as axes:
        for points, label in ((ours, "this service"), (usual, "a bare smtplib loop")):
            axes.plot([at for at, _ in points], [mails for _, mails in points], label=label)
        axes.legend()


def latencies(seconds: Sequence[float], poll_seconds: float) -> None:
    """From a price's appearance to the mail's acceptance."""
    title = f"Price on the wire to mail accepted, polling every {poll_seconds:g} s"
    with _figure("latency", title, "seconds", "mails") as axes:
        axes.hist(seconds, bins=40)
        axes.axvline(poll_seconds + 1, linestyle="--", color="tab:red", label="limit for the 99th percentile")
        axes.legend()
