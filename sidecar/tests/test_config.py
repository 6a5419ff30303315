"""Settings: defaults, files, and what is said of wrong ones."""

from __future__ import annotations

import json
import os
from typing import TYPE_CHECKING

import pytest
from tollkeeper_sidecar import config
from tollkeeper_sidecar.config import SETTINGS, ConfigurationError

if TYPE_CHECKING:
    from pathlib import Path

GIVEN = {"TOLLKEEPER_REDIS_URL": "redis://127.0.0.1:6379", "TOLLKEEPER_USAGE_LOG_DIR": "/var/lib/tollkeeper"}


@pytest.fixture(autouse=True)
def environment(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    """Give what is required, nothing else."""
    for name in list(os.environ):
        if name.startswith("TOLLKEEPER_"):
            monkeypatch.delenv(name)
    for name, value in GIVEN.items():
        monkeypatch.setenv(name, value)
    return monkeypatch


def test_defaults_are_safe() -> None:
    """What isn't set listens on loopback only, and believes no scaled clock."""
    loaded = config.load()
    assert json.loads(loaded.native_json()) == {
        "listen": "127.0.0.1:8601", "socket": None, "usage_log_dir": "/var/lib/tollkeeper", "embedded": False,
    }  # fmt: skip
    assert (loaded.ledger_address, loaded.sidecar_http) == ("127.0.0.1:8611", "127.0.0.1:8602")


@pytest.mark.parametrize("name", GIVEN)
def test_missing_server_is_an_error(environment: pytest.MonkeyPatch, name: str) -> None:
    """A missing URL or directory is an error that names the variable, never a second, empty truth."""
    environment.delenv(name)
    with pytest.raises(ConfigurationError, match=f"{name}: is not set"):
        config.load()


WHOLE = "Input should be a valid integer, unable to parse string as an integer"
ADDRESS = "is not host:port with a port up to 65535"
NO_NAME = "Value error, the master's name follows the sentinels, and nothing follows a cluster's nodes"


@pytest.mark.parametrize(
    ("name", "value", "said"),
    [
        ("REDIS_URL", "http://x", "Value error, http scheme"),
        ("REDIS_URL", "127.0.0.1:6379", "Value error, no scheme"),
        ("REDIS_URL", "redis://[::1", "Value error, Invalid IPv6 URL"),
        ("REDIS_URL", "redis+sentinel://h:1", NO_NAME),
        ("REDIS_URL", "redis+cluster://h:1/m", NO_NAME),
        ("REDIS_URL", "redis+cluster://h:1,/", "Value error, a host is missing"),
        ("REDIS_URL", "unix+cluster://h", "Value error, a host is missing"),
        ("USAGE_LOG_DIR", "", "Value error, the path is empty"),
        ("LEDGER_ADDRESS", "nowhere", f"Value error, 'nowhere' {ADDRESS}"),
        ("LEDGER_ADDRESS", "h:99999", f"Value error, 'h:99999' {ADDRESS}"),
        ("SIDECAR_HTTP", ":8602", f"Value error, ':8602' {ADDRESS}"),
        ("LOG_LEVEL", "loud", "Input should be 'DEBUG', 'INFO', 'WARNING' or 'ERROR'"),
        ("DRAIN_S", "-1", "Input should be greater than or equal to 0"),
        ("DRAIN_S", "nan", "Input should be less than or equal to 3600"),
        ("DRAIN_S", "never", "Input should be a valid number, unable to parse string as a number"),
        ("SHIP_INTERVAL_MS", "0", "Input should be greater than or equal to 1"),
        ("SHIP_INTERVAL_MS", "60001", "Input should be less than or equal to 60000"),
        ("SHIP_INTERVAL_MS", "", WHOLE), ("SHIP_INTERVAL_MS", "1.5", WHOLE), ("SHIP_INTERVAL_MS", "\u0665", WHOLE),
        ("USAGE_LOG_BYTES", "1048575", "Input should be greater than or equal to 1048576"),
        ("EMBEDDED", "perhaps", "Input should be a valid boolean, unable to interpret input"),
    ],
)  # fmt: skip
def test_wrong_values_are_refused_in_these_words(
    environment: pytest.MonkeyPatch, name: str, value: str, said: str
) -> None:
    """A wrong value stops the start and says which variable wants what; operators search for these words."""
    environment.setenv(f"TOLLKEEPER_{name}", value)
    with pytest.raises(ConfigurationError) as refused:
        config.load()
    assert str(refused.value) == f"TOLLKEEPER_{name}: {said}. {SETTINGS[name.lower()].description}"


def test_every_wrong_value_is_named_at_once(environment: pytest.MonkeyPatch) -> None:
    """Who set three things wrong hears of all three, in the order of the documentation."""
    for name in ("LOG_LEVEL", "SIDECAR_NICE", "DRAIN_S"):
        environment.setenv(f"TOLLKEEPER_{name}", "wrong")
    with pytest.raises(ConfigurationError) as refused:
        config.load()
    lines = str(refused.value).splitlines()
    assert [line.partition(":")[0] for line in lines] == [
        "TOLLKEEPER_DRAIN_S", "TOLLKEEPER_SIDECAR_NICE", "TOLLKEEPER_LOG_LEVEL",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("name", "value", "expected"),
    [
        ("sidecar_socket", "OFF", None), ("sidecar_socket", "/run/s.sock", "/run/s.sock"), ("sidecar_http", "", None),
        ("ship_interval_ms", " 1_0 ", 10), ("ship_interval_ms", "10.0", 10), ("drain_s", "1e1", 10.0),
        ("embedded", "Yes", True), ("embedded", "f", False), ("sidecar_nice", "19", 19),
    ],
)  # fmt: skip
def test_values_are_read(environment: pytest.MonkeyPatch, name: str, value: str, expected: object) -> None:
    """Numbers, yes and no, `off`: what was written becomes what is meant, also under a name in small letters."""
    environment.setenv(f"tollkeeper_{name}", value)
    assert getattr(config.load(), name) == expected


def test_settings_are_frozen() -> None:
    """What was checked can't be changed behind the check."""
    loaded = config.load()
    with pytest.raises(AttributeError, match="frozen"):
        loaded.drain_s = 1.0


def test_file_is_read_and_variables_win(environment: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A TOML file gives settings; a variable of the same name wins; a missing or unreadable file is an error."""
    file = tmp_path / "sidecar.toml"
    file.write_text('ledger_address = "ledger:1"\nsidecar_listen = "127.0.0.1:1"\n')
    environment.setenv("TOLLKEEPER_CONFIG", str(file))
    environment.setenv("TOLLKEEPER_SIDECAR_LISTEN", "off")
    loaded = config.load()
    assert (loaded.ledger_address, loaded.sidecar_listen) == ("ledger:1", None)
    for text, said in (("drain_s = true x", "is no TOML"), ("embedded = [1]", "TOLLKEEPER_EMBEDDED: Input should")):
        file.write_text(text)
        with pytest.raises(ConfigurationError, match=said):
            config.load()
    environment.setenv("TOLLKEEPER_CONFIG", str(tmp_path / "no.toml"))
    with pytest.raises(ConfigurationError, match=r"no\.toml"):
        config.load()
