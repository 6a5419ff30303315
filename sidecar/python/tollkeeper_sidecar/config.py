"""Settings of a sidecar, from `TOLLKEEPER_*` variables and a TOML file named by `TOLLKEEPER_CONFIG`.

They are read before the data plane serves, so this imports next to nothing: no library for settings, no dataclasses.
"""

from __future__ import annotations

import json
import os
from urllib.parse import urlsplit

from tollkeeper_sidecar.values import address, flag, number, one_of, path, text, unless_off, whole

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from typing import Any

_PREFIX = "tollkeeper_"


class ConfigurationError(Exception):
    """Says which setting is wrong and what to set."""


class Setting:
    """Says how a setting is read, what it is unless it is set, and what it means."""

    __slots__ = ("_is_required", "default", "description", "read")

    def __init__(
        self, read: Callable[[object], object], description: str, *, default: object, is_required: bool
    ) -> None:
        self.read, self.description, self.default, self._is_required = read, description, default, is_required

    def is_required(self) -> bool:
        """Tell whether it has no default."""
        return self._is_required

    def of(self, name: str, given: Mapping[str, object]) -> object:
        """Return its value among what was given. Raises ValueError that says what is wrong with it."""
        if name in given:
            return self.read(given[name])
        if self._is_required:
            raise ValueError("is not set")
        return self.default


def _redis_url(value: object) -> str:
    # Cheap on purpose: the library for Redis is imported beside the data plane, not before it.
    url = text(value)
    try:
        parts = urlsplit(url)
    except ValueError as error:
        raise ValueError(f"Value error, {error}") from error
    scheme, _, topology = parts.scheme.partition("+")
    if scheme not in {"redis", "rediss", "unix"} or topology not in {"", "sentinel", "cluster"}:
        raise ValueError(f"Value error, {parts.scheme or 'no'} scheme")
    named = bool(parts.path.strip("/"))
    if topology and (scheme == "unix" or not all(parts.netloc.rpartition("@")[2].split(","))):
        raise ValueError("Value error, a host is missing")
    if topology and named != (topology == "sentinel"):
        raise ValueError("Value error, the master's name follows the sentinels, and nothing follows a cluster's nodes")
    return url


def _required(read: Callable[[object], object], description: str) -> Any:
    return Setting(read, description, default=None, is_required=True)


def _optional(read: Callable[[object], object], default: object, description: str) -> Any:
    return Setting(read, description, default=default, is_required=False)


class Settings:
    """Every setting of the process; frozen. Variables win over the file.

    The class's attributes are the `Setting`s, an instance's their values.
    """

    redis_url: str = _required(
        _redis_url,
        "Redis or Valkey: redis://, rediss:// or unix://; redis+sentinel://HOST:PORT,HOST:PORT/MASTER;"
        " redis+cluster://HOST:PORT,HOST:PORT.",
    )
    usage_log_dir: str = _required(path, "Directory of the usage log, on a volume of this sidecar alone.")
    ledger_address: str = _optional(address, "127.0.0.1:8611", "host:port of the ledger's gRPC.")
    sidecar_listen: str | None = _optional(
        unless_off(address), "127.0.0.1:8601", "host:port of the gRPC listener; `off` for none."
    )
    sidecar_socket: str | None = _optional(unless_off(text), None, "Path of the Unix socket; unset for none.")
    sidecar_http: str | None = _optional(
        unless_off(address), "127.0.0.1:8602", "host:port of health and metrics; `off` for none."
    )
    usage_log_bytes: int | None = _optional(whole(1 << 20), None, "Room for the usage log; default 1 GiB.")
    ship_interval_ms: int | None = _optional(whole(1, 60_000), None, "Longest wait of a record for its batch.")
    redis_budget_ms: int | None = _optional(
        whole(1, 10_000), None, "Longest wait for Redis; default 5. More where one machine runs all."
    )
    embedded: bool = _optional(flag, default=False, description="Whether a scaled clock of the ledger is believed.")
    drain_s: float = _optional(number(0, 3_600), 5.0, "Longest clean stop after SIGTERM, in seconds.")
    sidecar_nice: int = _optional(whole(0, 19), 0, "Niceness of the control plane's thread.")
    log_level: str = _optional(one_of("DEBUG", "INFO", "WARNING", "ERROR"), "INFO", "Lowest level that is logged.")

    def __init__(self, values: Mapping[str, object]) -> None:
        """Take every setting's value."""
        vars(self).update(values)

    def __setattr__(self, name: str, value: object) -> None:
        raise AttributeError(f"{name} can't be set: settings are frozen")

    def native_json(self) -> str:
        """Encode what the data plane must know, as `_native.pyi` describes it."""
        settings: dict[str, object] = {
            "listen": self.sidecar_listen,
            "socket": self.sidecar_socket,
            "usage_log_dir": self.usage_log_dir,
            "embedded": self.embedded,
        }
        optional = {
            "usage_log_bytes": self.usage_log_bytes,
            "ship_interval_ms": self.ship_interval_ms,
            "redis_budget_us": None if self.redis_budget_ms is None else self.redis_budget_ms * 1_000,
        }
        return json.dumps(settings | {name: value for name, value in optional.items() if value is not None})


SETTINGS: Mapping[str, Setting] = {name: each for name, each in vars(Settings).items() if isinstance(each, Setting)}
"""Every setting by its name, which is that of its variable without `TOLLKEEPER_`, in small letters."""


def load(overrides: Mapping[str, object] | None = None) -> Settings:
    """Read and check every setting. Raises ConfigurationError that names each wrong one and what it wants."""
    given = {**_of_file(os.environ.get("TOLLKEEPER_CONFIG")), **_of_variables(), **(overrides or {})}
    values: dict[str, object] = {}
    wrong: list[str] = []
    for name, setting in SETTINGS.items():
        try:
            values[name] = setting.of(name, given)
        except ValueError as error:
            wrong.append(f"TOLLKEEPER_{name.upper()}: {error}. {setting.description}")
    if wrong:
        raise ConfigurationError("\n".join(wrong))
    return Settings(values)


def _of_variables() -> dict[str, object]:
    """Find the settings among the variables; their names may be in small letters."""
    lowered = {name.lower(): value for name, value in os.environ.items()}
    return {name: lowered[_PREFIX + name] for name in SETTINGS if _PREFIX + name in lowered}


def _of_file(path: str | None) -> dict[str, object]:
    """Read the file; what it says beside the settings is for other processes."""
    if not path:
        return {}
    import tomllib  # noqa: PLC0415 - few have a file, and nobody else should wait for it

    try:
        with open(path, "rb") as file:  # noqa: PTH123 - pathlib is not loaded before the data plane serves
            return tomllib.load(file)
    except tomllib.TOMLDecodeError as error:
        raise ConfigurationError(f"TOLLKEEPER_CONFIG: {path!r} is no TOML: {error}") from error
    except (FileNotFoundError, IsADirectoryError):
        raise ConfigurationError(f"TOLLKEEPER_CONFIG: there is no file {path!r}; unset it or write the file") from None
