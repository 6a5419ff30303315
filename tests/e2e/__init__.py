"""A client calls a sidecar that works with a ledger, all real processes."""
