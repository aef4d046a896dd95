"""Settings: where they come from, which values stop a start, and what is kept secret."""

import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from app.config import FALLBACK_MAIL_FROM, PROJECT_ROOT, Settings, load_settings
from app.errors import SettingsError
from tests.support import DOCKER_SETTINGS, SECRET

Load = Callable[..., Settings]
SECRETS = {
    "JWT_SECRET": "jwt-s3cret-that-is-long-enough-for-anybody",
    "CRYPTO_API_KEY": "market-s3cret",
    "COINMARKETCAP_API_KEY": "coinmarketcap-s3cret",
    "SMTP_PASSWORD": "smtp-s3cret",
    "MONGO_URL": "mongodb://cryptoticker:mongo-s3cret@localhost/",
}
BAD_VALUES = [
    ("JWT_SECRET", "x" * 31, "is too short to be a secret: it needs at least 32 bytes"),
    ("JWT_TTL_SECONDS", "0", "is 0, outside 1 to 2678400"),
    ("JWT_TTL_SECONDS", "2678401", "outside 1 to 2678400"),
    ("BCRYPT_ROUNDS", "3", "is 3, outside 4 to 20"),
    ("BCRYPT_ROUNDS", "21", "outside 4 to 20"),
    ("BCRYPT_ROUNDS", "10.5", "is not a whole number"),
    ("MONGO_URL", "localhost:27017", "does not start with mongodb:// or mongodb+srv://"),
    ("MONGO_DB", "crypto ticker", "MongoDB does not take as a database name"),
    ("MONGO_DB", "x" * 64, "MongoDB does not take as a database name"),
    ("POLL_SECONDS", "often", "is 'often', which is not a number"),
    ("POLL_SECONDS", "nan", "is not a finite number"),
    ("POLL_SECONDS", "0.09", "outside 0.1 to 3600 seconds"),
    ("POLL_SECONDS", "3601", "outside 0.1 to 3600 seconds"),
    ("COINMARKETCAP_API_KEY", "two words", "may hold only ASCII characters and no spaces"),
    ("COINMARKETCAP_URL", "pro-api.coinmarketcap.com", "is not a base URL"),
    ("BYBIT_URL", "ftp://api.bybit.com", "is not a base URL"),
    ("BYBIT_URL", "https://api.bybit.com/?a=1", "is not a base URL"),
    ("SMTP_HOST", "smtp.\x07example.com", "holds a control character"),
    ("SMTP_PORT", "65536", "outside 1 to 65535"),
    ("SMTP_USER", "me\x07", "holds a control character"),
    ("SMTP_PASSWORD", "secret\x07", "holds a control character"),
    ("SMTP_CONNECTIONS", "17", "is 17, outside 1 to 16"),
    ("SMTP_MAILS_PER_CONNECTION", "0", "is 0, outside 1 to 1000000"),
    ("SMTP_SECURITY", "ssl", "is 'ssl', not one of starttls, tls, none"),
    ("MAIL_FROM", "nobody", "is 'nobody', which is no mail address"),
    ("CRYPTO_API_KEY", "schlüssel", "may hold only ASCII characters and no spaces"),
    ("MARKET_CACHE_SECONDS", "0", "outside 1 to 86400"),
    ("MARKET_CACHE_SECONDS", "86401", "outside 1 to 86400"),
    ("CORS_ORIGINS", "https://app.example.com/page", "is no origin"),
    ("CORS_ORIGINS", "*,https://app.example.com", "is no origin"),
    ("MAX_ALERTS_PER_USER", "0", "outside 1 to 10000000"),
    ("HOST", "local\x07host", "holds a control character"),
    ("TRUSTED_PROXIES", "127.0.0.1,nginx", "holds 'nginx', which is no IP address and no network"),
    ("TRUSTED_PROXIES", "*,127.0.0.1", "holds '*'"),
    ("TRUSTED_PROXIES", "10.0.0.1/8", "holds '10.0.0.1/8'"),
    ("PORT", "http", "is 'http', which is not a number"),
    ("METRICS_HOST", "local\x07host", "holds a control character"),
    ("METRICS_PORT", "0", "outside 1 to 65535"),
    ("LOG_FORMAT", "JSON", "is 'JSON', not one of text, json"),
    ("ACCESS_LOG", "perhaps", "neither yes nor no"),
    ("PORT", "0", "outside 1 to 65535"),
]


def setting_names() -> list[str]:
    names = re.findall(r"^(?:# )?([A-Z_]+)=", (PROJECT_ROOT / ".env.example").read_text(), flags=re.MULTILINE)
    return [name for name in names if name not in DOCKER_SETTINGS]


@pytest.fixture
def load(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Load:
    """Loads settings from the text of an env file and an environment that holds nothing else."""
    for name in setting_names():
        monkeypatch.delenv(name, raising=False)

    def load_from(env_file: str = "", **environment: str) -> Settings:
        for name, value in environment.items():
            monkeypatch.setenv(name, value)
        path = tmp_path / ".env"
        path.write_text(env_file)
        return load_settings(path)

    return load_from


def run_python(*arguments: str, cwd: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, *arguments], cwd=cwd, env=environment, capture_output=True, text=True, timeout=60
    )


def test_only_the_signing_key_has_no_default(load: Load, tmp_path: Path) -> None:
    assert load(JWT_SECRET=SECRET) == Settings(jwt_secret=SECRET)
    assert load_settings(tmp_path / "absent") == Settings(jwt_secret=SECRET)


def test_the_environment_wins_over_the_file(load: Load) -> None:
    settings = load(f"JWT_SECRET={SECRET}\nPOLL_SECONDS=5\nPORT=9000\n", POLL_SECONDS="2.5")
    assert (settings.poll_seconds, settings.port) == (2.5, 9000)


