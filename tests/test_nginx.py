"""A real nginx with the shipped deploy/nginx.conf in front of the real process: only paths and ports differ."""

import json
import os
import re
import shutil
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import httpx
import pytest
import trustme

from sandbox.exchange import Exchange
from tests.support import PASSWORD, SECRET, wait_until

ROOT = Path(__file__).parent.parent
CONF = ROOT / "deploy" / "nginx.conf"
NAME = "alerts.example.com"
API_KEY = "market-key-of-tests"
NGINX = shutil.which("nginx", path=f"{os.environ['PATH']}:/usr/sbin")
SNAPSHOT = "/api/market/aggregated_data"

pytestmark = pytest.mark.skipif(NGINX is None, reason="there is no nginx: apt-get install nginx")


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port: int = probe.getsockname()[1]
        return port


def listens(port: int) -> bool:
    with closing(socket.socket()) as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


@contextmanager
def process(command: list[str], port: int, environment: dict[str, str] | None = None) -> Iterator[None]:
    """A program that listens on a port, for as long as it is needed."""
    with subprocess.Popen(command, cwd=ROOT, env=environment, stderr=subprocess.PIPE, text=True) as running:
        try:
            wait_until(lambda: listens(port) or running.poll() is not None)
            assert running.poll() is None, running.stderr and running.stderr.read()
            yield
        finally:
            running.terminate()
            running.communicate()


def service(mongo_url: str, database: str, port: int, **settings: str) -> dict[str, str]:
    """The environment of `python -m app`."""
    nowhere = {"COINMARKETCAP_URL": "http://127.0.0.1:9", "BYBIT_URL": "http://127.0.0.1:9"}
    own = {"HOST": "127.0.0.1", "PORT": str(port), "MONGO_URL": mongo_url, "MONGO_DB": database}
    secrets = {"JWT_SECRET": SECRET, "CRYPTO_API_KEY": API_KEY, "BCRYPT_ROUNDS": "4"}
    return {"PATH": os.environ["PATH"], **nowhere, **own, **secrets, **settings}


class Server:
    """nginx's files and ports, in a folder."""

    def __init__(self, folder: Path, service_port: int) -> None:
        self.http, self.https = free_port(), free_port()
        self.webroot = folder / "www"
        self.authority = trustme.CA()
        certificate = self.authority.issue_cert(NAME)
        certificate.private_key_and_cert_chain_pem.write_to_path(folder / "both.pem")
        self.conf = folder / "nginx.conf"
        self.conf.write_text(self._main(folder, self._site(folder, service_port)))

    def _site(self, folder: Path, service_port: int) -> str:
        """The shipped file, with what differs on every machine replaced."""
        text = CONF.read_text(encoding="utf-8")
        for pattern, replacement, times in [
            (r"127\.0\.0\.1:8000", f"127.0.0.1:{service_port}", 1),
            (r"listen 80;", f"listen 127.0.0.1:{self.http};", 1),
            (r"listen 443 ssl", f"listen 127.0.0.1:{self.https} ssl", 1),
            (r"\n *listen \[::\].*", "", 2),
            (r"/etc/letsencrypt/live/alerts\.example\.com/\w+\.pem", str(folder / "both.pem"), 2),
            (r"/var/www/html", str(self.webroot), 1),
        ]:
            text, replaced = re.subn(pattern, replacement, text)
            assert replaced == times, pattern
        return text

    def _main(self, folder: Path, site: str) -> str:
        temporary = "".join(
            f"{kind}_temp_path {folder}/{kind};\n" for kind in ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
        )
        user = "user root;\n" if os.geteuid() == 0 else ""
        return (
            f"{user}daemon off;\npid {folder}/pid;\nerror_log stderr;\nevents {{}}\n"
            f"http {{\naccess_log off;\n{temporary}{site}}}\n"
        )

    def command(self, *options: str) -> list[str]:
        assert NGINX
        return [NGINX, "-e", "stderr", "-c", str(self.conf), *options]


