"""Run what nobody asks for: loops that keep the ledger in order."""
