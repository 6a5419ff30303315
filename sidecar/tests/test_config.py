"""Settings: defaults, files, and what is said of wrong ones."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest
from tollkeeper_sidecar import config
from tollkeeper_sidecar.config import ConfigurationError

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


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("REDIS_URL", "http://x"), ("REDIS_URL", "127.0.0.1:6379"), ("REDIS_URL", "redis+sentinel://h:1"),
        ("REDIS_URL", "redis+cluster://h:1,/"), ("REDIS_URL", "redis+cluster://h:1/m"), ("REDIS_URL", "unix+cluster://h"),
        ("LEDGER_ADDRESS", "nowhere"), ("LEDGER_ADDRESS", "h:99999"), ("SIDECAR_HTTP", ":8602"),
        ("LOG_LEVEL", "loud"), ("DRAIN_S", "-1"), ("SHIP_INTERVAL_MS", "0"), ("EMBEDDED", "perhaps"),
    ],
)  # fmt: skip
def test_wrong_values_are_named(environment: pytest.MonkeyPatch, name: str, value: str) -> None:
    """A wrong value stops the start and says which variable wants what."""
    environment.setenv(f"TOLLKEEPER_{name}", value)
    with pytest.raises(ConfigurationError, match=f"TOLLKEEPER_{name}: "):
        config.load()


def test_file_is_read_and_variables_win(environment: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A TOML file gives settings; a variable of the same name wins; a missing file is an error."""
    file = tmp_path / "sidecar.toml"
    file.write_text('ledger_address = "ledger:1"\nsidecar_listen = "127.0.0.1:1"\n')
    environment.setenv("TOLLKEEPER_CONFIG", str(file))
    environment.setenv("TOLLKEEPER_SIDECAR_LISTEN", "off")
    loaded = config.load()
    assert (loaded.ledger_address, loaded.sidecar_listen) == ("ledger:1", None)
    environment.setenv("TOLLKEEPER_CONFIG", str(tmp_path / "no.toml"))
    with pytest.raises(ConfigurationError, match=r"no\.toml"):
        config.load()


def test_nothing_heavy_is_loaded_before_the_data_plane_serves() -> None:
    """What a start loads before it serves has no gRPC, no Redis, no messages: they come beside the data plane."""
    heavy = ("grpc", "redis", "google.protobuf", "structlog")
    said = "import sys, tollkeeper_sidecar.app; print(*(name for name in sys.argv[1:] if name in sys.modules))"
    ran = subprocess.run([sys.executable, "-c", said, *heavy], capture_output=True, text=True, check=True)  # noqa: S603
    assert ran.stdout.split() == []
