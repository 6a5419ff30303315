"""Changes of a limit's kind and key wait for the next turn. Pure.

Amount and enforcement change at once, length and zone of windows where the window that is open ends (`cursor`). Another
kind or key makes other identities, which have windows of their own; in the middle of a window their units would be a
fresh quota. So the rule before is held until no window of it can be open, and the new one begins there.

| in force | changes to | at |
|---|---|---|
| window | another kind or key | the end of the last window that is open or may be by now |
| token bucket | window | the end of the window that the new rule has by now |
| token bucket | another key, level, concurrency | at once: it has no window, and neither has what follows |
| level, concurrency | anything | never: what is stored or in flight has no turn |
| never used | anything | at once |

Within a kind the rule that is held has everything of the new one but its key. Of another kind it is held whole, its
amount too: a thousand a month is no thousand a second.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from tollkeeper_ledger.domain.issuing import AHEAD_US_MAX
from tollkeeper_ledger.domain.limits import EffectiveLimit, LimitKind, rule_from_json
from tollkeeper_ledger.domain.spans import span_at

if TYPE_CHECKING:
    from tollkeeper_ledger.domain.limits import Json, LimitRule, Source
    from tollkeeper_ledger.domain.periods import Schedule


@dataclass(frozen=True, slots=True)
class Hold:
    """The rule that is in force until `until_us`, whatever is declared."""

    rule: Json
    until_us: int


@dataclass(frozen=True, slots=True)
class Use:
    """What is known of a limit's use: whether there was any, and where the last of its windows ends (0 = none)."""

    is_used: bool
    last_end_us: int


def hold_after(
    before: Json, hold: Hold | None, after: Json, use: Use, *, schedule: Schedule | None, now_us: int
) -> Hold | None:
    """Give what is held once `after` is declared instead of `before`; None where it is in force at once.

    A hold that runs goes on to its end whatever is declared meanwhile, unless that is what is held.
    """
    if hold is not None and hold.until_us <= now_us:
        hold = None
    present = before if hold is None else hold.rule
    if shape_of(present) == shape_of(after):
        return None
    until_us = _turn_us(present, after, use, schedule=schedule, now_us=now_us) if hold is None else hold.until_us
    if until_us <= now_us:
        return None
    return Hold(rule=_held(present, after), until_us=until_us)


def shape_of(rule: Json) -> tuple[str, tuple[str, ...]]:
    """Give what tells identities of one limit name from each other: kind and key."""
    return str(rule["kind"]), tuple(rule.get("key", ()))


def _held(present: Json, after: Json) -> Json:
    if present["kind"] != after["kind"]:
        return present
    return {**after, "key": list(present.get("key", ()))}


def _turn_us(present: Json, after: Json, use: Use, *, schedule: Schedule | None, now_us: int) -> int:
    """Give the first time at which the new rule adds nothing to what the present one has given; 0 = now."""
    if not use.is_used:
        return 0
    old, new = rule_from_json(present), rule_from_json(after)
    if old.kind is LimitKind.TOKEN_BUCKET:
        return _end_us(new, schedule, now_us) if new.kind is LimitKind.WINDOW else 0
    if old.kind is LimitKind.WINDOW:
        # Whoever has not heard of the change yet may lease the next window by now.
        return max(use.last_end_us, _end_us(old, schedule, now_us + AHEAD_US_MAX))
    return use.last_end_us


def _end_us(rule: LimitRule, schedule: Schedule | None, at_us: int) -> int:
    """Give the end of the window that a rule has then; 0 where it has none."""
    if rule.window is None:
        return 0
    try:
        return span_at(rule.window, schedule, at_us).end_us
    except (ValueError, OverflowError):
        return 0


def limits_in_turn(
    rule: LimitRule, source: Source, hold: Hold | None, *, amount_version: int, shape: int
) -> tuple[EffectiveLimit, ...]:
    """Give a declared rule as it is in force: after the one that is held, where one is."""
    limit = EffectiveLimit(rule=rule, source=source, amount_version=amount_version, shape=shape)
    if hold is None:
        return (limit,)
    until_us = hold.until_us
    held = rule_from_json(hold.rule)
    valid_to_us = until_us if held.valid_to_us is None else min(held.valid_to_us, until_us)
    valid_from_us = until_us if rule.valid_from_us is None else max(rule.valid_from_us, until_us)
    return (
        replace(limit, rule=replace(held, valid_to_us=valid_to_us), until_us=until_us),
        replace(limit, rule=replace(rule, valid_from_us=valid_from_us), from_us=until_us),
    )
