"""Write or check the committed code that is generated from the proto files: `generated.py write|check`."""

from __future__ import annotations

import filecmp
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from google.api import annotations_pb2

ROOT = Path(__file__).resolve().parent.parent
PYTHON_TREE = ROOT / "proto" / "python" / "tollkeeper"
RUST_TREE = ROOT / "sidecar" / "crates" / "quota-proto" / "src" / "gen"


def generate(out: Path) -> tuple[Path, Path]:
    """Generate both trees below `out` and return (Python tree, Rust tree)."""
    python_out, rust_out = out / "python", out / "rust"
    python_out.mkdir()
    google_root = Path(annotations_pb2.__file__).resolve().parents[2]
    subprocess.run([sys.executable, ROOT / "proto" / "generate.py", python_out], check=True)
    subprocess.run(
        ["cargo", "run", "--quiet", "--locked", "--package", "proto-gen", "--", ROOT / "proto", google_root, rust_out],
        check=True,
        cwd=ROOT / "sidecar",
    )
    return python_out / "tollkeeper", rust_out


def differences(committed: Path, fresh: Path) -> list[str]:
    """Name the files that differ between two trees, caches left out."""
    names = {
        path.relative_to(tree)
        for tree in (committed, fresh)
        for path in tree.rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }
    return [
        f"{committed.relative_to(ROOT)}/{name}"
        for name in sorted(names)
        if not (committed / name).is_file()
        or not (fresh / name).is_file()
        or not filecmp.cmp(committed / name, fresh / name, shallow=False)
    ]


def main(verb: str) -> int:
    """Carry out `write` or `check`; return the exit code."""
    with tempfile.TemporaryDirectory() as scratch:
        python_fresh, rust_fresh = generate(Path(scratch))
        if verb == "write":
            for committed, fresh in ((PYTHON_TREE, python_fresh), (RUST_TREE, rust_fresh)):
                shutil.rmtree(committed, ignore_errors=True)
                shutil.copytree(fresh, committed)
            return 0
        stale = differences(PYTHON_TREE, python_fresh) + differences(RUST_TREE, rust_fresh)
    for name in stale:
        print(f"stale: {name}")
    print("generated code is stale: run `make gen`" if stale else "generated code is fresh")
    return 1 if stale else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
