"""What limits mean, written to be obvious and slow: one dictionary of counters, no leases, no clock of its own.

The oracle of the data plane. It knows one tenant with its ancestors, at one moment that the test sets. Sidecars matter
to it in two ways alone: what one has used only that one gives back, and what one owes the others may not have heard of.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal, TypeAlias

MINUTE_US = 60_000_000
RECENT = 8
"""A sidecar remembers so many of its calls on a token bucket; what older ones took has come again by itself."""

NOBODY_KNOWS = -1
"""In place of a time."""

Kind: TypeAlias = Literal["window", "token_bucket", "level", "concurrency"]
Enforcement: TypeAlias = Literal["hard", "soft", "shadow"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Match:
    """A condition on one attribute."""

    attribute: str
    rule: Literal["exact", "prefix", "set", "any"]
    values: tuple[str, ...] = ("",)

    def fits(self, attributes: dict[str, str]) -> bool:
        """Tell whether a call's attributes satisfy it."""
        value = attributes.get(self.attribute)
        if value is None:
            return False
        match self.rule:
            case "any":
                return True
            case "prefix":
                return value.startswith(self.values[0])
            case _:
                return value in self.values


@dataclass(frozen=True, slots=True, kw_only=True)
class Limit:
    """A limit of the tenant or of an ancestor. Windows are minutes; buckets get `amount` tokens a minute.

    Levels and units in flight are windows without end: what they count goes down by giving back, or with a reservation.
    """

    name: str
    meter: str
    kind: Kind
    amount: int
    """-1 = unlimited, 0 = none."""
    burst: int = 0
    enforcement: Enforcement = "hard"
    match: tuple[Match, ...] = ()
    key: tuple[str, ...] = ()
    of_parent: bool = False

    @property
    def most(self) -> int:
        """Give the largest cost that could ever pass."""
        return self.burst if self.kind == "token_bucket" and self.amount else self.amount


@dataclass(slots=True, eq=False)
class Lot:
    """Tokens that one call took."""

    at_us: int
    units: int


@dataclass(slots=True)
class Counter:
    """What one key of one limit has used: units of the window, or every call that took tokens."""

    window: int = -1
    used: int = 0
    over: int = 0
    debts: list[tuple[str | None, int]] = field(default_factory=list)
    """Used above what was reserved, by the sidecar that certainly knows of it; nothing where none does."""
    here: dict[str, int] = field(default_factory=dict)
    """Used and not given back, by sidecar."""
    lots: list[Lot] = field(default_factory=list)
    recent: dict[str, list[Lot]] = field(default_factory=dict)
    """By sidecar, newest last."""
    is_doubtful: bool = False
    """How much of it was beyond a soft limit is not known."""
    may_lack: bool = False
    """Tokens that were given to a call of which nobody heard in time may be missing."""

    @property
    def owed(self) -> int:
        """Sum up what was used above what was reserved."""
        return sum(units for _, units in self.debts)

    def felt(self, sidecar: str) -> int:
        """Sum up what a sidecar surely knows to be owed."""
        return sum(units for knower, units in self.debts if knower == sidecar)

    def moved(self, sidecar: str, units: int) -> None:
        """Note that a sidecar used units, or gave them back."""
        self.here[sidecar] = self.here.get(sidecar, 0) + units


@dataclass(frozen=True, slots=True)
class Said:
    """What may be answered to a check."""

    allowed: bool | None
    """None where either is true to the promises: another sidecar may not have heard yet what is owed."""
    reasons: frozenset[str]
    """Any of these: which denying limit is named is the product's choice."""
    retry_after_us: dict[str, int | None] = field(default_factory=dict)
    """By denying limit's name: when the same call would pass; nothing where no waiting helps."""


@dataclass(slots=True)
class Held:
    """What a reservation holds of one limit."""

    limit: Limit
    counter: Counter
    window: int
    units: int
    """0 where a soft limit was exceeded: nothing goes back."""
    cost: int
    lot: Lot | None


@dataclass(slots=True)
class Reserved:
    """An open reservation."""

    home: str
    expires_us: int
    holds: list[Held]
    is_over: bool = False


Charge: TypeAlias = tuple[Limit, Counter, int]


