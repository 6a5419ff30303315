"""The ledger's configuration: one frozen, validated object from TOLLKEEPER_* variables."""

from __future__ import annotations

from pathlib import Path  # noqa: TC003 - pydantic reads it

from pydantic import AwareDatetime, Field
from pydantic_settings import BaseSettings, SettingsConfigDict


class ConfigurationError(Exception):
    """Says which setting is wrong and what to set."""


class Settings(BaseSettings):
    """Hold what an operator decides. A missing URL is an error, never an empty truth of our own."""

    model_config = SettingsConfigDict(env_prefix="TOLLKEEPER_", frozen=True, extra="ignore")

    database_url: str = Field(description="Postgres 15 or later, as a URL.")
    redis_url: str = Field(
        description="Redis 7.0 or later, or Valkey: redis://, rediss:// or unix://;"
        " redis+sentinel://HOST:PORT,HOST:PORT/MASTER; redis+cluster://HOST:PORT,HOST:PORT."
    )
    ledger_listen: str = Field(default="127.0.0.1:8611", description="Address of the gRPC server.")
    ledger_http: str = Field(default="127.0.0.1:8612", description="Address of the HTTP server.")
    embedded: bool = Field(default=False, description="Embedded setup: the scaled clock may be set.")
    clock_start: AwareDatetime | None = Field(
        default=None, description="Embedded setup: `migrate` starts the clock of a fresh database at this time."
    )
    audit_dir: Path | None = Field(
        default=None,
        description="Directory outside of Postgres, of this ledger alone, for the key that signs roots of the usage"
        " chain each minute, and for the signed roots. Without it nothing is signed.",
    )
    log_level: str = Field(default="INFO", description="Least level that is logged.")
    pool_size_ingest: int = Field(default=6, ge=1, le=100, description="Postgres connections for sidecars' calls.")
    pool_size_billing: int = Field(default=3, ge=1, le=100, description="Postgres connections for billing.")
    pool_size_admin: int = Field(default=3, ge=1, le=100, description="Postgres connections for operators' changes.")
    pool_size_reader: int = Field(default=3, ge=1, le=100, description="Postgres connections for reports.")
