"""Parts of the snapshot, for callers who want little: `symbols=` and `fields=`."""

import asyncio
from concurrent.futures import Executor

from app.errors import NotFoundError, UnprocessableError
from app.market.aggregated import FIELDS
from app.market.wire import Body, Snapshot, compress, serialise

MOST_SYMBOLS = 1000
MOST_PARTS = 64
"""Different parts of one snapshot that are kept ready."""


async def part_of(snapshot: Snapshot, *, symbols: str, fields: str, pool: Executor) -> Body:
    """Return the pairs in `symbols` with the figures in `fields`, each a list with commas, empty for all.

    Raises NotFoundError for a pair that the snapshot lacks, UnprocessableError for a figure that no pair has.
    """
    wanted = (_pairs(snapshot, symbols), _fields(fields))
    if (body := snapshot.parts.get(wanted)) is None:
        body = await asyncio.get_running_loop().run_in_executor(pool, _make, snapshot, *wanted)
        if len(snapshot.parts) >= MOST_PARTS:
            snapshot.parts.clear()
        snapshot.parts[wanted] = body
    return body


def _make(snapshot: Snapshot, pairs: tuple[str, ...], fields: tuple[str, ...]) -> Body:
    chosen = {pair: snapshot.pairs[pair] for pair in pairs or snapshot.pairs}
    return compress(serialise({pair: {name: row[name] for name in fields} for pair, row in chosen.items()}))


def _pairs(snapshot: Snapshot, symbols: str) -> tuple[str, ...]:
    pairs = tuple(dict.fromkeys(_names(symbols.upper())))
    if len(pairs) > MOST_SYMBOLS:
        raise UnprocessableError(
            f"`symbols` holds {len(pairs)} pairs; at most {MOST_SYMBOLS} fit. Leave it out for all."
        )
    if unknown := [pair for pair in pairs if pair not in snapshot.pairs]:
        raise NotFoundError(f"Bybit has no spot USDT pair {', '.join(map(repr, unknown[:10]))}.")
    return pairs


def _fields(fields: str) -> tuple[str, ...]:
    names = set(_names(fields))
    if unknown := sorted(names - set(FIELDS)):
        raise UnprocessableError(f"`fields` knows {', '.join(FIELDS)} (several with commas), not {unknown[0][:50]!r}.")
    return tuple(name for name in FIELDS if name in names) or FIELDS


def _names(text: str) -> list[str]:
    return [name.strip() for name in text.split(",") if name.strip()]
