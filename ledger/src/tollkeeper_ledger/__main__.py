"""`python -m tollkeeper_ledger serve|migrate`."""

from __future__ import annotations

from tollkeeper_ledger.app import main

if __name__ == "__main__":
    main()
