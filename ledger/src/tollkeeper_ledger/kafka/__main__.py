"""Run as `python -m tollkeeper_ledger.kafka`."""

from __future__ import annotations

import asyncio
import sys

from pydantic import ValidationError

from tollkeeper_ledger.app import open_log, stop_by_signals
from tollkeeper_ledger.kafka.config import KafkaSettings


async def main() -> None:
    """Take usage in from topics until SIGTERM or SIGINT. Any number of such processes may run."""
    try:
        from tollkeeper_ledger.kafka.process import read_topics  # noqa: PLC0415 - its library is an extra
    except ImportError:
        sys.exit("tollkeeper-ledger: topics need the extra `kafka`: pip install 'tollkeeper-ledger[kafka]'")
    try:
        settings = KafkaSettings()
    except ValidationError as error:
        sys.exit(f"tollkeeper-ledger: {error}")
    await read_topics(settings, open_log(settings.log_level), stop_by_signals())


if __name__ == "__main__":
    asyncio.run(main())
