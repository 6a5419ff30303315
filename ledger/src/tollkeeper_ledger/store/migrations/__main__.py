"""`python -m tollkeeper_ledger.store.migrations freeze`: rewrite the initial migration from the schema files."""

from __future__ import annotations

import sys
from pathlib import Path

from tollkeeper_ledger.store.migrations import freeze

if __name__ == "__main__":
    if sys.argv[1:] != ["freeze"]:
        sys.exit("usage: python -m tollkeeper_ledger.store.migrations freeze")
    sys.stdout.write(f"{freeze(Path(__file__).resolve().parent)}\n")
