"""One refresh of the snapshot: what is asked of both upstreams, and what is kept when one of them fails."""

import logging
import math
from datetime import timedelta

from app.clock import Clock
from app.errors import UpstreamError, UpstreamThrottledError
from app.market.aggregated import Figures, bybit_figures, coin_figures, join, match_coins
from app.market.bybit import SOURCE, Bybit
from app.market.coinmarketcap import LISTINGS_PAGE, CoinMarketCap
from app.market.coinmarketcap import SOURCE as COINMARKETCAP
from app.market.coinmarketcap_rows import Listing
from app.market.credits import Credits
from app.market.wire import Snapshot, make_snapshot

logger = logging.getLogger(__name__)

MOST_PAGES = 4
FULL_SEARCH_EVERY = timedelta(days=1)
"""How often pairs without a coin are looked for on every page; in between, only pages that helped are paid for."""
FIRST_PAUSE_SECONDS = 15.0
LONGEST_PAUSE_SECONDS = 300.0
CREDIT_SHARE = 0.5
"""How much of a key's credits the snapshots may use up: alerts come first."""
CREDITS_PER_PAGE = 20
BELIEVED_AFTER = timedelta(days=1)
"""When the last good figures are this old, new ones are taken even if most of what was known is missing."""


class Refresher:
    """Makes snapshots out of what both upstreams say; used by one thread at a time."""

    def __init__(self, *, bybit: Bybit, coinmarketcap: CoinMarketCap, credits_of_key: Credits, clock: Clock) -> None:
        self._bybit = bybit
        self._coinmarketcap = coinmarketcap
        self._credits = credits_of_key
        self._clock = clock
        self._caps_not_before = clock.monotonic()
        self._caps_asked_at = -math.inf
        self._caps_pause = FIRST_PAUSE_SECONDS
        self._pages = PagePlan(clock)

    @property
    def caps_wait_seconds(self) -> float:
        """How long CoinMarketCap is left alone: after it failed, or because the key's credits must last."""
        pace = self._credits.pace(calls=self._pages.usual, credits_each=CREDITS_PER_PAGE, share=CREDIT_SHARE)
        return max(self._caps_not_before, self._caps_asked_at + pace.seconds) - self._clock.monotonic()

    def refresh(self, last: Snapshot | None) -> Snapshot:
        """Return a new snapshot. CoinMarketCap failing, it keeps the coins of the last one; Bybit failing, it raises.

        Raises UpstreamError for a Bybit that fails, or that suddenly knows less than half of the pairs.
        """
        figures, bases = bybit_figures(self._bybit.instruments(), self._bybit.tickers())
        now, born = self._clock.now(), self._clock.monotonic()
        if last and len(figures) < len(last.pairs) / 2 and now - last.made_at < BELIEVED_AFTER:
            raise UpstreamError(SOURCE, f"it lists {len(figures)} USDT pairs after {len(last.pairs)}: not believed")
        coins = self._coins(figures, bases, last)
        if coins is not None:
            return make_snapshot(join(figures, coins), made_at=now, capped_at=now, born=born)
        kept = coin_figures(last.pairs) if last else {}
        capped_at = last.capped_at if last else None
        return make_snapshot(join(figures, kept), made_at=now, capped_at=capped_at, born=born)

    def _coins(
        self, figures: dict[str, Figures], bases: dict[str, str], last: Snapshot | None
    ) -> dict[str, Figures] | None:
        """CoinMarketCap's figures of the pairs, or None if it gives none now."""
        self._credits.look(self._coinmarketcap)
        if self.caps_wait_seconds > 0:
            return None
        try:
            coins = self._match(figures, bases)
            self._check_not_worse(coins, last)
        except UpstreamError as error:
            self._leave_alone(error)
            return None
        except Exception as error:
            # Whatever is odd about a page of thousands of coins, Bybit's prices go out all the same.
            logger.exception("the listings could not be joined")
            self._leave_alone(
                UpstreamError(COINMARKETCAP, f"listings that could not be joined ({type(error).__name__})")
            )
            return None
        self._caps_pause = FIRST_PAUSE_SECONDS
        self._caps_asked_at = self._clock.monotonic()
        return coins

    def _match(self, figures: dict[str, Figures], bases: dict[str, str]) -> dict[str, Figures]:
        tickers = {base.upper() for base in bases.values()}
        listings: dict[int, Listing] = {}
        coins: dict[str, Figures] = {}
        for page in range(MOST_PAGES):
            fetched = self._coinmarketcap.listings(page * LISTINGS_PAGE + 1, tickers)
            listings |= {listing.coin_id: listing for listing in fetched.listings}
            before, coins = len(coins), match_coins(figures, bases, listings.values())
            missing = bases.keys() - coins.keys()
            if self._pages.is_enough(page, missing, found_some=len(coins) > before, is_last=fetched.is_last):
                break
        return coins

    def _check_not_worse(self, coins: dict[str, Figures], last: Snapshot | None) -> None:
        known = len(coin_figures(last.pairs)) if last else 0
        recent = last and last.capped_at and self._clock.now() - last.capped_at < BELIEVED_AFTER
        if not coins or (recent and len(coins) < known / 2):
            raise UpstreamError(COINMARKETCAP, f"its listings fit {len(coins)} pairs after {known}: not believed")

    def _leave_alone(self, error: UpstreamError) -> None:
        seconds = self._caps_pause
        self._caps_pause = min(seconds * 2, LONGEST_PAUSE_SECONDS)
        if isinstance(error, UpstreamThrottledError) and error.retry_at is not None:
            seconds = max(seconds, (error.retry_at - self._clock.now()).total_seconds())
        self._caps_not_before = self._clock.monotonic() + seconds
        logger.warning("market caps stay as they are, next try in %.0f s: %s", seconds, error)


class PagePlan:
    """How many pages of listings are worth their credits: some pairs have no coin there, however far one looks."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._searched_at = clock.now() - FULL_SEARCH_EVERY
        self._hopeless: set[str] = set()
        self._useful_page = 0

    @property
    def usual(self) -> int:
        """How many pages a refresh takes."""
        return self._useful_page + 1

    def is_enough(self, page: int, missing: set[str], *, found_some: bool, is_last: bool) -> bool:
        """Whether to stop after this page (from 0) with these pairs unmatched."""
        if found_some:
            self._useful_page = max(self._useful_page, page)
        if is_last or page == MOST_PAGES - 1:
            self._searched_at, self._hopeless = self._clock.now(), missing
            return True
        if not missing:
            return True
        searched = self._clock.now() - self._searched_at < FULL_SEARCH_EVERY
        return searched and page >= self._useful_page and missing <= self._hopeless
