"""Convert limits between the ledger's form, the contract's LimitRule and the catalogue's JSON."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from tollkeeper.ledger.v1 import decisions_pb2, limits_pb2
from tollkeeper.quota.v1 import decision_pb2

from tollkeeper_ledger.domain.errors import InvalidFieldError
from tollkeeper_ledger.domain.limits import (
    AfterRestore,
    AttributeMatch,
    DecisionLog,
    Enforcement,
    FailurePolicy,
    LimitKind,
    MatchKind,
)
from tollkeeper_ledger.domain.windows import Alignment, WindowUnit
from tollkeeper_ledger.rpc.fields import instant_of_us

if TYPE_CHECKING:
    from google.protobuf.internal.enum_type_wrapper import _EnumTypeWrapper

    from tollkeeper_ledger.domain.limits import EffectiveLimit

_KINDS = {kind: getattr(decision_pb2, f"LIMIT_KIND_{kind.name}") for kind in LimitKind}
_ENFORCEMENTS = {one: getattr(decision_pb2, f"ENFORCEMENT_{one.name}") for one in Enforcement}
_POLICIES = {one: getattr(decision_pb2, f"FAILURE_POLICY_{one.name}") for one in FailurePolicy}
_AFTER_RESTORE = {one: getattr(limits_pb2, f"AFTER_RESTORE_{one.name}") for one in AfterRestore}
_DECISION_LOGS = {one: getattr(decisions_pb2, f"DECISION_LOG_{one.name}") for one in DecisionLog}
_UNITS = {unit: getattr(limits_pb2, f"WINDOW_UNIT_{unit.name}") for unit in WindowUnit}
_ALIGNMENTS = {one: getattr(limits_pb2, f"WINDOW_ALIGNMENT_{one.name}") for one in Alignment}
_REFILL_US = (("day", 86_400_000_000), ("hour", 3_600_000_000), ("minute", 60_000_000), ("second", 1_000_000))


def rule_to_message(limit: EffectiveLimit) -> limits_pb2.LimitRule:
    """Give a limit as the contract has it."""
    rule = limit.rule
    message = limits_pb2.LimitRule(
        name=rule.name,
        meter=rule.meter,
        kind=_KINDS[rule.kind],
        amount=rule.amount,
        amount_version=limit.amount_version,
        enforcement=_ENFORCEMENTS[rule.enforcement],
        failure_policy=_POLICIES[rule.failure_policy],
        match=[_match_to_message(match) for match in rule.match],
        key=rule.key,
        refill_interval_us=rule.refill_interval_us,
        burst=rule.burst,
        valid_from_us=rule.valid_from_us,
        valid_to_us=rule.valid_to_us,
        source=limit.source.value,
        shared=rule.shared,
        after_restore=_AFTER_RESTORE[rule.after_restore],
        decision_log=_DECISION_LOGS[rule.decision_log],
        decision_log_one_in=rule.decision_log_one_in,
    )
    if rule.window is not None:
        message.window_unit = _UNITS[rule.window.unit]
        message.window_count = rule.window.count
        message.time_zone = rule.window.time_zone
        message.alignment = _ALIGNMENTS[rule.window.alignment]
        message.anchor = "" if rule.window.anchor is None else rule.window.anchor.isoformat()
    return message


def _match_to_message(match: AttributeMatch) -> limits_pb2.AttributeMatch:
    message = limits_pb2.AttributeMatch(attribute=match.attribute)
    match match.kind:
        case MatchKind.EXACT:
            message.exact = match.values[0]
        case MatchKind.PREFIX:
            message.prefix = match.values[0]
        case MatchKind.SET:
            message.set.values.extend(match.values)
        case MatchKind.ANY:
            message.any = True
    return message


def enforcement_from_message(value: int, *, field: str) -> str | None:
    """Give an enforcement's name, None where it is unspecified. Raises InvalidFieldError for an unknown one."""
    if value == decision_pb2.ENFORCEMENT_UNSPECIFIED:
        return None
    return _name(value, decision_pb2.Enforcement, "ENFORCEMENT_", field)


