"""Chaos: real breakage at random moments. `--chaos` runs the long form, `--chaos-seed` a failure again."""

import random
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import pytest

from sandbox.exchange import Exchange
from sandbox.mailbox import Mailbox
from tests.chaos.processes import Copies


@dataclass(frozen=True)
class Chaos:
    """The dice of one test, and which form it has."""

    dice: random.Random
    is_long: bool

    def size(self, short: int, long: int) -> int:
        """How many, in this form."""
        return long if self.is_long else short


@pytest.fixture
def chaos(pytestconfig: pytest.Config) -> Chaos:
    """Prints its seed, which pytest shows with a failure."""
    seed = pytestconfig.getoption("--chaos-seed") or random.SystemRandom().randrange(1, 1_000_000)
    print(f"chaos: run it again with --chaos-seed {seed}")
    return Chaos(random.Random(seed), pytestconfig.getoption("--chaos"))


@pytest.fixture
def copies(exchange: Exchange, mailbox: Mailbox, tmp_path: Path) -> Iterator[Copies]:
    """Starts services as processes of their own; whatever lives at the end is killed."""
    with ExitStack() as stack:
        yield stack.enter_context(Copies(exchange, mailbox, tmp_path))
