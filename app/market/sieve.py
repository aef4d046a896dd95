"""Picks the few rows that matter out of a page of thousands, in a process of its own.

Parsing five megabytes of JSON holds Python's lock for 40 ms, in which no request is answered. Run as a script, this
reads a line with the wanted tickers (a JSON list) and then the reply from its input, and writes what `sift` returns.
"""

import json
import logging
import os
import subprocess
import sys
from collections.abc import Collection
from typing import Any

logger = logging.getLogger(__name__)

BIG_BYTES = 500_000
"""Smaller replies are parsed in place: starting a process takes longer."""
PATIENCE_SECONDS = 20.0
ROW_FIELDS = ("id", "name", "symbol", "cmc_rank")
QUOTE_FIELDS = ("symbol", "price", "market_cap")
NICENESS = 10
"""The requests that are being answered meanwhile come first."""


def sift(content: bytes, tickers: Collection[str]) -> Any:
    """Return the reply with only the rows of `data` whose upper-case symbol is wanted, and their former `row_count`.

    Of rows and quotes only what is used is kept.

    Anything that is no page of rows is returned as it is. Raises ValueError for what is no JSON.
    """
    body = json.loads(content)
    rows = body.get("data") if isinstance(body, dict) else None
    if isinstance(rows, list):
        wanted = set(tickers)
        body["row_count"] = len(rows)
        body["data"] = [
            _slim(row) for row in rows if isinstance(row, dict) and str(row.get("symbol")).strip().upper() in wanted
        ]
    return body


def _slim(row: dict[str, Any]) -> dict[str, Any]:
    kept = {name: row.get(name) for name in ROW_FIELDS}
    quotes = row.get("quote")
    if isinstance(quotes, list):
        kept["quote"] = [
            {name: quote.get(name) for name in QUOTE_FIELDS} for quote in quotes if isinstance(quote, dict)
        ]
    return kept


def sift_aside(content: bytes, tickers: Collection[str], python: str = sys.executable) -> Any:
    """Like `sift`, but a big reply is parsed by another process, or here where none can be started."""
    if len(content) < BIG_BYTES:
        return sift(content, tickers)
    command = [python, "-I", __file__]
    sent = json.dumps(sorted(tickers)).encode() + b"\n" + content
    try:
        done = subprocess.run(command, input=sent, capture_output=True, timeout=PATIENCE_SECONDS, check=True)
    except (OSError, subprocess.SubprocessError) as error:
        logger.warning("a reply could not be parsed aside (%s): requests wait for it", type(error).__name__)
        return sift(content, tickers)
    return json.loads(done.stdout)


def main() -> None:
    """Sift standard input to standard output; what is no JSON goes through as null."""
    os.nice(NICENESS)
    tickers = json.loads(sys.stdin.buffer.readline())
    try:
        body = sift(sys.stdin.buffer.read(), tickers)
    except (ValueError, RecursionError):
        body = None
    sys.stdout.write(json.dumps(body))


if __name__ == "__main__":
    main()
