"""Generate the committed Python code of the proto packages: `python proto/generate.py [OUT_DIR]`.

Writes messages, stubs, their type files and the services' comments below OUT_DIR (default `proto/python`), replacing
what is there.
"""

from __future__ import annotations

import json
import shutil
import sys
import tempfile
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING

from google.api import annotations_pb2
from google.protobuf.descriptor_pb2 import DescriptorProto, FileDescriptorProto, FileDescriptorSet
from grpc_tools import protoc

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

PROTO_ROOT = Path(__file__).resolve().parent
PUBLIC = ("tollkeeper/quota/v1", "tollkeeper/ledger/v1", "tollkeeper/bridge/v1")
GOOGLE_ROOT = Path(annotations_pb2.__file__).resolve().parents[2]
"""Root of the package's `google/api/*.proto`."""
COMMENTS = "tollkeeper/ledger/v1/comments.json"
"""Comments of services, messages, fields and enums by full name, for documents that are made of descriptors."""


def generate(out: Path) -> None:
    """Replace the generated tree below `out`. Raises RuntimeError where protoc refuses a file."""
    tree = out / "tollkeeper"
    shutil.rmtree(tree, ignore_errors=True)
    found = (path for room in PUBLIC for path in (PROTO_ROOT / room).glob("*.proto"))
    sources = sorted(str(path.relative_to(PROTO_ROOT)) for path in found)
    status = protoc.main(
        [
            "protoc",
            f"-I{PROTO_ROOT}",
            f"-I{files('grpc_tools') / '_proto'}",
            f"-I{GOOGLE_ROOT}",
            f"--python_out={out}",
            f"--grpc_python_out={out}",
            f"--mypy_out=quiet:{out}",
            f"--mypy_grpc_out=quiet:{out}",
            *sources,
        ]
    )
    if status != 0:
        raise RuntimeError(f"protoc ended with {status}")
    for source in sources:
        if "\nservice " not in (PROTO_ROOT / source).read_text():
            for suffix in ("_pb2_grpc.py", "_pb2_grpc.pyi"):
                (out / source.replace(".proto", suffix)).unlink()
    comments = comments_of([source for source in sources if not source.startswith("tollkeeper/bridge/")])
    (out / COMMENTS).write_text(json.dumps(comments, indent=0, sort_keys=True, ensure_ascii=False) + "\n")


def comments_of(sources: Sequence[str]) -> dict[str, str]:
    """Read the comments of proto files, by full name. Raises RuntimeError where protoc refuses one."""
    with tempfile.TemporaryDirectory() as scratch:
        target = Path(scratch) / "set"
        options = ["--include_source_info", f"--descriptor_set_out={target}"]
        roots = [f"-I{root}" for root in (PROTO_ROOT, files("grpc_tools") / "_proto", GOOGLE_ROOT)]
        status = protoc.main(["protoc", *roots, *options, *sources])
        if status != 0:
            raise RuntimeError(f"protoc ended with {status}")
        described = FileDescriptorSet.FromString(target.read_bytes())
    return {name: comment for file in described.file for name, comment in _comments(file)}


def _comments(file: FileDescriptorProto) -> Iterator[tuple[str, str]]:
    """Give full names and comments. A location's path is numbers of fields and places, from the file down."""
    for location in file.source_code_info.location:
        comment = " ".join(location.leading_comments.split())
        node: FileDescriptorProto | DescriptorProto = file
        names = [file.package]
        for number, place in zip(location.path[::2], location.path[1::2], strict=False):
            field = node.DESCRIPTOR.fields_by_number[number]
            if not field.is_repeated or field.message_type is None:
                break
            node = getattr(node, field.name)[place]
            names.append(getattr(node, "name", ""))
        if comment and len(location.path) % 2 == 0 and all(names):
            yield ".".join(names), comment


if __name__ == "__main__":
    generate(Path(sys.argv[1]) if len(sys.argv) > 1 else PROTO_ROOT / "python")
