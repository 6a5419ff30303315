"""The slow, obvious model of a pool: what the real functions are held to, reply by reply."""

from __future__ import annotations

from dataclasses import dataclass, field

UNITS_MAX = 2**53 - 1


@dataclass(slots=True)
class Holder:
    """What the pool knows of one holder."""

    seq: int = 0
    granted: int = 0
    returned: int = 0
    last_give: int = 0


@dataclass(slots=True)
class Pool:
    """One generation of a pool."""

    generation: int
    total: int = 0
    granted: int = 0
    returned: int = 0
    seq: int = 0
    final: bool = False
    closed: bool = False
    version: int = 0
    wanted: list[int] = field(default_factory=list)
    holders: dict[str, Holder] = field(default_factory=dict)

    @property
    def free(self) -> int:
        """Units that nobody holds."""
        return self.total - self.granted + self.returned

    @property
    def short(self) -> bool:
        """Whether it gets no more and has less than a tenth left."""
        return self.final and 10 * self.free < self.total


@dataclass(slots=True)
class Model:
    """A server with at most one pool, and the notices that it sent."""

    pool: Pool | None = None
    fenced: bool = False
    notices: list[str] = field(default_factory=list)
    values: dict[str, str] = field(default_factory=dict)
    """Values seen: 0 = beyond the limit, 1 = with a unit, else with a unit that only who marked it was told of."""

    since: int = 0
    """The first generation of the history in which the marks are: own marks of older ones count for nothing."""
    set_is_foreign: bool = True
    """The marks are of another history, or there were none yet."""

    def _refusal(self, generation: int) -> list[str] | None:
        if self.pool is None:
            return ["ERR", "NO_POOL"]
        if self.pool.generation != generation:
            return ["ERR", "GENERATION", str(self.pool.generation)]
        return ["ERR", "FENCE"] if self.fenced else None

    def _tell(self, pool: Pool) -> None:
        if any(need <= pool.free for need in pool.wanted):
            self.notices.append("UNITS")
            pool.wanted.clear()

    def _tell_short(self, pool: Pool, *, was_short: bool) -> None:
        if pool.short and not was_short:
            self.notices.append("SHORT")

    def open(self, generation: int) -> list[str]:
        """Open a generation."""
        if self.pool is not None and self.pool.generation >= generation:
            return ["ERR", "OLD_GENERATION", str(self.pool.generation)]
        self.pool, self.fenced = Pool(generation), False
        return ["OK"]

    def extend(self, generation: int, allotted_cum: int, version: int, *, final: bool) -> list[str]:
        """Extend the pool."""
        refusal = self._refusal(generation)
        if refusal:
            return refusal
        assert self.pool is not None
        pool = self.pool
        if pool.closed:
            return ["ERR", "CLOSED"]
        was_final, was_short = pool.final, pool.short
        if (version, allotted_cum) >= (pool.version, pool.total) or version > pool.version:
            pool.final = final
        pool.version = max(pool.version, version)
        pool.total = max(pool.total, allotted_cum)
        self._tell_short(pool, was_short=was_short)
        if was_final and not pool.final:
            self.notices.append("UNITS")
            pool.wanted.clear()
        else:
            self._tell(pool)
        return ["OK"]

    def close(self, generation: int) -> list[str]:
        """Close the pool."""
        refusal = self._refusal(generation)
        if refusal:
            return refusal
        assert self.pool is not None
        if not self.pool.closed:
            self.notices.append("CLOSED")
            self.pool.closed = True
        return ["OK", str(self.pool.free)]

    def grant(  # noqa: PLR0911 - one return per refusal, as the contract lists them
        self, generation: int, name: str, seq: int, need: int, want: int, *,
        returned: int, consumed: int, witness: int, count: int,
    ) -> list[str]:  # fmt: skip
        """Grant a lease."""
        refusal = self._refusal(generation)
        if refusal:
            return refusal
        assert self.pool is not None
        pool, holder = self.pool, self.pool.holders.get(name, Holder())
        if pool.seq < witness:
            return ["ERR", "ROLLBACK", str(pool.seq)]
        replay = name in pool.holders and seq == holder.seq
        if pool.closed and not replay:
            return ["ERR", "CLOSED"]
        if not replay:
            if seq != holder.seq + 1:
                return ["ERR", "SEQ", str(holder.seq)]
            if returned < holder.returned or consumed + returned > holder.granted:
                return ["ERR", "RETURN_RANGE"]
            pool.returned += returned - holder.returned
            give = self._give(pool, need, want, max(count, len(pool.holders | {name: holder})))
            if pool.granted + give > UNITS_MAX:
                pool.returned -= returned - holder.returned
                pool.closed = True
                return ["ERR", "CLOSED"]
            holder.seq, holder.returned, holder.last_give = seq, returned, give
            holder.granted += give
            was_short = pool.short
            pool.granted += give
            pool.seq += 1
            self._tell_short(pool, was_short=was_short)
            pool.holders[name] = holder
        if not pool.closed:
            self._tell(pool)
            if holder.last_give == 0 and pool.free < need:
                pool.wanted.append(need)
        figures = (
            holder.last_give,
            holder.granted,
            pool.seq,
            pool.free,
            int(pool.final),
            pool.total,
            len(pool.holders),
        )
        return ["OK", *map(str, figures)]

    def lose_set(self) -> None:
        """Lose every mark."""
        self.values.clear()
        self.set_is_foreign = True

    def _now(self, value: str, generation: int) -> str | None:
        mark = self.values.get(value)
        is_own = mark is not None and ":" in mark
        since = generation if self.set_is_foreign else self.since
        return None if is_own and int(mark.split(":")[1]) < since else mark  # type: ignore[union-attr]

    def _write(self, generation: int, marks: dict[str, str]) -> None:
        if marks and self.set_is_foreign:
            self.since, self.set_is_foreign = generation, False
        self.values.update(marks)

    def grant_values(
        self, generation: int, name: str, seq: int, values: list[str], settled: list[str], *,
        beyond: bool, returned: int, consumed: int,
    ) -> list[str]:  # fmt: skip
        """Grant a unit to each value that has none, as long as there are any."""
        refusal = self._refusal(generation)
        if refusal:
            return refusal
        assert self.pool is not None
        pool, holder = self.pool, self.pool.holders.get(name, Holder())
        own, marks = f"{seq}:{generation}:{name}", dict[str, str]()
        if name in pool.holders and seq == holder.seq:
            reply = self.grant(
                generation, name, seq, 0, 0, returned=returned, consumed=consumed, witness=0, count=1
            )  # fmt: skip
            said = {own: "N", "1": "K"}
            letters = "".join(said.get(self._now(value, generation) or "", "?") for value in values)
            self._write(generation, self._settle(generation, name, settled, marks))
            return [*reply, letters]
        if pool.closed:
            return ["ERR", "CLOSED"]
        if seq != holder.seq + 1:
            return ["ERR", "SEQ", str(holder.seq)]
        if returned < holder.returned or consumed + returned > holder.granted:
            return ["ERR", "RETURN_RANGE"]
        pool.returned += returned - holder.returned
        was_short = pool.short
        granted_before = pool.granted
        letters = "".join(self._mark(pool, value, own, marks, beyond=beyond) for value in values)
        give = pool.granted - granted_before
        holder.seq, holder.returned, holder.last_give = seq, returned, give
        holder.granted += give
        pool.seq += 1
        pool.holders[name] = holder
        self._tell_short(pool, was_short=was_short)
        self._tell(pool)
        if letters.strip("KN"):
            pool.wanted.append(1)
        self._write(generation, self._settle(generation, name, settled, marks))
        figures = (give, holder.granted, pool.seq, pool.free, int(pool.final), pool.total, len(pool.holders))
        return ["OK", *map(str, figures), letters]

    def _settle(self, generation: int, name: str, settled: list[str], marks: dict[str, str]) -> dict[str, str]:
        mine = f":{generation}:{name}"
        return marks | {value: "1" for value in settled if self.values.get(value, "").endswith(mine)}

    def _mark(self, pool: Pool, value: str, own: str, marks: dict[str, str], *, beyond: bool) -> str:
        before = marks.get(value) or self._now(value, pool.generation)
        if before == own:
            return "N"
        if before not in {None, "0"}:
            if before != "1":
                marks[value] = "1"
            return "K"
        if pool.free > 0:
            marks[value] = own
            pool.granted += 1
            return "N"
        if not (beyond and pool.final):
            return "D"
        if before == "0":
            return "o"
        marks[value] = "0"
        return "O"

    def return_values(
        self, generation: int, name: str, seq: int, marks: dict[str, int], *, returned: int, consumed: int
    ) -> list[str]:
        """Take marks back that nobody else was told of: each with its unit."""
        refusal = ["ERR", "RANGE"] if len(marks) > consumed else self._refusal(generation)
        if refusal:
            return refusal
        assert self.pool is not None
        holder = self.pool.holders.get(name, Holder())
        again = name in self.pool.holders and seq == holder.seq
        if again or self.pool.closed or seq != holder.seq + 1 or (
            returned < holder.returned or consumed + returned > holder.granted
        ):  # fmt: skip
            reply = self.grant(generation, name, seq, 0, 0, returned=returned, consumed=consumed, witness=0, count=1)
            return [*reply, str(holder.returned)] if reply[0] == "OK" else reply
        gone = [value for value, mark in marks.items() if self._now(value, generation) == f"{mark}:{generation}:{name}"]
        for value in gone:
            del self.values[value]
        returned, consumed = returned + len(gone), consumed - len(gone)
        reply = self.grant(generation, name, seq, 0, 0, returned=returned, consumed=consumed, witness=0, count=1)
        return [*reply, str(returned)]

    @staticmethod
    def _give(pool: Pool, need: int, want: int, holders: int) -> int:
        if pool.free < need:
            return 0
        if 10 * pool.free < pool.total:
            return need
        return max(need, min(want, pool.free // (2 * holders)))