def decision_log_from_message(value: int, *, field: str) -> str | None:
    """Give a decision log's name, None where it is unspecified. Raises InvalidFieldError for an unknown one."""
    if value == decisions_pb2.DECISION_LOG_UNSPECIFIED:
        return None
    return _name(value, decisions_pb2.DecisionLog, "DECISION_LOG_", field)


def rule_from_message(message: limits_pb2.LimitRule) -> dict[str, Any]:
    """Give a whole rule in the catalogue's form; what is unspecified is left out, so that its default stands.

    Checks enums only: the catalogue's own reading checks the rest.
    """
    rule: dict[str, Any] = {"meter": message.meter, "amount": message.amount}
    kind = _name(message.kind, decision_pb2.LimitKind, "LIMIT_KIND_", "rule.kind")
    rule["kind"] = kind
    if message.enforcement:
        rule["enforcement"] = enforcement_from_message(message.enforcement, field="rule.enforcement")
    if message.failure_policy:
        rule["failure_policy"] = _name(
            message.failure_policy, decision_pb2.FailurePolicy, "FAILURE_POLICY_", "rule.failure_policy"
        )
    if message.after_restore:
        rule["after_restore"] = _name(
            message.after_restore, limits_pb2.AfterRestore, "AFTER_RESTORE_", "rule.after_restore"
        )
    rule.update(_decision_log(message))
    whole = {
        "match": [_match_from_message(match) for match in message.match],
        "key": list(message.key),
        "shared": message.shared,
    }
    rule.update({name: value for name, value in whole.items() if value})
    if kind == "window":
        rule["window"] = _window_from_message(message)
    elif kind == "token_bucket":
        rule["refill"] = _refill_from_us(message.refill_interval_us)
        if message.burst:
            rule["burst"] = message.burst
    for name in ("valid_from", "valid_to"):
        if message.HasField(f"{name}_us"):  # type: ignore[arg-type]
            rule[name] = instant_of_us(f"rule.{name}_us", getattr(message, f"{name}_us")).isoformat()
    return rule


def _decision_log(message: limits_pb2.LimitRule) -> dict[str, Any]:
    said: dict[str, Any] = {}
    if message.decision_log:
        said["decision_log"] = decision_log_from_message(message.decision_log, field="rule.decision_log")
    if message.decision_log_one_in:
        said["decision_log_one_in"] = message.decision_log_one_in
    return said


def _window_from_message(message: limits_pb2.LimitRule) -> dict[str, Any]:
    window: dict[str, Any] = {
        "unit": _name(message.window_unit, limits_pb2.WindowUnit, "WINDOW_UNIT_", "rule.window_unit")
    }
    if message.window_count:
        window["count"] = message.window_count
    if message.time_zone:
        window["time_zone"] = message.time_zone
    if message.alignment:
        window["alignment"] = _name(
            message.alignment, limits_pb2.WindowAlignment, "WINDOW_ALIGNMENT_", "rule.alignment"
        )
    if message.anchor:
        window["anchor"] = message.anchor
    return window


def _match_from_message(message: limits_pb2.AttributeMatch) -> dict[str, Any]:
    match message.WhichOneof("rule"):
        case "set":
            return {"attribute": message.attribute, "set": list(message.set.values)}
        case "any":
            return {"attribute": message.attribute, "any": message.any}
        case None:
            return {"attribute": message.attribute}
        case rule:
            return {"attribute": message.attribute, rule: getattr(message, rule)}


def _refill_from_us(interval_us: int) -> dict[str, Any]:
    for unit, length_us in _REFILL_US:
        if interval_us > 0 and interval_us % length_us == 0:
            return {"unit": unit, "count": interval_us // length_us}
    raise InvalidFieldError(
        "rule.refill_interval_us",
        "is not a whole number of seconds",
        reason="FIELD_OUT_OF_RANGE",
        value=interval_us,
        bound="1,000,000 and multiples of it",
    )


def _name(value: int, enum: _EnumTypeWrapper[Any], prefix: str, field: str) -> str:
    names = {number: name.removeprefix(prefix).lower() for name, number in enum.items() if number}
    if value not in names:
        raise InvalidFieldError(
            field,
            "is not known",
            reason="ENUM_UNKNOWN" if value else "FIELD_REQUIRED",
            value=value,
            bound=", ".join(names.values()),
        )
    return names[value]
