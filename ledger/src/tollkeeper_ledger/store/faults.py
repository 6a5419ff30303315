"""What Postgres refuses: rows that are at fault, and ties between transactions."""

from __future__ import annotations

import asyncpg

ROW_FAULTS = (asyncpg.DataError, asyncpg.IntegrityConstraintViolationError)
"""A row can't be stored: it fails again, whoever tries it."""
TIES = (asyncpg.DeadlockDetectedError, asyncpg.SerializationError)
"""Postgres ended one of two transactions: done again, it passes."""
