"""The ledger's configuration: one frozen, validated object from TOLLKEEPER_* variables."""

from __future__ import annotations

from pathlib import Path  # noqa: TC003 - pydantic reads it

from pydantic import AwareDatetime, Field, SecretStr
from pydantic_settings import BaseSettings, SettingsConfigDict

from tollkeeper_ledger.domain.issuing import LEARNING_S
from tollkeeper_ledger.domain.usage_archive import MONTHS_KEPT_MIN


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
    archive_dir: Path | None = Field(
        default=None,
        description="Directory for months of raw records that `ledger jobs` takes out of Postgres; none: they stay."
        " Ledgers that prove or verify records of such months read it.",
    )
    archive_after_months: int = Field(
        default=13,
        ge=MONTHS_KEPT_MIN,
        le=1200,
        description="Whole months that raw records stay in Postgres after their own.",
    )
    otlp_mapping: Path | None = Field(
        default=None,
        description="TOML file that says which OTLP metrics are usage of which meters; without it none are taken.",
    )
    learning_s: int = Field(
        default=LEARNING_S,
        ge=5,
        le=3600,
        description="Real seconds that sidecars have, after Postgres was set back, to say what they have of limits with"
        " `after_restore: learn`. Who says nothing by then may spend what it has beside the limit.",
    )
    log_level: str = Field(default="INFO", description="Least level that is logged.")
    pool_size_ingest: int = Field(default=6, ge=1, le=100, description="Postgres connections for sidecars' calls.")
    pool_size_billing: int = Field(default=4, ge=1, le=100, description="Postgres connections for billing.")
    billing_processes: int = Field(
        default=1,
        ge=0,
        le=16,
        description="Processes that a run of 2,000 periods or more has beside its own, where there are as many cores"
        " more; each has two Postgres connections for billing and some 100 MiB while the run lasts.",
    )
    pool_size_admin: int = Field(default=3, ge=1, le=100, description="Postgres connections for operators' changes.")
    pool_size_reader: int = Field(default=3, ge=1, le=100, description="Postgres connections for reports.")
    stripe_key: SecretStr | None = Field(
        default=None, description="Secret key of the Stripe account; without it nothing is sent to Stripe."
    )
    stripe_webhook_secret: SecretStr | None = Field(
        default=None,
        description="Signing secret of the webhook `POST /webhooks/stripe`; without it events are refused.",
    )
    stripe_url: str = Field(default="https://api.stripe.com", description="Where Stripe's API is.")
    stripe_account: str = Field(default="", description="Stripe account id; events of another one are refused.")
    stripe_at_once: int = Field(
        default=20,
        ge=1,
        le=100,
        description="Invoices that one ledger carries through at Stripe at once; each has one request under way.",
    )
    stripe_requests_per_s: int | None = Field(
        default=None,
        ge=1,
        le=10_000,
        description="Requests that one ledger sends to Stripe in a second at most; none: 80 with a live key, else 20"
        " (of an account Stripe takes 100 and 25). An invoice takes five. Several ledgers share what the account has.",
    )
    stripe_live: bool = Field(default=False, description="The key is a live one; events of the other mode are refused.")
    stripe_portal_url: str = Field(
        default="",
        pattern=r"^(https://\S+)?$",
        max_length=2_000,
        description="Login link of Stripe's customer portal, https://billing.stripe.com/p/login/…: mails about a card"
        " that expires lead there; without it they have no link.",
    )
    webhook_private: bool = Field(
        default=False,
        description="Webhooks may be sent to private and link-local addresses, to this machine, and without TLS.",
    )
    webhook_key: SecretStr | None = Field(
        default=None,
        description="Key that webhooks' secrets are encrypted under in Postgres, base64 of 32 bytes (`openssl rand"
        " -base64 32`); older keys that are still read behind it, with commas. Without it they are stored as they are.",
    )
    smtp_url: SecretStr | None = Field(
        default=None,
        description="Mail server, smtp://USER:PASSWORD@HOST:PORT, or smtps:// for TLS from the start;"
        " without it no mail is sent.",
    )
    invoice_schedule: str = Field(
        default="",
        description="When `ledger jobs` runs invoices, as cron has it, in UTC, for example `*/15 * * * *`; empty: only"
        " `invoice run` does.",
    )
    mail_from: str = Field(default="", description="Sender of mails; empty: the seller's address.")
    font_dir: str = Field(
        default="",
        description="Folder of fonts for letters on invoices that the shipped fonts lack, for example Japanese ones.",
    )
