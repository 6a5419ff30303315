"""The OpenAPI document of the bindings: paths, parameters, bodies, answers, with the proto files' own words."""

from __future__ import annotations

from types import MappingProxyType
from typing import TYPE_CHECKING, Any, TypeAlias

from google.protobuf.descriptor import FieldDescriptor

from tollkeeper_ledger.web.transcode.bindings import ALL_FIELDS, field_of

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from google.protobuf.descriptor import Descriptor, EnumDescriptor

    from tollkeeper_ledger.web.transcode.bindings import Binding

Json: TypeAlias = dict[str, Any]

OPENAPI_VERSION = "3.1.0"
_WHOLE: Json = {
    "type": ["integer", "string"],
    "format": "int64",
    "description": "A number up to 2^53 - 1, else a string.",
}
_SCALARS: Mapping[int, Json] = MappingProxyType(
    {
        FieldDescriptor.CPPTYPE_INT32: {"type": "integer", "format": "int32"},
        FieldDescriptor.CPPTYPE_UINT32: {"type": "integer", "format": "int32", "minimum": 0},
        FieldDescriptor.CPPTYPE_INT64: _WHOLE,
        FieldDescriptor.CPPTYPE_UINT64: _WHOLE,
        FieldDescriptor.CPPTYPE_BOOL: {"type": "boolean"},
        FieldDescriptor.CPPTYPE_DOUBLE: {"type": "number"},
        FieldDescriptor.CPPTYPE_FLOAT: {"type": "number"},
    }
)
_WELL_KNOWN: Mapping[str, Json] = MappingProxyType(
    {
        "google.protobuf.Timestamp": {"type": "string", "format": "date-time"},
        "google.protobuf.Duration": {"type": "string", "description": "Seconds with an s, for example 1.5s."},
        "google.protobuf.FieldMask": {"type": "string"},
    }
)
_ERROR: Json = {
    "type": "object",
    "properties": {
        "error": {
            "type": "object",
            "properties": {
                "code": {"type": "integer"},
                "status": {"type": "string"},
                "message": {"type": "string"},
                "details": {"type": "array", "items": {"type": "object"}},
            },
        }
    },
}


def openapi_of(
    bindings: Sequence[Binding], *, title: str, version: str, comments: Mapping[str, str] | None = None
) -> Json:
    """Describe every binding. `comments` holds the proto files' comments by full name of method, message and field."""
    return _Document(comments or {}).build(bindings, title=title, version=version)


class _Document:
    def __init__(self, comments: Mapping[str, str]) -> None:
        self._comments = comments
        self._schemas: dict[str, Json] = {"Error": _ERROR}

    def build(self, bindings: Sequence[Binding], *, title: str, version: str) -> Json:
        paths: dict[str, Json] = {}
        for binding in bindings:
            paths.setdefault(binding.template.text, {})[binding.verb.lower()] = self._operation(binding)
        return {
            "openapi": OPENAPI_VERSION,
            "info": {"title": title, "version": version},
            "paths": dict(sorted(paths.items())),
            "components": {"schemas": dict(sorted(self._schemas.items()))},
        }

    def _operation(self, binding: Binding) -> Json:
        method = binding.method
        comment = self._comments.get(method.full_name, "")
        media = "application/x-ndjson" if method.server_streaming else "application/json"
        operation: Json = {
            "operationId": f"{method.name}{'Alias' if binding.is_additional else ''}",
            "tags": [method.containing_service.name],
            "summary": comment.split(". ")[0].rstrip("."),
            "description": comment,
            "parameters": [*self._path_parameters(binding), *self._query_parameters(binding)],
            "responses": {
                "200": {"description": "Done.", "content": {media: {"schema": self._message(method.output_type)}}},
                "default": {
                    "description": "Refused or failed.",
                    "content": {"application/json": {"schema": {"$ref": "#/components/schemas/Error"}}},
                },
            },
        }
        if binding.body:
            whole = binding.body == ALL_FIELDS
            schema = self._message(method.input_type) if whole else self._field(field_of(method, binding.body))
            operation["requestBody"] = {"required": True, "content": {"application/json": {"schema": schema}}}
        return operation

    def _path_parameters(self, binding: Binding) -> list[Json]:
        return [self._parameter(field_of(binding.method, name), name, place="path") for name in binding.template.fields]

    def _query_parameters(self, binding: Binding) -> list[Json]:
        if binding.body == ALL_FIELDS:
            return []
        taken = {*binding.template.fields, binding.body}
        return [
            self._parameter(field, field.name, place="query")
            for field in binding.method.input_type.fields
            if field.name not in taken and (field.message_type is None or field.message_type.full_name in _WELL_KNOWN)
        ]

    def _parameter(self, field: FieldDescriptor, name: str, *, place: str) -> Json:
        return {
            "name": name,
            "in": place,
            "required": place == "path",
            "description": self._comments.get(field.full_name, ""),
            "schema": self._field(field),
        }

    def _message(self, descriptor: Descriptor) -> Json:
        if descriptor.full_name in _WELL_KNOWN:
            return dict(_WELL_KNOWN[descriptor.full_name])
        name = descriptor.full_name.removeprefix("tollkeeper.")
        if name not in self._schemas:
            schema: Json = {"type": "object", "description": self._comments.get(descriptor.full_name, "")}
            self._schemas[name] = schema  # before its fields: messages may hold themselves
            schema["properties"] = {field.name: self._described(field) for field in descriptor.fields}
        return {"$ref": f"#/components/schemas/{name}"}

    def _described(self, field: FieldDescriptor) -> Json:
        schema = self._field(field)
        comment = self._comments.get(field.full_name, "")
        return {**schema, "description": comment} if comment else schema

    def _field(self, field: FieldDescriptor) -> Json:
        inner = field.message_type
        if inner is not None and inner.GetOptions().map_entry:
            return {"type": "object", "additionalProperties": self._one(inner.fields_by_name["value"])}
        one = self._one(field)
        return {"type": "array", "items": one} if field.is_repeated else one

    def _one(self, field: FieldDescriptor) -> Json:
        if field.message_type is not None:
            return self._message(field.message_type)
        if field.enum_type is not None:
            return self._enum(field.enum_type)
        if field.type == FieldDescriptor.TYPE_BYTES:
            return {"type": "string", "contentEncoding": "base64"}
        return dict(_SCALARS.get(field.cpp_type, {"type": "string"}))

    def _enum(self, descriptor: EnumDescriptor) -> Json:
        name = descriptor.full_name.removeprefix("tollkeeper.")
        self._schemas.setdefault(
            name,
            {
                "type": "string",
                "description": self._comments.get(descriptor.full_name, ""),
                "enum": [value.name for value in descriptor.values],
            },
        )
        return {"$ref": f"#/components/schemas/{name}"}
