"""Replay a recorded workload through a sidecar.

Owns: reading recordings, timing, asking and settling with retries under the same ids, and counting what came of it.
Does not own: clocks of a stack (a `Pace` is given) or the comparison with the ledger (`demo.verify`).

Invariants: a request keeps its id over every retry; a settlement is repeated until it is acknowledged; a line that
can't be read is reported with its number, never guessed.
"""