class Client:
    """Calls the public name, which leads to this nginx."""

    def __init__(self, server: Server) -> None:
        trust = server.authority
        context = httpx.create_ssl_context()
        trust.configure_trust(context)
        self._http = httpx.Client(verify=context, base_url=f"https://127.0.0.1:{server.https}", trust_env=False)

    def get(self, path: str, **headers: str) -> httpx.Response:
        return self._call("GET", path, b"", headers)

    def post(self, path: str, body: str, **headers: str) -> httpx.Response:
        return self._call("POST", path, body.encode(), {"content_type": "application/json", **headers})

    def _call(self, method: str, path: str, body: bytes, headers: dict[str, str]) -> httpx.Response:
        given = {"Host": NAME, **{name.replace("_", "-"): value for name, value in headers.items()}}
        name = {"sni_hostname": NAME}
        return self._http.request(method, path, content=body, headers=given, extensions=name, timeout=30)

    def close(self) -> None:
        self._http.close()


@pytest.fixture
def server(tmp_path: Path, mongo_url: str, database_name: str, exchange: Exchange) -> Iterator[Server]:
    """The service behind nginx."""
    port = free_port()
    server = Server(tmp_path, port)
    environment = service(mongo_url, database_name, port, BYBIT_URL=exchange.url, COINMARKETCAP_URL=exchange.url)
    with (
        process([sys.executable, "-m", "app"], port, environment),
        process(server.command(), server.https),
    ):
        yield server


@pytest.fixture
def client(server: Server) -> Iterator[Client]:
    with closing(Client(server)) as client:
        yield client


@pytest.fixture
def lonely(tmp_path: Path) -> Iterator[Client]:
    """nginx with no service behind it."""
    server = Server(tmp_path, free_port())
    with process(server.command(), server.https), closing(Client(server)) as client:
        yield client


def sign_up_body(name: str) -> str:
    return f'{{"username": "{name}", "email": "{name}@example.com", "password": "{PASSWORD}"}}'


def token(answer: httpx.Response) -> str:
    assert answer.status_code == 201, answer.text
    return f"Bearer {answer.json()['access_token']}"


def test_nginx_finds_no_fault_with_the_file(tmp_path: Path) -> None:
    server = Server(tmp_path, free_port())
    said = subprocess.run(server.command("-t", "-q"), capture_output=True, text=True)
    assert (said.returncode, said.stderr) == (0, "")


def test_http_leads_to_https_but_for_certbots_proof(server: Server) -> None:
    proof = server.webroot / ".well-known" / "acme-challenge" / "token"
    proof.parent.mkdir(parents=True)
    proof.write_text("proof")
    plain = f"http://127.0.0.1:{server.http}"
    asked = httpx.get(f"{plain}/.well-known/acme-challenge/token", headers={"Host": NAME}, trust_env=False)
    assert (asked.status_code, asked.text) == (200, "proof")
    moved = httpx.get(f"{plain}/alerts/fetch/?page=2", headers={"Host": "evil.example.net"}, trust_env=False)
    assert (moved.status_code, moved.headers["Location"]) == (301, f"https://{NAME}/alerts/fetch/?page=2")


def test_links_name_the_public_address_whatever_a_caller_claims(client: Client) -> None:
    alice = token(client.post("/user/signup/", sign_up_body("alice")))
    for target in (150_000, 160_000):
        made = client.post("/alerts/create/", f'{{"targetPrice": {target}}}', authorization=alice)
        assert made.status_code == 201
    claims = {"x_forwarded_proto": "http", "x_forwarded_host": "evil.example.net", "forwarded": "proto=http"}
    listed = client.get("/alerts/fetch/?per_page=1", authorization=alice, **claims)
    links = re.findall(r"<([^>]+)>", listed.headers["Link"])
    assert links
    assert {link.partition("/alerts/")[0] for link in links} == {f"https://{NAME}"}


