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
    values: dict[str, bool] = field(default_factory=dict)
    """Values seen; those with a unit are True."""

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

    def grant_values(
        self, generation: int, name: str, seq: int, values: list[str], *, beyond: bool, returned: int, consumed: int
    ) -> list[str]:
        """Grant a unit to each value that has none, as long as there are any."""
        refusal = self._refusal(generation)
        if refusal:
            return refusal
        assert self.pool is not None
        pool, holder = self.pool, self.pool.holders.get(name, Holder())
        if name in pool.holders and seq == holder.seq:
            reply = self.grant(
                generation, name, seq, 0, 0, returned=returned, consumed=consumed, witness=0, count=1
            )  # fmt: skip
            return [*reply, "".join("K" if self.values.get(value) else "?" for value in values)]
        if pool.closed:
            return ["ERR", "CLOSED"]
        if seq != holder.seq + 1:
            return ["ERR", "SEQ", str(holder.seq)]
        if returned < holder.returned or consumed + returned > holder.granted:
            return ["ERR", "RETURN_RANGE"]
        pool.returned += returned - holder.returned
        was_short = pool.short
        granted_before = pool.granted
        letters = "".join(self._mark(pool, value, beyond=beyond) for value in values)
        give = pool.granted - granted_before
        holder.seq, holder.returned, holder.last_give = seq, returned, give
        holder.granted += give
        pool.seq += 1
        pool.holders[name] = holder
        self._tell_short(pool, was_short=was_short)
        self._tell(pool)
        if letters.strip("K"):
            pool.wanted.append(1)
        figures = (give, holder.granted, pool.seq, pool.free, int(pool.final), pool.total, len(pool.holders))
        return ["OK", *map(str, figures), letters]

    def _mark(self, pool: Pool, value: str, *, beyond: bool) -> str:
        if not self.values.get(value) and pool.free > 0:
            self.values[value] = True
            pool.granted += 1
        if self.values.get(value):
            return "K"
        if not (beyond and pool.final):
            return "D"
        letter = "o" if value in self.values else "O"
        self.values[value] = False
        return letter

    @staticmethod
    def _give(pool: Pool, need: int, want: int, holders: int) -> int:
        if pool.free < need:
            return 0
        if 10 * pool.free < pool.total:
            return need
        return max(need, min(want, pool.free // (2 * holders)))
