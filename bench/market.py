"""Row 5: the cached aggregated_data, against bare routes that send the same bytes and against the usual way."""

import gzip
import time
import urllib.error
import urllib.request
from dataclasses import dataclass

from bench import stage as stages
from bench.load import Outcome, Plan, put_load, request
from bench.report import Row, at_least, median, say
from bench.stage import KEY, Stage
from sandbox.exchange import Exchange

PATH = "/api/market/aggregated_data"
LEAST = 0.8
LEAST_OVER_USUAL = 20.0


@dataclass(frozen=True)
class Snapshot:
    """What the service sends."""

    plain: bytes
    zipped: bytes
    etag: str


def run(stage: Stage) -> list[Row]:
    """Each form against bare bytes, and against the usual way."""
    with Exchange(market=stages.make_market()) as exchange, stages.service(stage, "market", exchange) as service:
        snapshot = _await_snapshot(service.url)
        files = _write(stage, snapshot)
        with (
            stages.baseline(stage, "bare_bytes", **files) as bare,
            stages.baseline(stage, "usual_market", **files) as usual,
        ):
            rows = [_form(stage, service.url, bare.url, form, snapshot) for form in ("plain", "gzip", "304")]
            return rows + [_usual(stage, service.url, usual.url, form, snapshot) for form in ("plain", "gzip")]


def _form(stage: Stage, service: str, bare: str, form: str, snapshot: Snapshot) -> Row:
    headers, status = _asked(form, snapshot)
    ours, theirs = [], []
    for _ in range(stage.size(9, 3)):
        theirs.append(_load(stage, bare, f"/{form}", headers, status).rate)
        ours.append(_load(stage, service, PATH, headers, status).rate)
    measured, baseline = median(ours), median(theirs)
    say(f"  {form}: {measured:,.0f} a second, a bare route {baseline:,.0f}")
    name = f"aggregated_data, {form}, against a bare Starlette route"
    return at_least("5", name, measured / baseline, LEAST, measured=measured, baseline=baseline, unit="x its rate")


def _usual(stage: Stage, service: str, usual: str, form: str, snapshot: Snapshot) -> Row:
    """The usual way has no compressed form: it answers every request alike."""
    headers, status = _asked(form, snapshot)
    ours, theirs = [], []
    for _ in range(stage.size(5, 2)):
        theirs.append(_load(stage, usual, "/plain", headers, 200).rate)
        ours.append(_load(stage, service, PATH, headers, status).rate)
    measured, baseline = median(ours), median(theirs)
    say(f"  {form}: {measured:,.0f} a second, the usual way {baseline:,.0f}")
    name = f"aggregated_data, {form}, against a dict through a response model"
    value = measured / baseline
    return at_least("5", name, value, LEAST_OVER_USUAL, measured=measured, baseline=baseline, unit="x its rate")


def _load(stage: Stage, url: str, path: str, headers: dict[str, str], status: int) -> Outcome:
    wanted = request("GET", path, {"X-API-Key": KEY, **headers})
    return put_load(Plan(url, [wanted], connections=16, seconds=0.7 if stage.quick else 1.0), expect=status)


def _asked(form: str, snapshot: Snapshot) -> tuple[dict[str, str], int]:
    return {
        "plain": ({}, 200),
        "gzip": ({"Accept-Encoding": "gzip"}, 200),
        "304": ({"If-None-Match": snapshot.etag}, 304),
    }[form]


def _await_snapshot(url: str) -> Snapshot:
    """The first answer that has caps and logos. Raises RuntimeError if none comes."""
    for _ in range(100):
        plain, etag = _get(url, "identity")
        if b"coins/64x64" in plain:
            zipped, _etag = _get(url, "gzip")
            if gzip.decompress(zipped) != plain:
                raise RuntimeError("the gzip form holds something else than the plain one")
            return Snapshot(plain, zipped, etag)
        time.sleep(0.1)
    raise RuntimeError("the service has no market snapshot")


def _get(url: str, encoding: str) -> tuple[bytes, str]:
    asked = urllib.request.Request(url + PATH, headers={"X-API-Key": KEY, "Accept-Encoding": encoding})
    try:
        with urllib.request.urlopen(asked, timeout=30) as answer:
            return answer.read(), answer.headers["ETag"]
    except urllib.error.HTTPError as error:
        if error.code != 503:
            raise
        return b"", ""


def _write(stage: Stage, snapshot: Snapshot) -> dict[str, str]:
    plain, zipped = stage.folder / "snapshot.json", stage.folder / "snapshot.json.gz"
    plain.write_bytes(snapshot.plain)
    zipped.write_bytes(snapshot.zipped)
    say(f"  {len(snapshot.plain):,} bytes, {len(snapshot.zipped):,} with gzip")
    return {"BENCH_PLAIN": str(plain), "BENCH_GZIP": str(zipped), "BENCH_ETAG": snapshot.etag}
