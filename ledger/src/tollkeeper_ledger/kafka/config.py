"""Settings of the process that reads topics: TOLLKEEPER_* variables."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, SecretStr
from pydantic_settings import BaseSettings, SettingsConfigDict


class KafkaSettings(BaseSettings):
    """Hold where topics are and where their records go. The process needs neither Postgres nor Redis."""

    model_config = SettingsConfigDict(env_prefix="TOLLKEEPER_", frozen=True, extra="ignore")

    kafka_servers: str = Field(description="Kafka brokers, HOST:PORT with commas between.", min_length=1)
    kafka_topics: str = Field(
        default="tollkeeper.usage",
        min_length=1,
        description="Topics of usage records, with commas between. What is no record goes to the topic of the same name"
        " with `.dead-letter` behind.",
    )
    kafka_group: str = Field(default="tollkeeper", min_length=1, description="Name of the consumer group.")
    kafka_security: Literal["PLAINTEXT", "SSL", "SASL_PLAINTEXT", "SASL_SSL"] = Field(
        default="PLAINTEXT", description="How brokers are spoken to."
    )
    kafka_sasl_mechanism: Literal["PLAIN", "SCRAM-SHA-256", "SCRAM-SHA-512"] = Field(
        default="SCRAM-SHA-512", description="How to log in, where security begins with SASL."
    )
    kafka_user: str = Field(default="", description="User name.")
    kafka_password: SecretStr | None = Field(default=None, description="Password.")
    ledger_address: str = Field(default="127.0.0.1:8611", description="Address of the ledger.")
    log_level: str = Field(default="INFO", description="Least level that is logged.")
