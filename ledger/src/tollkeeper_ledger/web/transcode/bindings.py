"""Which HTTP request calls which method: read from the services' annotations once, at start."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from google.api import annotations_pb2

from tollkeeper_ledger.web.transcode.template import PathTemplate

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from google.api.http_pb2 import HttpRule
    from google.protobuf.descriptor import FieldDescriptor, MethodDescriptor, ServiceDescriptor

_VERBS = ("get", "put", "post", "delete", "patch")
ALL_FIELDS = "*"
"""A binding's body that is the whole request."""


@dataclass(frozen=True, slots=True)
class Binding:
    """One way to call one method."""

    verb: str
    """In upper case."""
    template: PathTemplate
    method: MethodDescriptor
    body: str
    """`*` = the body is the request less the path's fields, a field's name = that field, empty = no body."""
    is_additional: bool

    @property
    def full_method(self) -> str:
        """Give the method's path on a channel."""
        return f"/{self.method.containing_service.full_name}/{self.method.name}"


def bindings_of(services: Iterable[ServiceDescriptor]) -> tuple[Binding, ...]:
    """Read every binding; methods without an annotation have none.

    Raises ValueError where an annotation names a field that isn't there, a kind of call that HTTP can't carry, or a
    path that another method has.
    """
    found: list[Binding] = []
    for service in services:
        for method in service.methods:
            if method.GetOptions().HasExtension(annotations_pb2.http):
                rule = method.GetOptions().Extensions[annotations_pb2.http]
                found.extend(_bindings(method, rule))
    taken: dict[tuple[str, str], Binding] = {}
    for binding in found:
        other = taken.setdefault((binding.verb, binding.template.text), binding)
        if other is not binding:
            raise ValueError(
                f"{binding.verb} {binding.template.text} is {other.method.full_name} and {binding.method.full_name}"
            )
    return tuple(found)


def field_of(method: MethodDescriptor, path: str) -> FieldDescriptor:
    """Give the field that a dotted path names in a method's request. Raises ValueError where there is none."""
    first, *rest = path.split(".")
    field = method.input_type.fields_by_name.get(first)
    for name in rest:
        inner = None if field is None else field.message_type
        field = None if inner is None else inner.fields_by_name.get(name)
    if field is None:
        raise ValueError(f"{method.full_name}: its request has no field {path}")
    return field


def _bindings(method: MethodDescriptor, rule: HttpRule) -> Iterator[Binding]:
    if method.client_streaming:
        raise ValueError(f"{method.full_name}: a stream of requests has no HTTP form")
    for number, each in enumerate((rule, *rule.additional_bindings)):
        verb = each.WhichOneof("pattern")
        if verb not in _VERBS:
            raise ValueError(f"{method.full_name}: no verb {verb}")
        template = PathTemplate.from_text(getattr(each, verb))
        for path in template.fields:
            field = field_of(method, path)
            if field.is_repeated or field.message_type is not None:
                raise ValueError(f"{method.full_name}: {path} can't stand in a path")
        if each.body and each.body != ALL_FIELDS:
            field_of(method, each.body)
        yield Binding(verb=verb.upper(), template=template, method=method, body=each.body, is_additional=number > 0)
