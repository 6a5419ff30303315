"""One broken rule each of the Lua functions and of the ledger's SQL.

A mutant is a substitution of text that is there exactly once. Its finder is the replay of a trace: the shortest begin
that shows it is kept in `tests/sim/data`, and `python tests/sim/search_mutants.py` searches anew and writes them.
Those that no schedule of honest sidecars reaches are found by the random calls of `test_pool_model.py`.
"""

from __future__ import annotations

import gzip
import json
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from tollkeeper_ledger.store import functions, queries

if TYPE_CHECKING:
    from collections.abc import Iterator


RECORDED: Final = Path(__file__).parents[1] / "sim" / "data"


@dataclass(frozen=True, slots=True)
class Mutant:
    """A rule that is broken, and what it is for."""

    name: str
    reason: str
    old: str
    new: str
    query: str = ""
    """Name of the SQL statement; empty = the Lua functions."""

    def lua(self) -> str:
        """Give the broken library."""
        return _substituted(functions.source(), self)

    @contextmanager
    def sql(self) -> Iterator[None]:
        """Break the statement until the block ends."""
        file, _, name = self.query.partition(".")
        statements = queries.load(file)
        whole = statements[name]
        statements[name] = _substituted(whole, self)
        try:
            yield
        finally:
            statements[name] = whole


def recorded(name: str) -> list[dict[str, Any]]:
    """Read the trace that finds a mutant."""
    return [json.loads(line) for line in gzip.decompress((RECORDED / f"{name}.jsonl.gz").read_bytes()).splitlines()]


def record(name: str, lines: list[dict[str, Any]]) -> None:
    """Keep the trace that finds a mutant."""
    RECORDED.mkdir(exist_ok=True)
    text = "".join(json.dumps(line, separators=(",", ":")) + "\n" for line in lines)
    (RECORDED / f"{name}.jsonl.gz").write_bytes(gzip.compress(text.encode(), mtime=0))


def _substituted(text: str, mutant: Mutant) -> str:
    count = text.count(mutant.old)
    if count != 1:
        raise AssertionError(f"{mutant.name}: {count} places have {mutant.old!r}, expected 1")
    return text.replace(mutant.old, mutant.new)


_CREATE = (
    "if refusal[2] == 'NO_POOL' then redis.call('HSET', keys[1], 'generation', text_of(generation), 'fence', fence(),"
    " 'total', text_of(allotted_cum), 'granted', 0, 'returned', 0, 'seq', 0, 'final', final, 'closed', 0, 'wanted', 0,"
    " 'amount_version', 0, 'expire_at', '4102444800') return {'OK'} end"
)

LUA: Final = (
    Mutant(
        "run-id-fence",
        "A demoted, resynchronised, promoted master keeps its run_id: a rolled-back pool would grant again.",
        "'INFO', 'replication')\n  local _, last = string.find(text, FENCE_LABEL, 1, true)",
        "'INFO', 'server')\n  local _, last = string.find(text, 'run_id:', 1, true)",
    ),
    Mutant(
        "fence-unchecked",
        "Without the check a promoted replica grants what the lost master had granted.",
        "if stored[2] ~= fence() then",
        "if false then",
    ),
    Mutant(
        "generation-unchecked",
        "A late call of an older generation would change a newer one.",
        "if tonumber(stored[1]) ~= generation then return nil, {'ERR', 'GENERATION', stored[1]} end\n"
        "  if stored[2] ~= fence()",
        "if stored[2] ~= fence()",
    ),
    Mutant(
        "extend-creates",
        "An extend after a flush would make a pool that has forgotten what was granted.",
        "  if not pool then return refusal end\n  if pool[7] == '1'",
        f"  if not pool then {_CREATE} return refusal end\n  if pool[7] == '1'",
    ),
    Mutant(
        "replay-unchecked",
        "A repeated request would be granted twice.",
        "holder.is_repeat = holder.known and ask.request_seq == holder.seq",
        "holder.is_repeat = false",
    ),
    Mutant(
        "closed-grants",
        "What is granted after the close was credited to the limit as well.",
        "  if pool.closed then return nil, {'ERR', 'CLOSED'} end\n",
        "",
    ),
    Mutant(
        "need-unmet",
        "Units below the need help nobody and are stranded.",
        "if free < need then return 0 end",
        "if free < need then return free end",
    ),
    Mutant(
        "backward-clock-mints",
        "A clock that jumps back would fill a bucket.",
        "math.max(0, now_us - tonumber(stored[6]))",
        "math.abs(now_us - tonumber(stored[6]))",
    ),
    Mutant(
        "lent-units-uncapped",
        "Units in slices that are not over would come on top of the burst.",
        "return math.max(0, bucket.burst - bucket.ahead_units)",
        "return bucket.burst",
    ),
)

