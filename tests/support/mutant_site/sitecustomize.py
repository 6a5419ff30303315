"""Break one rule of a process that a test starts; Python imports this by its name where PYTHONPATH leads here.

The product has no switch for it: what is broken is replaced in memory, in that one process.
"""

from __future__ import annotations

import os

if os.environ.get("TOLLKEEPER_TEST_MUTANT"):
    import process_mutants

    process_mutants.arm(os.environ["TOLLKEEPER_TEST_MUTANT"], armed_at=os.environ["TOLLKEEPER_TEST_MUTANT_ARMED"])
