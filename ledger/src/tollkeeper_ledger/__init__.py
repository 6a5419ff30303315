"""Own limits, usage and money: the ledger."""