@dataclass(slots=True)
class Model:
    """The counters of one tenant."""

    limits: tuple[Limit, ...]
    now_us: int
    counters: dict[tuple[str, tuple[str, ...]], Counter] = field(default_factory=dict)
    reserved: dict[str, Reserved] = field(default_factory=dict)
    is_shared: bool = False
    """Several sidecars serve it: one may find a soft limit exceeded while another holds units of it."""

    def judge(self, costs: dict[str, int], attributes: dict[str, str], sidecar: str) -> Said:
        """Decide a check of units by meter, and take nothing."""
        charges = self._charges(costs, attributes)
        surely = [charge for charge in charges if self._denies(charge, charge[1].felt(sidecar))]
        perhaps = [charge for charge in charges if self._denies(charge, charge[1].owed) or self._may_deny(charge)]
        denials = {limit.name: self._denial(limit, counter, units) for limit, counter, units in perhaps}
        over = {charge[0].enforcement for charge in charges if not self._has(charge, charge[1].owed)} - {"hard"}
        admitted = {"SOFT_LIMIT_EXCEEDED"} if "soft" in over else {"SHADOW_LIMIT_EXCEEDED"} if over else {"ALLOWED"}
        if any(counter.is_doubtful for _, counter, _ in charges):
            admitted = {"ALLOWED", "SOFT_LIMIT_EXCEEDED", "SHADOW_LIMIT_EXCEEDED"}
        denied = {reason for reason, _ in denials.values()}
        return Said(
            allowed=False if surely else None if perhaps else True,
            reasons=frozenset(denied if surely else admitted | denied if perhaps else admitted),
            retry_after_us={name: retry_us for name, (_, retry_us) in denials.items()},
        )

    def take(self, costs: dict[str, int], attributes: dict[str, str], sidecar: str) -> None:
        """Take what an admitted call takes."""
        for charge in self._charges(costs, attributes):
            held = self._take(charge, sidecar)
            if held and held.lot and held.units:
                held.counter.recent.setdefault(sidecar, []).append(held.lot)

    def reserve(self, name: str, charge: tuple[dict[str, int], dict[str, str]], sidecar: str, ttl_us: int) -> None:
        """Hold what an admitted reservation holds."""
        taken = [self._take(one, sidecar, is_held=True) for one in self._charges(*charge)]
        self.reserved[name] = Reserved(sidecar, self.now_us + ttl_us, [held for held in taken if held])

    def advance(self, us: int) -> None:
        """Let time pass, and end reservations whose time is up: windows and tokens stay spent, the rest is free."""
        self.now_us += us
        for reserved in self.reserved.values():
            if reserved.is_over or reserved.expires_us > self.now_us:
                continue
            reserved.is_over = True
            for held in reserved.holds:
                if held.limit.kind in ("level", "concurrency"):
                    held.counter.used -= held.units
                    held.counter.over -= held.cost - held.units if held.limit.kind == "concurrency" else 0
                else:
                    self._spend(held, reserved.home, held.units)

    def end(self, name: str, actual: dict[str, int], sidecar: str) -> None:
        """End a reservation at what was used: the rest of it is free again, in the window where it was held.

        Tokens above what was held are not owed; nothing stays in flight.
        """
        reserved = self.reserved.pop(name)
        knower = sidecar if sidecar == reserved.home else None
        for held in reserved.holds:
            self._counter_now(held.limit, held.counter)
            used = actual.get(held.limit.meter, 0)
            if not reserved.is_over:
                self._end_hold(held, reserved.home, used)
            if held.limit.kind in ("window", "level") and held.counter.window == held.window:
                most = 0 if reserved.is_over and held.limit.kind == "level" else held.cost
                excess = max(0, used - most)
                if excess and held.limit.enforcement == "hard":
                    held.counter.debts.append((knower, excess))
                else:
                    held.counter.over += excess
                held.counter.moved(reserved.home, excess)

    def _end_hold(self, held: Held, home: str, used: int) -> None:
        match held.limit.kind:
            case "concurrency":
                held.counter.used -= held.units
                held.counter.over -= held.cost - held.units
            case "token_bucket":
                self._spend(held, home, min(used, held.units))
                if held.lot:
                    self._regain(held.limit, held.counter, held.lot, max(0, held.units - used))
            case _ if held.counter.window == held.window:
                back = max(0, held.units - used)
                held.counter.used -= back
                self._spend(held, home, held.units - back)

    @staticmethod
    def _spend(held: Held, home: str, units: int) -> None:
        """Note what a reservation used: from now on its home may give it back."""
        if held.limit.kind != "token_bucket" and held.counter.window != held.window:
            return
        held.counter.moved(home, units)
        if held.lot and units:
            held.counter.recent.setdefault(home, []).append(held.lot)

    def may_give_back(self, costs: dict[str, int], attributes: dict[str, str], sidecar: str) -> bool:
        """Tell whether a sidecar used so much of every limit; of levels anybody lowers what is stored."""
        return all(
            units <= (counter.used if limit.kind == "level" else counter.here.get(sidecar, 0))
            for limit, counter, units in self._charges(costs, attributes)
            if limit.amount >= 0
        )

    def give_back(self, costs: dict[str, int], attributes: dict[str, str], sidecar: str) -> None:
        """Give back what calls used at a sidecar: first what was beyond a limit, then what was taken last."""
        for limit, counter, units in self._charges(costs, attributes):
            if limit.amount < 0:
                continue
            counter.moved(sidecar, -units)
            beyond = min(units, counter.over)
            counter.over -= beyond
            rest = units - beyond
            if limit.kind != "token_bucket":
                counter.used -= rest
                continue
            for lot in reversed(counter.recent.get(sidecar, [])[-RECENT:]):
                part = min(rest, lot.units)
                rest -= part
                self._regain(limit, counter, lot, part)

    def remaining(self, name: str, attributes: dict[str, str]) -> int:
        """Tell what a call could still take of a limited window, and 0 where debts exceed it."""
        limit, counter = self._named(name, attributes)
        return max(0, limit.amount - counter.used - counter.over - counter.owed)

    def used(self, name: str, attributes: dict[str, str]) -> int:
        """Tell what all calls used, those beyond the limit included."""
        counter = self._named(name, attributes)[1]
        return counter.used + counter.over + counter.owed

    def tokens(self, name: str, attributes: dict[str, str]) -> int:
        """Tell how many whole tokens a bucket holds."""
        return self._level_scaled(*self._named(name, attributes)) // MINUTE_US

    def owes(self, name: str, attributes: dict[str, str]) -> bool:
        """Tell whether more was used of a limit than was reserved."""
        return self._named(name, attributes)[1].owed > 0

    def _named(self, name: str, attributes: dict[str, str]) -> tuple[Limit, Counter]:
        (limit,) = (limit for limit in self.limits if limit.name == name)
        return limit, self._counter(limit, attributes)

    def _charges(self, costs: dict[str, int], attributes: dict[str, str]) -> list[Charge]:
        return [
            (limit, self._counter(limit, attributes), costs[limit.meter])
            for limit in self.limits
            if limit.meter in costs and all(match.fits(attributes) for match in limit.match)
        ]

    def charged(self, costs: dict[str, int], attributes: dict[str, str]) -> list[tuple[Limit, Counter]]:
        """Give the limits that count a call, with their counters."""
        return [(limit, counter) for limit, counter, _ in self._charges(costs, attributes)]

    def _counter(self, limit: Limit, attributes: dict[str, str]) -> Counter:
        key = (limit.name, tuple(attributes.get(name, "") for name in limit.key))
        fresh = Counter(is_doubtful=self.is_shared and limit.enforcement != "hard")
        return self._counter_now(limit, self.counters.setdefault(key, fresh))

    def _counter_now(self, limit: Limit, counter: Counter) -> Counter:
        window = self.now_us // MINUTE_US if limit.kind == "window" else 0
        if counter.window != window:
            counter.window, counter.used, counter.over, counter.here, counter.debts = window, 0, 0, {}, []
        return counter

    def _level_scaled(self, limit: Limit, counter: Counter) -> int:
        """Play every call again from a full bucket; in tokens times the microseconds of a minute."""
        full = limit.burst * MINUTE_US
        level, at_us = full, 0
        for lot in counter.lots:
            level = min(full, level + limit.amount * (lot.at_us - at_us)) - lot.units * MINUTE_US
            at_us = lot.at_us
        return min(full, level + limit.amount * (self.now_us - at_us))

    def _regain(self, limit: Limit, counter: Counter, lot: Lot, units: int) -> None:
        """Give tokens of a call back: whole ones that would be there now had they never been taken."""
        before = self._level_scaled(limit, counter)
        lot.units -= units
        worth = (self._level_scaled(limit, counter) - before) // MINUTE_US
        lot.units += units - worth

    def _has(self, charge: Charge, owed: int) -> bool:
        limit, counter, units = charge
        if units == 0 or limit.amount < 0:
            return True
        if limit.amount == 0:
            return False
        if limit.kind == "token_bucket":
            return self._level_scaled(limit, counter) >= units * MINUTE_US
        return counter.used + owed + units <= limit.amount

    def _denies(self, charge: Charge, owed: int) -> bool:
        return charge[0].enforcement == "hard" and not self._has(charge, owed)

    def _may_deny(self, charge: Charge) -> bool:
        limit, counter, units = charge
        return counter.may_lack and limit.enforcement == "hard" and units > 0 and limit.amount > 0

    def _denial(self, limit: Limit, counter: Counter, units: int) -> tuple[str, int | None]:
        if units > limit.most:
            return "COST_EXCEEDS_LIMIT", None
        if limit.kind == "token_bucket" and counter.may_lack:
            return "RATE_LIMITED", NOBODY_KNOWS
        if limit.kind == "token_bucket":
            missing = units * MINUTE_US - self._level_scaled(limit, counter)
            return "RATE_LIMITED", -(-missing // limit.amount)
        return "QUOTA_EXHAUSTED", MINUTE_US - self.now_us % MINUTE_US if limit.kind == "window" else None

    def _take(self, charge: Charge, sidecar: str, *, is_held: bool = False) -> Held | None:
        limit, counter, units = charge
        if limit.amount < 0:
            return None
        has = self._has(charge, counter.owed)
        lot = None
        if not has:
            counter.over += units
        elif limit.kind == "token_bucket":
            lot = Lot(self.now_us, units)
            counter.lots.append(lot)
        else:
            counter.used += units
        if not (is_held and has):
            counter.moved(sidecar, units)
        return Held(limit, counter, counter.window, units if has else 0, units, lot)
