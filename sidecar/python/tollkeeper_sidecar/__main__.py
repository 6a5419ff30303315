"""`python -m tollkeeper_sidecar`."""

from __future__ import annotations

from tollkeeper_sidecar.app import main

if __name__ == "__main__":
    main()
