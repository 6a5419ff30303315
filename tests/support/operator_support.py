"""What tests of operators' commands share: a limit to work on, and reading listings."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, TypeAlias

from limit_rules import yearly

if TYPE_CHECKING:
    from tollkeeper.ledger.v1 import limits_pb2

Run: TypeAlias = Callable[..., tuple[int, str, str]]
"""Runs the command line: exit code, standard output, standard error."""


def window(name: str, amount: int, *, match: str = "") -> limits_pb2.LimitRule:
    """Describe a hard limit per year; with `match` only for calls whose attribute `model` is that."""
    return yearly(name, amount, meter="op-tokens", **({"model": match} if match else {}))


def rows(run: Run, *words: str) -> list[dict[str, Any]]:
    """Run a listing and read it."""
    code, out, err = run(*words, "-o", "json")
    assert code in {0, 1}, err
    found: list[dict[str, Any]] = json.loads(out)
    return found


def decided(run: Run, *words: str) -> tuple[int, str, str]:
    """Run a command until an authority has decided, at most a minute."""
    give_up_s = time.monotonic() + 60
    while True:
        code, out, err = run(*words)
        if "authority_unreachable" not in (out + err).lower():
            return code, out, err
        assert time.monotonic() < give_up_s, out + err
