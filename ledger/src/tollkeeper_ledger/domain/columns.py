"""What is computed for every record of a batch at once, in Rust: the only importer of the native module.

`_columns.pyi` says what each does; the obvious forms of the hashes stand in `usage_hash`.
"""

from __future__ import annotations

from tollkeeper_ledger.domain._columns import (
    chain,
    hash_records,
    merkle_root,
    number_literal,
    number_literals,
    row_hashes,
)

__all__ = ["chain", "hash_records", "merkle_root", "number_literal", "number_literals", "row_hashes"]
