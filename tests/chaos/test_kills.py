"""Processes, connections and database nodes that die while thousands of alerts fire."""

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from app.database.client import SyncDB, connect, create_indexes
from app.database.coins import ensure_always_known
from sandbox.exchange import Exchange
from sandbox.faults import Fault
from sandbox.mailbox import Mailbox
from tests.chaos.burst import Burst
from tests.chaos.conftest import Chaos
from tests.chaos.processes import Copies, Copy, ReplicaSet, pause
from tests.support import wait_until

IN_FLIGHT = 2
"""Mails that one process may have on the way when it dies: one for each of its SMTP_CONNECTIONS."""
UNSAFE = 50
"""Records of sent mails that may die with a primary; see decision 11."""


@pytest.fixture
def burst_of(exchange: Exchange, mailbox: Mailbox, database: SyncDB, chaos: Chaos) -> Callable[[int], Burst]:
    return lambda count: Burst(exchange, mailbox, database, count, chaos.dice)


def test_killed_at_random_instants_nothing_is_lost_and_little_repeated(
    chaos: Chaos,
    copies: Copies,
    exchange: Exchange,
    mailbox: Mailbox,
    mongo_url: str,
    database: SyncDB,
    burst_of: Callable[[int], Burst],
) -> None:
    """Invariants 1 to 3, with SIGKILL, a mail server that hangs up after DATA, and an exchange that goes away."""
    kills, hang_ups = chaos.size(4, 50), chaos.size(3, 20)
    burst = burst_of(chaos.size(1_500, 40_000))
    burst.begin()
    mailbox.hang_up_after_data(times=hang_ups, keep=True)
    for _ in range(kills):
        copy = copies.start(mongo_url, database.name)
        copy.wait_until_up()
        if chaos.dice.random() < 0.3:
            exchange.faults.add("/", Fault.drop(), times=chaos.dice.randrange(1, 20))
        pause(chaos.dice.uniform(0.0, 1.0))
        copy.kill()
    burst.let_leases_run_out()
    copies.start(mongo_url, database.name).wait_until_up()
    burst.wait_for_mails()
    burst.check(most_repeats=kills * IN_FLIGHT + hang_ups)


def test_of_three_copies_the_poller_dies_and_another_polls_on(
    chaos: Chaos, copies: Copies, exchange: Exchange, mongo_url: str, database: SyncDB, burst_of: Callable[[int], Burst]
) -> None:
    """One mail each; the poller's death is noticed, and what it had claimed is sent by the others."""
    running = [copies.start(mongo_url, database.name, POLL_SECONDS="0.5") for _ in range(3)]
    for copy in running:
        copy.wait_until_up()
    poller = wait_until(lambda: the_poller(running), 60.0)
    burst = burst_of(chaos.size(1_000, 10_000))
    poller.kill()
    running.remove(poller)
    burst.begin()
    second = wait_until(lambda: the_poller(running), 60.0)
    burst.wait_for_mails(len(burst.expected) // 2)
    second.kill()
    burst.let_leases_run_out()
    burst.wait_for_mails()
    burst.check(most_repeats=IN_FLIGHT)


def the_poller(copies: list[Copy]) -> Copy | None:
    """The one that says so, unless the duty is just passing from one to another."""
    pollers = [copy for copy in copies if polls(copy.log())]
    return pollers[0] if len(pollers) == 1 else None


def polls(log: str) -> bool:
    return log.rfind("this copy now does the polling") > log.rfind("leaves to another the polling")


def test_a_copy_that_was_frozen_and_wakes_up_repeats_nothing(
    chaos: Chaos, copies: Copies, mongo_url: str, database: SyncDB, burst_of: Callable[[int], Burst]
) -> None:
    """Two copies that both believe to be the poller: firing and claiming are conditional writes."""
    first = copies.start(mongo_url, database.name)
    first.wait_until_up()
    burst = burst_of(chaos.size(500, 5_000))
    first.freeze()
    second = copies.start(mongo_url, database.name)
    second.wait_until_up()
    burst.begin()
    burst.wait_for_mails(chaos.size(50, 1_000))
    first.thaw()
    burst.wait_for_mails()
    burst.check(most_repeats=0)
    assert {first.terminate(), second.terminate()} == {0}


@pytest.fixture
def replica_set(tmp_path: Path) -> Iterator[ReplicaSet]:
    with ReplicaSet(tmp_path) as started:
        yield started


def test_the_primary_dies_in_the_middle_of_the_burst(
    chaos: Chaos, copies: Copies, exchange: Exchange, mailbox: Mailbox, replica_set: ReplicaSet
) -> None:
    """Nothing is lost and nothing fires that should not: what a majority did not hold is simply done again."""
    with ExitStack() as stack:
        database = stack.enter_context(connect(replica_set.url))["chaos"]
        create_indexes(database)
        ensure_always_known(database)
        burst = Burst(exchange, mailbox, database, chaos.size(1_000, 10_000), chaos.dice)
        copies.start(replica_set.url, database.name).wait_until_up()
        burst.begin()
        burst.wait_for_mails(chaos.dice.randrange(1, chaos.size(100, 1_000)))
        deaths = chaos.size(1, 3)
        for _ in range(deaths):
            dead = replica_set.kill_primary()
            wait_until(replica_set.primary, 60.0)
            pause(chaos.dice.uniform(0.0, 1.0))
            replica_set.start(dead)
        burst.wait_for_mails()
        burst.check(most_repeats=deaths * (UNSAFE + IN_FLIGHT))
