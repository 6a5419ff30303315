"""Generate the committed Python code of the proto packages: `python proto/generate.py [OUT_DIR]`.

Writes messages, stubs and their type files below OUT_DIR (default `proto/python`), replacing what is there.
"""

from __future__ import annotations

import shutil
import sys
from importlib.resources import files
from pathlib import Path

from grpc_tools import protoc

PROTO_ROOT = Path(__file__).resolve().parent
PUBLIC = ("tollkeeper/quota/v1", "tollkeeper/ledger/v1", "tollkeeper/bridge/v1")


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


if __name__ == "__main__":
    generate(Path(sys.argv[1]) if len(sys.argv) > 1 else PROTO_ROOT / "python")
