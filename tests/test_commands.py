"""The commands and the Docker files, as far as they go without installing packages or starting containers."""

import os
import re
import shutil
import signal
import socket
import stat
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
SECRETS = ("JWT_SECRET", "CRYPTO_API_KEY", "MONGO_PASSWORD")


def project(folder: Path) -> Path:
    """A copy of what the commands need before anything is installed."""
    folder.mkdir()
    for name in ("run", "rebuild", ".env.example"):
        shutil.copy(ROOT / name, folder / name)
    return folder


def run(folder: Path, *command: str, path: str | None = None) -> subprocess.CompletedProcess[str]:
    environment = {"PATH": path or os.environ["PATH"]}
    return subprocess.run(
        command, cwd=folder, env=environment, capture_output=True, text=True, stdin=subprocess.DEVNULL
    )


def settings(text: str) -> dict[str, str]:
    """The settings of an env file; those that stand in a comment too."""
    return dict(re.findall(r"^(?:# )?([A-Z_]+)=(.*)$", text, flags=re.MULTILINE))


@pytest.mark.parametrize("script", ["run", "rebuild", ".ci/run"])
def test_commands_can_be_run_and_are_valid_bash(script: str) -> None:
    assert os.access(ROOT / script, os.X_OK)
    assert run(ROOT, "bash", "-n", script).returncode == 0


def test_env_is_private_and_keeps_every_setting(tmp_path: Path) -> None:
    folder = project(tmp_path / "copy")
    assert run(folder, "./run", "env").returncode == 0
    assert stat.S_IMODE((folder / ".env").stat().st_mode) == 0o600
    example, written = (settings((folder / name).read_text()) for name in (".env.example", ".env"))
    assert list(written) == list(example)
    assert {name for name in example if example[name] != written[name]} == set(SECRETS)
    assert sorted(path.name for path in folder.iterdir()) == [".env", ".env.example", "rebuild", "run"]


def test_env_makes_fresh_secrets_that_are_long_enough(tmp_path: Path) -> None:
    made = []
    for folder in (project(tmp_path / "one"), project(tmp_path / "two")):
        run(folder, "./run", "env")
        written = settings((folder / ".env").read_text())
        made += [written[name] for name in SECRETS]
    assert len(set(made)) == 2 * len(SECRETS)
    assert all(re.fullmatch(r"[A-Za-z0-9_-]{64}", secret) for secret in made)


def test_env_never_overwrites(tmp_path: Path) -> None:
    folder = project(tmp_path / "copy")
    (folder / ".env").write_text("JWT_SECRET=mine\n")
    result = run(folder, "./run", "env")
    assert (result.returncode, result.stdout) == (0, ".env is there already: it stays as it is.\n")
    assert (folder / ".env").read_text() == "JWT_SECRET=mine\n"


def test_commands_work_from_any_folder(tmp_path: Path) -> None:
    folder = project(tmp_path / "a copy")
    assert run(tmp_path, str(folder / "run"), "env").returncode == 0
    assert (folder / ".env").exists()


def test_help_names_every_command() -> None:
    result = run(ROOT, "./run", "help")
    commands = re.findall(r"^  ([a-z]+)\) run_", (ROOT / "run").read_text(), flags=re.MULTILINE)
    assert result.returncode == 0
    assert {"local", "demo", "test", "bench", "env"} <= set(commands)
    for command in set(commands) - {"docker"}:
        assert f"\n  {command} " in result.stdout


@pytest.mark.parametrize("command", ["backup", "restore"])
def test_a_backup_needs_a_file(tmp_path: Path, command: str) -> None:
    result = run(project(tmp_path / "copy"), "./run", command)
    assert result.returncode == 1
    assert result.stderr.startswith(f"usage: ./run {command} FILE")


def test_a_file_to_restore_is_looked_for_where_the_command_was_given(tmp_path: Path) -> None:
    result = run(tmp_path, str(project(tmp_path / "copy") / "run"), "restore", "a.backup")
    assert (result.returncode, result.stderr) == (1, f"{tmp_path}/a.backup can't be read.\n")


def test_an_unknown_command_is_a_usage_error() -> None:
    result = run(ROOT, "./run", "tset")
    assert (result.returncode, result.stdout) == (2, "")
    assert result.stderr.startswith("usage: ")


def test_a_missing_python_is_said_in_one_line(tmp_path: Path) -> None:
    folder = project(tmp_path / "copy")
    tools = tmp_path / "bin"
    tools.mkdir()
    for tool in ("bash", "dirname"):
        (tools / tool).symlink_to(str(shutil.which(tool)))
    result = run(folder, "./run", "demo", path=str(tools))
    assert result.returncode == 1
    assert result.stderr.startswith("Python 3.11 or newer is needed: ")
    assert result.stderr.count("\n") == 1


def test_rebuild_without_docker_is_said_in_one_line(tmp_path: Path) -> None:
    folder = project(tmp_path / "copy")
    tools = tmp_path / "bin"
    tools.mkdir()
    for tool in ("bash", "dirname"):
        (tools / tool).symlink_to(str(shutil.which(tool)))
    result = run(folder, "./rebuild", path=str(tools))
    assert result.returncode == 1
    assert result.stderr == "No Docker engine with Compose answers: there is no image to rebuild.\n"


def test_the_service_ends_with_its_embedded_mongod(tmp_path: Path) -> None:
    """A mongod that was killed leaves nothing to serve: whoever supervises the service can then start both again."""
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
    code = (
        "import app.config, pathlib, app.__main__ as m;"
        "from dataclasses import replace;"
        f"s = replace(app.config.load_settings(), data_dir=pathlib.Path({str(tmp_path)!r}));"
        "m.logs.set_up(s); m.serve(s)"
    )
    settings = {"JWT_SECRET": "x" * 32, "PORT": str(port), "HOST": "127.0.0.1", "MONGO_URL": "", "POLL_SECONDS": "3600"}
    with subprocess.Popen(
        [sys.executable, "-c", code], cwd=ROOT, env=os.environ | settings, stdout=subprocess.PIPE, text=True
    ) as service:
        assert service.stdout is not None
        lines = iter(service.stdout.readline, "")
        assert any("Application startup complete" in line for line in lines)
        children = Path(f"/proc/{service.pid}/task/{service.pid}/children").read_text().split()
        os.kill(int(children[0]), signal.SIGKILL)
        assert any("the embedded MongoDB has ended" in line for line in lines)
        assert service.wait(20) == 1