ARITHMETIC: Final = (
    Mutant(
        "float-arithmetic",
        "Beyond 2^53 a product is rounded: tokens would be minted, and waits told that are too short.",
        "  if product <= UNITS_MAX then\n    local quotient = math.floor(product / c)",
        "  if true then\n    local quotient = math.floor(product / c)",
    ),
)

MODEL: Final = (
    Mutant(
        "open-repeated",
        "A repeated open would forget what was granted.",
        "if stored and tonumber(stored) >= ask.generation then",
        "if stored and tonumber(stored) > ask.generation then",
    ),
    Mutant(
        "rollback-unseen",
        "A pool behind its holder's witness has lost grants.",
        "if pool.seq < witness_seq then",
        "if false then",
    ),
    Mutant(
        "returns-above-grants",
        "A holder could give back what it never had.",
        "ask.returned_cum < holder.returned or ask.consumed_cum + ask.returned_cum > holder.granted",
        "ask.returned_cum < holder.returned",
    ),
    Mutant(
        "final-from-the-past",
        "A late extend would make a pool final, or not, against the newest word: denials would prove nothing.",
        "  if not is_newest then final = was_final end\n",
        "",
    ),
    Mutant(
        "total-falls",
        "A late extend would take back units that are out.",
        "total = math.max(total, allotted_cum)",
        "total = allotted_cum",
    ),
)

VALUES: Final = (
    Mutant(
        "value-without-unit",
        "More values would have a unit than there are units.",
        "    elseif give < free then\n",
        "    elseif give <= free then\n",
    ),
    Mutant(
        "value-marked-again",
        "A value that has its unit would take another one.",
        "    elseif before and before ~= '0' then\n",
        "    elseif before == '2' then\n",
    ),
    Mutant(
        "repeat-tells-others",
        "A repeated answer would call a value counted that has no unit.",
        "mark == '1' and 'K' or '?'",
        "'K'",
    ),
    Mutant(
        "others-marks-taken-back",
        "A value that another sidecar was told of would lose the unit that its admission rests on.",
        "      if before ~= '1' then now[value] = '1' end\n",
        "",
    ),
    Mutant(
        "lost-history-believed",
        "A value would keep a unit that was taken back in what a failover lost, and somebody else has.",
        "not (made_in and tonumber(made_in) < since) and mark",
        "mark",
    ),
    Mutant(
        "settled-marks-taken-back",
        "A value on which a call was admitted would count again after a failover.",
        "then marks[settled[i]] = '1' end",
        "then marks[settled[i]] = nil end",
    ),
    Mutant(
        "unit-back-mark-stays",
        "A value would be told to have a unit that somebody else has.",
        "  if #gone > 0 then redis.call('HDEL', keys[3], unpack(gone)) end\n",
        "",
    ),
)

SQL: Final = (
    Mutant(
        "two-first-windows",
        "The second of two first uses would get a window of its own, with the whole amount.",
        "DO UPDATE SET generation_n = limit_cursor.generation_n",
        "DO UPDATE SET newer_id = excluded.newer_id",
        "limits.lock_cursors",
    ),
    Mutant(
        "answers-forgotten",
        "A repeated ask would be leased units twice.",
        "l.returned_cum, l.last_give",
        "l.returned_cum, NULL::bigint AS last_give",
        "limits.read_leases",
    ),
    Mutant(
        "grants-forgotten",
        "What a holder got would not be counted: it could give back nothing, or too much.",
        "granted_cum = excluded.granted_cum, ",
        "",
        "limits.write_leases",
    ),
    Mutant(
        "allotted-forgotten",
        "Units would leave the limit without being counted.",
        "allotted = n.allotted,",
        "",
        "limits.update_windows",
    ),
    Mutant(
        "pool-forgotten",
        "What went into a generation would not be counted: it would be told less, or allotted again.",
        "UPDATE SET allotted_cum = excluded.allotted_cum,\n  credited",
        "UPDATE SET\n  credited",
        "limits.write_generations",
    ),
    Mutant(
        "lost-pool-lives",
        "Units would go on into a generation that Redis has lost.",
        "lost = excluded.lost, ",
        "",
        "limits.write_generations",
    ),
)
