"""Settings of a sidecar, from `TOLLKEEPER_*` variables and a TOML file named by `TOLLKEEPER_CONFIG`."""

from __future__ import annotations

import json
import os
from pathlib import Path  # noqa: TC003 - pydantic reads the annotations
from typing import TYPE_CHECKING, Annotated, Any, Literal
from urllib.parse import urlsplit

from pydantic import BeforeValidator, Field, ValidationError, field_validator
from pydantic_settings import BaseSettings, PydanticBaseSettingsSource, SettingsConfigDict, TomlConfigSettingsSource

if TYPE_CHECKING:
    from collections.abc import Mapping


def _none_if_off(value: Any) -> Any:
    return None if isinstance(value, str) and value.lower() in {"", "off"} else value


Address = Annotated[str | None, BeforeValidator(_none_if_off)]


class ConfigurationError(Exception):
    """Says which setting is wrong and what to set."""


class Settings(BaseSettings):
    """Every setting of the process; frozen. Variables win over the file."""

    model_config = SettingsConfigDict(env_prefix="TOLLKEEPER_", frozen=True, extra="ignore")

    redis_url: str = Field(
        description="Redis or Valkey: redis://, rediss:// or unix://; redis+sentinel://HOST:PORT,HOST:PORT/MASTER;"
        " redis+cluster://HOST:PORT,HOST:PORT."
    )
    usage_log_dir: Path = Field(description="Directory of the usage log, on a volume of this sidecar alone.")
    ledger_address: str = Field("127.0.0.1:8611", description="host:port of the ledger's gRPC.")
    sidecar_listen: Address = Field("127.0.0.1:8601", description="host:port of the gRPC listener; `off` for none.")
    sidecar_socket: Address = Field(None, description="Path of the Unix socket; unset for none.")
    sidecar_http: Address = Field("127.0.0.1:8602", description="host:port of health and metrics; `off` for none.")
    usage_log_bytes: int | None = Field(None, ge=1 << 20, description="Room for the usage log; default 1 GiB.")
    ship_interval_ms: int | None = Field(None, ge=1, le=60_000, description="Longest wait of a record for its batch.")
    redis_budget_ms: int | None = Field(
        None, ge=1, le=10_000, description="Longest wait for Redis; default 5. More where one machine runs all."
    )
    embedded: bool = Field(default=False, description="Whether a scaled clock of the ledger is believed.")
    drain_s: float = Field(5.0, ge=0, le=3_600, description="Longest clean stop after SIGTERM, in seconds.")
    sidecar_nice: int = Field(0, ge=0, le=19, description="Niceness of the control plane's thread.")
    log_level: Literal["DEBUG", "INFO", "WARNING", "ERROR"] = Field("INFO", description="Lowest level that is logged.")

    @field_validator("redis_url")
    @classmethod
    def _known_scheme(cls, url: str) -> str:
        # Cheap on purpose: the library for Redis is imported beside the data plane, not before it.
        parts = urlsplit(url)
        scheme, _, topology = parts.scheme.partition("+")
        if scheme not in {"redis", "rediss", "unix"} or topology not in {"", "sentinel", "cluster"}:
            raise ValueError(f"{parts.scheme or 'no'} scheme")
        named = bool(parts.path.strip("/"))
        if topology and (scheme == "unix" or not all(parts.netloc.rpartition("@")[2].split(","))):
            raise ValueError("a host is missing")
        if topology and named != (topology == "sentinel"):
            raise ValueError("the master's name follows the sentinels, and nothing follows a cluster's nodes")
        return url

    @field_validator("ledger_address", "sidecar_listen", "sidecar_http")
    @classmethod
    def _host_and_port(cls, address: str | None) -> str | None:
        if address is None:
            return None
        host, _, port = address.rpartition(":")
        if not host or not port.isdigit() or int(port) > 65_535:  # noqa: PLR2004 - the largest TCP port
            raise ValueError(f"{address!r} is not host:port with a port up to 65535")
        return address

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,  # noqa: ARG003 - the hook's signature
        file_secret_settings: PydanticBaseSettingsSource,  # noqa: ARG003 - the hook's signature
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """Read variables first, then the file."""
        path = os.environ.get("TOLLKEEPER_CONFIG")
        toml = (TomlConfigSettingsSource(settings_cls, toml_file=path),) if path else ()
        return (init_settings, env_settings, *toml)

    def native_json(self) -> str:
        """Encode what the data plane must know, as `_native.pyi` describes it."""
        settings: dict[str, object] = {
            "listen": self.sidecar_listen,
            "socket": self.sidecar_socket,
            "usage_log_dir": str(self.usage_log_dir),
            "embedded": self.embedded,
        }
        optional = {
            "usage_log_bytes": self.usage_log_bytes,
            "ship_interval_ms": self.ship_interval_ms,
            "redis_budget_us": None if self.redis_budget_ms is None else self.redis_budget_ms * 1_000,
        }
        return json.dumps(settings | {name: value for name, value in optional.items() if value is not None})


def load(overrides: Mapping[str, Any] | None = None) -> Settings:
    """Read and check every setting. Raises ConfigurationError that names each wrong one and what it wants."""
    path = os.environ.get("TOLLKEEPER_CONFIG")
    if path and not os.path.isfile(path):  # noqa: PTH113 - the path is text from the environment
        raise ConfigurationError(f"TOLLKEEPER_CONFIG: there is no file {path!r}; unset it or write the file")
    try:
        return Settings(**dict(overrides or {}))
    except ValidationError as error:
        lines = []
        for problem in error.errors():
            name = str(problem["loc"][0]) if problem["loc"] else ""
            wants = Settings.model_fields[name].description if name in Settings.model_fields else ""
            said = "is not set" if problem["type"] == "missing" else problem["msg"]
            lines.append(f"TOLLKEEPER_{name.upper()}: {said}. {wants}")
        raise ConfigurationError("\n".join(lines)) from error
