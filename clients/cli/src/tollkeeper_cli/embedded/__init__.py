"""Start real Postgres and Valkey servers from Python wheels, in a directory of one's own.

Owns: where the servers keep their files, how they start, how they stop, and that nothing of them is left behind.
Does not own: what is inside them (the ledger's migrations) or who talks to them.

Invariants: a server dies with the process that started it; a directory is served by at most one server; sockets are
reachable only for the user that started the server.
"""

from __future__ import annotations

from tollkeeper_cli.embedded.postgres import EmbeddedPostgres
from tollkeeper_cli.embedded.process import ProcessError
from tollkeeper_cli.embedded.valkey import EmbeddedValkey

__all__ = ["EmbeddedPostgres", "EmbeddedValkey", "ProcessError"]
