"""Carry out what an RPC asks: transactions, caches, background work."""
