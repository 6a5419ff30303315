"""Requests out of paths, queries and bodies; JSON out of responses.

Whole numbers of 64 bits are JSON numbers where a double holds them exactly, else strings; both are read.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any, TypeAlias

from google.protobuf import json_format
from google.protobuf.descriptor import FieldDescriptor
from google.protobuf.message_factory import GetMessageClass

from tollkeeper_ledger.web.transcode.bindings import ALL_FIELDS, field_of

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from google.protobuf.descriptor import Descriptor, MethodDescriptor
    from google.protobuf.message import Message

    from tollkeeper_ledger.web.transcode.bindings import Binding

Json: TypeAlias = dict[str, Any]

_EXACT_MAX = 2**53 - 1
_LONG = frozenset(
    {
        FieldDescriptor.CPPTYPE_INT64,
        FieldDescriptor.CPPTYPE_UINT64,
    }
)


class RequestError(ValueError):
    """A request that isn't one of the method's, with the field where it is known."""

    def __init__(self, message: str, *, field: str = "") -> None:
        super().__init__(message)
        self.field = field


def request_of(binding: Binding, *, path: Mapping[str, str], query: Iterable[tuple[str, str]], body: bytes) -> Message:
    """Make the method's request. A field may come from one place only: path, query or body. Raises RequestError."""
    fields = _body_fields(binding, body)
    for name, value in path.items():
        if _place(fields, name, value, is_repeated=False):
            raise RequestError(f"{name} stands in the path already", field=name)
    for name, value in query:
        if binding.body == ALL_FIELDS:
            raise RequestError(f"{name}: this call takes its fields from the body, not from the query", field=name)
        try:
            field = field_of(binding.method, name)
        except ValueError:
            raise RequestError(f"there is no parameter {name}", field=name) from None
        if field.message_type is not None and not _is_scalar_message(field.message_type):
            raise RequestError(f"{name} can't stand in a query", field=name)
        if _place(fields, name, _query_value(field, value), is_repeated=field.is_repeated):
            raise RequestError(f"{name} stands twice", field=name)
    message = GetMessageClass(binding.method.input_type)()
    try:
        json_format.ParseDict(fields, message)
    except json_format.ParseError as error:
        raise RequestError(str(error)) from None
    return message


def json_of(message: Message) -> Json:
    """Give a message as JSON with the proto's own names; unset fields stand there with their zero value."""
    plain = json_format.MessageToDict(
        message, preserving_proto_field_name=True, always_print_fields_with_no_presence=True
    )
    return _with_numbers(plain, message.DESCRIPTOR)  # type: ignore[arg-type]  # the C descriptor is one


def response_class(method: MethodDescriptor) -> type[Message]:
    """Give the class of a method's answers."""
    return GetMessageClass(method.output_type)


def _body_fields(binding: Binding, body: bytes) -> Json:
    if not binding.body:
        if body.strip():
            raise RequestError("this call takes no body")
        return {}
    parsed = parsed_json(body or b"{}")
    if not isinstance(parsed, dict) and binding.body == ALL_FIELDS:
        raise RequestError("the body must be a JSON object")
    return parsed if binding.body == ALL_FIELDS else {binding.body: parsed}


def parsed_json(body: bytes) -> Any:
    """Give a body's JSON. Raises RequestError."""
    try:
        return json.loads(body, parse_constant=_refuse_constant, object_pairs_hook=_fields_once)
    except (ValueError, RecursionError) as error:
        raise RequestError(f"the body isn't JSON: {error}") from None


def _fields_once(pairs: list[tuple[str, Any]]) -> Json:
    fields: Json = {}
    for name, value in pairs:
        if name in fields:
            raise ValueError(f"{name[:40]!r} stands twice")
        fields[name] = value
    return fields


def _refuse_constant(name: str) -> float:
    raise ValueError(f"{name} is not JSON")


def _place(fields: Json, path: str, value: Any, *, is_repeated: bool) -> bool:
    """Put a value at a dotted path; tell whether one was there."""
    *outer, last = path.split(".")
    for name in outer:
        fields = fields.setdefault(name, {})
    if is_repeated:
        fields.setdefault(last, []).append(value)
        return False
    if last in fields:
        return True
    fields[last] = value
    return False


def _query_value(field: FieldDescriptor, value: str) -> str | bool:
    if field.cpp_type == FieldDescriptor.CPPTYPE_BOOL:
        if value not in ("true", "false"):
            raise RequestError(f"{field.name} must be true or false, not {value[:40]!r}", field=field.name)
        return value == "true"
    return value


def _is_scalar_message(descriptor: Descriptor) -> bool:
    """Whether a message is written as one JSON string."""
    return descriptor.full_name in {
        "google.protobuf.Timestamp",
        "google.protobuf.Duration",
        "google.protobuf.FieldMask",
    }


def _with_numbers(plain: Json, descriptor: Descriptor) -> Json:
    for name, value in plain.items():
        field = descriptor.fields_by_name.get(name)
        if field is None:
            continue
        if field.message_type is not None and field.message_type.GetOptions().map_entry:
            inner = field.message_type.fields_by_name["value"]
            plain[name] = {key: _number(one, inner) for key, one in value.items()}
        elif isinstance(value, list):
            plain[name] = [_number(one, field) for one in value]
        else:
            plain[name] = _number(value, field)
    return plain


def _number(value: Any, field: FieldDescriptor) -> Any:
    if isinstance(value, dict) and field.message_type is not None:
        return _with_numbers(value, field.message_type)
    if isinstance(value, str) and field.cpp_type in _LONG and abs(int(value)) <= _EXACT_MAX:
        return int(value)
    return value