@pytest.mark.parametrize("name", [name for name in setting_names() if name != "JWT_SECRET"])
def test_empty_means_default(load: Load, name: str) -> None:
    assert load(f"JWT_SECRET={SECRET}\n{name}=\n") == Settings(jwt_secret=SECRET)
    assert load(f"{name}=  \n", JWT_SECRET=SECRET) == Settings(jwt_secret=SECRET)


def test_empty_in_the_environment_hides_what_the_file_says(load: Load) -> None:
    assert load(f"JWT_SECRET={SECRET}\nPOLL_SECONDS=5\n", POLL_SECONDS="").poll_seconds == 20.0


def test_values_arrive_in_the_shape_that_the_service_uses(load: Load) -> None:
    settings = load(
        JWT_SECRET=SECRET,
        BYBIT_URL="http://localhost:9100/",
        SMTP_SECURITY="tls",
        CORS_ORIGINS="https://app.example.com, http://localhost:3000/",
        MAX_ALERTS_PER_USER="1e3",
        TRUSTED_PROXIES="127.0.0.1, 10.0.0.0/8",
    )
    assert settings.bybit_url == "http://localhost:9100"
    assert settings.smtp_security == "tls"
    assert settings.cors_origins == ("https://app.example.com", "http://localhost:3000")
    assert settings.max_alerts_per_user == 1000
    assert settings.trusted_proxies == ("127.0.0.1", "10.0.0.0/8")


@pytest.mark.parametrize(
    ("given", "mail_from"),
    [
        ({}, FALLBACK_MAIL_FROM),
        ({"SMTP_USER": "me@example.com"}, "me@example.com"),
        ({"SMTP_USER": "me@example.com", "MAIL_FROM": "Prices <p@example.com>"}, "Prices <p@example.com>"),
    ],
)
def test_mails_come_from_mail_from_or_else_the_smtp_user(load: Load, given: dict[str, str], mail_from: str) -> None:
    assert load(JWT_SECRET=SECRET, **given).mail_from == mail_from


def test_an_smtp_user_that_is_no_address_asks_for_mail_from(load: Load) -> None:
    with pytest.raises(SettingsError, match=r"^MAIL_FROM is 'apikey'.*it defaults to SMTP_USER"):
        load(JWT_SECRET=SECRET, SMTP_USER="apikey")


def test_a_missing_signing_key_says_how_to_get_one(load: Load) -> None:
    with pytest.raises(SettingsError, match=r"^JWT_SECRET is not set: run `\./run env`"):
        load()


@pytest.mark.parametrize(("name", "value", "problem"), BAD_VALUES)
def test_a_bad_value_is_refused_with_its_name_the_problem_and_an_example(
    load: Load, name: str, value: str, problem: str
) -> None:
    with pytest.raises(SettingsError) as raised:
        load(**{"JWT_SECRET": SECRET, name: value})
    text = str(raised.value)
    assert text.startswith(f"{name} ")
    assert problem in text
    assert f" Example: {name}=" in text
    assert "\n" not in text


def test_every_setting_has_a_bad_value_above() -> None:
    assert {name for name, _, _ in BAD_VALUES} == set(setting_names())


@pytest.mark.parametrize(("name", "value", "_problem"), BAD_VALUES)
def test_each_example_in_an_error_is_itself_a_good_value(load: Load, name: str, value: str, _problem: str) -> None:
    with pytest.raises(SettingsError) as raised:
        load(**{"JWT_SECRET": SECRET, name: value})
    example = str(raised.value).partition(f" Example: {name}=")[2]
    if not example.startswith("(the output of:"):
        load(**{"JWT_SECRET": SECRET, name: example})


def test_secrets_never_show(load: Load) -> None:
    settings = load(**SECRETS)
    assert settings.smtp_password == SECRETS["SMTP_PASSWORD"]
    assert "s3cret" not in repr(settings) + str(settings)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("JWT_SECRET", "s3cret"),
        ("CRYPTO_API_KEY", "my s3cret"),
        ("COINMARKETCAP_API_KEY", "s3crét"),
        ("SMTP_PASSWORD", "s3cret\x07"),
        ("MONGO_URL", "postgres://cryptoticker:s3cret@localhost/"),
    ],
)
def test_no_error_repeats_a_secret(load: Load, name: str, value: str) -> None:
    with pytest.raises(SettingsError) as raised:
        load(**SECRETS | {name: value})
    told = f"{raised.value!r} {raised.value.__cause__!r} {raised.value.__context__!r}"
    assert name in told
    assert "s3cr" not in told


@pytest.mark.parametrize(
    ("name", "value"),
    [("JWT_SECRET", "short"), ("POLL_SECONDS", "often"), ("MONGO_URL", "mongodb://"), ("HOST", "no..host")],
)
def test_a_bad_setting_ends_the_start_in_one_line(name: str, value: str) -> None:
    settings = {"JWT_SECRET": SECRET, "PATH": os.environ["PATH"], name: value}
    result = run_python("-m", "app", cwd=PROJECT_ROOT, **settings)
    assert result.returncode == 1
    assert result.stderr.count("\n") == 1, result.stderr
    assert result.stderr.startswith("cryptoticker: ")
    assert name in result.stderr


def test_importing_needs_no_settings_and_starts_nothing(tmp_path: Path) -> None:
    program = f"""
import sys, threading
sys.path.insert(0, {str(PROJECT_ROOT)!r})
import app.main, app.__main__
print(app.main.create_app().title, [thread.name for thread in threading.enumerate()])
"""
    result = run_python("-c", program, cwd=tmp_path)
    assert (result.stdout, result.stderr) == ("CryptoTicker ['MainThread']\n", "")
    assert list(tmp_path.iterdir()) == []
