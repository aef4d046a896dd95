"""Row 4: from a price on the wire to the mail's acceptance."""

import random
import time
from datetime import UTC, datetime

from bench import plots
from bench import stage as stages
from bench.report import Row, percentile, say
from bench.seed import COINS, price_of
from bench.stage import Stage
from sandbox.exchange import Exchange
from sandbox.mailbox import Mailbox

POLL_SECONDS = 2.0


def run(stage: Stage) -> list[Row]:
    """Each round moves some coins so far that some alerts fire, at a moment that the poller doesn't choose."""
    database = stage.armed(stage.million)
    rounds, firing = stage.size(10, 3), _firing(stage)
    chooser = random.Random(4)
    seconds: list[float] = []
    with (
        Exchange(market=stages.make_market()) as exchange,
        Mailbox() as mailbox,
        stages.service(
            stage,
            database.name,
            exchange,
            POLL_SECONDS=str(POLL_SECONDS),
            SMTP_HOST=mailbox.host,
            SMTP_PORT=str(mailbox.port),
        ),
    ):
        time.sleep(2 * POLL_SECONDS)
        for number in range(rounds):
            coin_id = 1 + number * (COINS // rounds)
            price = _price_firing(stage, coin_id)
            time.sleep(chooser.uniform(0, POLL_SECONDS))
            shown_at = datetime.now(UTC)
            exchange.market.set_price(coin_id, price)
            arrived = mailbox.wait_for((number + 1) * firing, 60)
            seconds += [(mail.received_at - shown_at).total_seconds() for mail in arrived[number * firing :]]
    if len(seconds) != rounds * firing:
        raise RuntimeError(f"{len(seconds)} mails came, expected {rounds * firing}")
    plots.latencies(seconds, POLL_SECONDS)
    return [_row(stage, seconds)]


def _firing(stage: Stage) -> int:
    """How many alerts fire at once."""
    return stage.size(100, 20)


def _price_firing(stage: Stage, coin_id: int) -> float:
    """The price at which the coin's closest targets above are reached, and no other."""
    database, firing = stage.armed(stage.million), _firing(stage)
    above = {"status": "created", "coin_id": coin_id, "direction": "above"}
    closest = list(database.alerts.find(above, {"target": 1}).sort("target", 1).limit(firing + 1))
    if len(closest) <= firing or price_of(coin_id) >= closest[0]["target"]:
        raise RuntimeError("there are too few alerts on this coin")
    between = (closest[firing - 1]["target"] + closest[firing]["target"]) / 2
    return float(between)


def _row(stage: Stage, seconds: list[float]) -> Row:
    p99, limit = percentile(seconds, 0.99), POLL_SECONDS + 1
    say(f"  p50 {percentile(seconds, 0.5):.2f} s, p99 {p99:.2f} s, polling every {POLL_SECONDS:g} s")
    what = f"price on the wire to mail accepted, {stage.million:,} armed, {_firing(stage)} firing (p99)"
    return Row("4", what, p99, "s", p99, None, f"under {limit:g} (1 s and the poll interval)", p99 < limit)
