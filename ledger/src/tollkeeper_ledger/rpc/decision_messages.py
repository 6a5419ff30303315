"""Read what sidecars tell of decisions, each field refused with its bound; give what is kept as messages."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tollkeeper.ledger.v1 import decisions_pb2
from tollkeeper.quota.v1 import decision_pb2

from tollkeeper_ledger.domain.errors import InvalidFieldError
from tollkeeper_ledger.domain.limits import UNITS_MAX
from tollkeeper_ledger.domain.usage import NAME_BYTES_MAX
from tollkeeper_ledger.domain.usage_rules import text_problem
from tollkeeper_ledger.rpc.acting import timestamp
from tollkeeper_ledger.rpc.fields import instant_of_us, out_of_range
from tollkeeper_ledger.services.decisions import Batch
from tollkeeper_ledger.store.decisions import DecisionCount, DecisionEntry

if TYPE_CHECKING:
    from tollkeeper_ledger.store.pool import Row

_PREFIX = "DECISION_REASON_"
_SEQ_MAX = 2**63 - 1
_ATTRIBUTES_MAX = 64
_TEXT_BYTES_MAX = 1_024
"""Of an attribute; sidecars take less."""
_WRONG = {"FIELD_REQUIRED": "is missing", "FIELD_TOO_LONG": "is too long", "FIELD_INVALID": "has a zero byte"}


def batch_from_message(message: decisions_pb2.ReportDecisionsRequest) -> Batch:
    """Read a batch whose holder and lengths are checked. Raises InvalidFieldError."""
    if not 1 <= message.batch_seq <= _SEQ_MAX:
        raise out_of_range("batch_seq", message.batch_seq, f"1 to {_SEQ_MAX}")
    return Batch(
        holder=message.holder,
        batch_seq=message.batch_seq,
        counts=[_count(one, f"counts[{place}]") for place, one in enumerate(message.counts)],
        entries=[_entry(one, f"entries[{place}]") for place, one in enumerate(message.entries)],
    )


def _count(message: decisions_pb2.DecisionCount, field: str) -> DecisionCount:
    count = _units(message.count, f"{field}.count", least=1)
    if not 0 <= message.left_out <= count:
        raise out_of_range(f"{field}.left_out", message.left_out, "0 to count")
    return DecisionCount(
        tenant=_name(message.tenant, f"{field}.tenant"),
        limit=_name(message.limit, f"{field}.limit"),
        reason=reason_name(message.reason, f"{field}.reason"),
        count=count,
        left_out=message.left_out,
    )


def _entry(message: decisions_pb2.DecisionEntry, field: str) -> DecisionEntry:
    if len(message.attributes) > _ATTRIBUTES_MAX:
        raise InvalidFieldError(
            f"{field}.attributes", "has too many", reason="FIELD_TOO_LONG", bound=f"up to {_ATTRIBUTES_MAX}"
        )
    attributes = {
        _text(name, f"{field}.attributes.key"): _text(value, f"{field}.attributes")
        for name, value in message.attributes.items()
    }
    return DecisionEntry(
        tenant=_name(message.tenant, f"{field}.tenant"),
        limit=_name(message.limit, f"{field}.limit"),
        reason=reason_name(message.reason, f"{field}.reason"),
        at=instant_of_us(f"{field}.at_us", message.at_us),
        caller=_name(message.caller, f"{field}.caller"),
        units=_units(message.units, f"{field}.units"),
        amount=_units(message.amount, f"{field}.amount", least=-1),
        used=_units(message.used, f"{field}.used", most=_SEQ_MAX),
        attributes=attributes,
    )


def entry_to_message(row: Row) -> decisions_pb2.KeptDecision:
    """Give an entry as it is listed."""
    return decisions_pb2.KeptDecision(
        tenant=row["wire_id"],
        limit=row["limit_name"],
        reason=reason_number(row["reason"]),
        at=timestamp(row["at"]),
        caller=row["caller"],
        units=row["units"],
        amount=row["amount"],
        used=row["used"],
        attributes=row["attributes"],
    )


def sum_to_message(row: Row) -> decisions_pb2.DecisionSum:
    """Give a sum as it is listed."""
    return decisions_pb2.DecisionSum(
        tenant=row["wire_id"],
        limit=row["limit_name"],
        reason=reason_number(row["reason"]),
        count=row["count"],
        left_out=row["left_out"],
    )


def reason_name(number: int, field: str) -> str:
    """Give the name of a reason without its prefix. Raises InvalidFieldError where there is none of this number."""
    if number == decision_pb2.DECISION_REASON_UNSPECIFIED or number not in decision_pb2.DecisionReason.values():
        raise InvalidFieldError(field, "is not known", reason="ENUM_UNKNOWN", value=number)
    return decision_pb2.DecisionReason.Name(number).removeprefix(_PREFIX)  # type: ignore[arg-type]


def reason_number(name: str) -> decision_pb2.DecisionReason.ValueType:
    """Give the number of a reason that was stored."""
    return decision_pb2.DecisionReason.Value(_PREFIX + name)


def _name(text: str, field: str) -> str:
    return _text(text, field, most=NAME_BYTES_MAX, empty=False)


def _text(text: str, field: str, *, most: int = _TEXT_BYTES_MAX, empty: bool = True) -> str:
    problem = text_problem(text, field, most=most, empty=empty)
    if problem is not None:
        bound = f"{0 if empty else 1} to {most} bytes, none of them zero"
        raise InvalidFieldError(field, _WRONG[problem.reason], reason=problem.reason, bound=bound)
    return text


def _units(value: int, field: str, *, least: int = 0, most: int = UNITS_MAX) -> int:
    if not least <= value <= most:
        raise out_of_range(field, value, f"{least} to {most}")
    return value
