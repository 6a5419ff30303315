"""Write or check the generated tables in docs/operating.md: `doc_tables.py write|check`.

Settings come from the processes' settings classes, error reasons from error.proto, so that the page can't drift.
"""

from __future__ import annotations

import re
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from tollkeeper_ledger.config import Settings as LedgerSettings
from tollkeeper_ledger.kafka.config import KafkaSettings
from tollkeeper_sidecar.config import SETTINGS as SIDECAR_SETTINGS

if TYPE_CHECKING:
    from collections.abc import Mapping

ROOT = Path(__file__).resolve().parent.parent
PAGE = ROOT / "docs" / "operating.md"
ERRORS = ROOT / "proto" / "tollkeeper" / "quota" / "v1" / "error.proto"


class Setting(Protocol):
    """What the page says of a setting."""

    @property
    def default(self) -> object:
        """Return what it is unless it is set."""

    @property
    def description(self) -> str | None:
        """Return what it means."""

    def is_required(self) -> bool:
        """Tell whether it has to be set."""


def settings_table(settings: Mapping[str, Setting]) -> str:
    """Return the settings of one process as a Markdown table."""
    rows = ["| setting | default | means |", "|---|---|---|"]
    for name, field in settings.items():
        required = field.is_required()
        default = "required" if required else f"`{field.default}`" if field.default not in (None, "") else "none"
        rows.append(f"| `TOLLKEEPER_{name.upper()}` | {default} | {field.description} |")
    return "\n".join(rows)


def reasons_table() -> str:
    """Return the error reasons as a Markdown table."""
    rows = ["| reason | means | code |", "|---|---|---|"]
    for comment, name in re.findall(r"  // (.+)\n  ERROR_REASON_(\w+) = [1-9]\d*;", ERRORS.read_text()):
        meaning, _, code = comment.rpartition(". ")
        rows.append(f"| `{name}` | {meaning} | {code.rstrip('.')} |")
    return "\n".join(rows)


def rendered(page: str) -> str:
    """Return the page with its generated tables made anew."""
    tables = {
        "ledger settings": settings_table(LedgerSettings.model_fields),
        "sidecar settings": settings_table(SIDECAR_SETTINGS),
        "kafka settings": settings_table(KafkaSettings.model_fields),
        "error reasons": reasons_table(),
    }
    for name, table in tables.items():
        begin, end = f"<!-- begin {name} -->", f"<!-- end {name} -->"
        head, _, rest = page.partition(begin)
        _, _, tail = rest.partition(end)
        page = f"{head}{begin}\n{table}\n{end}{tail}"
    return page


def main(verb: str) -> int:
    """Carry out `write` or `check`; return the exit code."""
    page = PAGE.read_text()
    fresh = rendered(page)
    if verb == "write":
        PAGE.write_text(fresh)
        return 0
    print("docs/operating.md is fresh" if page == fresh else "docs/operating.md is stale: run `make gen`")
    return int(page != fresh)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
