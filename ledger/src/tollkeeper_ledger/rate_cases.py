"""`python -m tollkeeper_ledger.rate_cases`: rate worked cases from standard input. Needs no server and no settings."""

from __future__ import annotations

import dataclasses
import json
import sys
from typing import Any

from tollkeeper_ledger.domain.rating.case_fields import CaseError
from tollkeeper_ledger.domain.rating.cases import rate_case


def main() -> int:
    """Read `{"cases": [...]}` and write one JSON object per case; exit 2 with a message where there are none to read.

    A case that can't be rated is written with its `error`, and the others are rated all the same. A number with a point
    is taken as the decimal that is written there, never as a float.
    """
    try:
        cases = json.load(sys.stdin, parse_float=str)["cases"]
    except (ValueError, KeyError, TypeError) as error:
        sys.stderr.write(f"expected a JSON object with a list `cases`: {error}\n")
        return 2
    for case in cases:
        sys.stdout.write(json.dumps(_row(case), ensure_ascii=False) + "\n")
    return 0


def _row(case: object) -> dict[str, Any]:
    if not isinstance(case, dict):
        return {"id": "", "group": "", "error": f"a case must be an object, not {str(case)[:40]!r}; give one"}
    try:
        rated = rate_case(case)
    except CaseError as error:
        return {"id": error.case, "group": str(case.get("group", "")), "error": str(error)}
    return dataclasses.asdict(rated) | {"differences": list(rated.differences)}


if __name__ == "__main__":
    sys.exit(main())
