"""The Docker files, as far as they can be judged without an engine: what each stack is made of, how it is locked in."""

import re
from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).parent.parent
COMPOSE: dict[str, Any] = yaml.safe_load((ROOT / "docker-compose.yml").read_text(encoding="utf-8"))
SERVICES: dict[str, dict[str, Any]] = COMPOSE["services"]
STACKS = {
    "default": {"mongo", "web"},
    "mail": {"mongo", "web-mail", "mail"},
    "cluster": {"mongo", "mongo2", "mongo3", "web1", "web2", "nginx"},
}
each_service = pytest.mark.parametrize("service", SERVICES.values(), ids=SERVICES)


def stack(profile: str) -> dict[str, dict[str, Any]]:
    return {name: about for name, about in SERVICES.items() if profile in about.get("profiles", [profile])}


@pytest.mark.parametrize("profile", STACKS)
def test_each_profile_is_a_whole_stack_with_one_entrance_at_port_80(profile: str) -> None:
    services = stack(profile)
    assert set(services) == STACKS[profile]
    published = [port for about in services.values() for port in about.get("ports", [])]
    assert [port for port in published if not port.startswith("127.0.0.1:")] == ["${PORT:-80}:8000"]
    assert all(set(about.get("depends_on", {})) <= set(services) for about in services.values())


def test_docker_publishes_80_unless_told_otherwise() -> None:
    assert re.search(r"^PORT=", (ROOT / ".env.example").read_text(), flags=re.MULTILINE) is None


def test_mongodb_is_never_published_and_never_without_a_password() -> None:
    nodes = {name: about for name, about in SERVICES.items() if about.get("image", "").startswith("mongo:")}
    assert set(nodes) == {"mongo", "mongo2", "mongo3"}
    for about in nodes.values():
        assert "ports" not in about
        assert about["environment"]["MONGO_PASSWORD"].startswith("${MONGO_PASSWORD:?")
        assert about["entrypoint"] == ["bash", "/deploy/start.sh"]
    assert "--keyFile /tmp/keyfile" in (ROOT / "deploy" / "mongo" / "start.sh").read_text()
    for name in ("web", "web-mail", "web1", "web2"):
        assert SERVICES[name]["environment"]["MONGO_URL"].startswith("mongodb://cryptoticker:${MONGO_PASSWORD}@mongo:")


@each_service
def test_every_container_is_locked_in_and_comes_back(service: dict[str, Any]) -> None:
    assert service["read_only"] is True
    assert service["cap_drop"] == ["ALL"]
    assert service["security_opt"] == ["no-new-privileges:true"]
    assert service["restart"] == "unless-stopped"
    assert service["stop_grace_period"] == "30s"
    assert service["logging"]["options"] == {"max-size": "10m", "max-file": "3"}
    assert service.get("user", "root") != "root" or service["build"] == "."


def test_images_are_pinned() -> None:
    dockerfile = (ROOT / "Dockerfile").read_text(encoding="utf-8")
    images = re.findall(r"^FROM (\S+)", dockerfile, flags=re.MULTILINE)
    images += [about["image"] for about in SERVICES.values() if "image" in about]
    assert [image for image in images if not re.search(r":v?\d", image)] == []


def test_the_image_gets_no_secret_and_no_root() -> None:
    ignored = (ROOT / ".dockerignore").read_text().splitlines()
    assert ignored[0] == "*"
    assert {line for line in ignored if line.startswith("!")} == {"!requirements.txt", "!app"}
    assert "USER cryptoticker" in (ROOT / "Dockerfile").read_text().splitlines()