@pytest.mark.parametrize(("trusted", "scheme"), [("127.0.0.1", "https"), ("10.0.0.0/8", "http")])
def test_forwarded_headers_count_only_from_a_trusted_proxy(
    mongo_url: str, database_name: str, trusted: str, scheme: str
) -> None:
    port = free_port()
    environment = service(mongo_url, database_name, port, TRUSTED_PROXIES=trusted)
    with (
        process([sys.executable, "-m", "app"], port, environment),
        httpx.Client(base_url=f"http://127.0.0.1:{port}", trust_env=False, timeout=30) as direct,
    ):
        signed_up = direct.post("/user/signup/", json=json.loads(sign_up_body("alice")))
        headers = {"Authorization": token(signed_up), "X-Forwarded-Proto": "https"}
        for target in (150_000, 160_000):
            direct.post("/alerts/create/", json={"targetPrice": target}, headers=headers)
        link = direct.get("/alerts/fetch/?per_page=1", headers=headers).headers["Link"]
        assert link.startswith(f"<{scheme}://127.0.0.1:{port}/alerts/fetch/")


def test_every_answer_carries_the_security_headers_once(client: Client) -> None:
    answers = [client.get("/"), client.get("/nowhere"), client.post("/user/login/", "x" * 70_000)]
    assert [answer.status_code for answer in answers] == [200, 404, 413]
    for answer in answers:
        assert answer.headers.get_list("Strict-Transport-Security") == ["max-age=31536000"]
        assert answer.headers.get_list("X-Content-Type-Options") == ["nosniff"]
        assert answer.headers.get_list("Content-Security-Policy") == ["frame-ancestors 'none'"]
        assert answer.headers.get_list("Referrer-Policy") == ["no-referrer"]
        assert re.fullmatch(r"nginx|", answer.headers.get("Server", ""))


def test_signing_in_too_often_is_a_429_and_slows_nothing_else(client: Client) -> None:
    attempts = [client.post("/user/login/", '{"email": "a@example.com", "password": "wrong"}') for _ in range(12)]
    assert [answer.status_code for answer in attempts] == [401] * 11 + [429]
    refused = client.post("/user/signup", sign_up_body("alice"))
    assert (refused.status_code, refused.headers["Retry-After"]) == (429, "6")
    assert refused.headers["Content-Type"] == "application/json"
    assert refused.json()["detail"].startswith("Too many attempts")
    assert client.get("/").status_code == 200


def test_a_body_may_be_as_large_as_the_service_allows(client: Client) -> None:
    """At 64 KiB the service answers, above it nginx does, in the service's words."""
    largest = client.post("/alerts/create/", "x" * 65_536)
    assert largest.status_code in {401, 422}
    for path in ("/alerts/create/", "/user/login/"):
        refused = client.post(path, "x" * 65_537)
        assert refused.status_code == 413
        assert refused.json() == {"detail": "The request body is larger than the 65536 bytes that are allowed."}


def test_market_data_passes_compressed_once_and_is_kept_for_nobody(client: Client) -> None:
    """After answers to a caller with the key, one without it is still refused, and one that has it gets a 304."""
    first = wait_until(lambda: (answer := client.get(SNAPSHOT, x_api_key=API_KEY)).status_code == 200 and answer)
    for encoding in ("br", "gzip"):
        answer = client.get(SNAPSHOT, x_api_key=API_KEY, accept_encoding=encoding)
        assert answer.headers.get_list("Content-Encoding") == [encoding]
    assert first.headers["Cache-Control"].startswith("private, max-age=")
    again = client.get(SNAPSHOT, x_api_key=API_KEY, if_none_match=first.headers["ETag"])
    assert (again.status_code, again.content) == (304, b"")
    assert client.get(SNAPSHOT).status_code == 401
    assert client.get(SNAPSHOT, x_api_key="wrong").status_code == 401


def test_while_the_service_is_away_callers_are_told_when_to_come_back(lonely: Client) -> None:
    answer = lonely.get("/alerts/fetch/")
    assert (answer.status_code, answer.headers["Retry-After"]) == (503, "5")
    assert "being started" in answer.json()["detail"]
    assert "Strict-Transport-Security" in answer.headers
