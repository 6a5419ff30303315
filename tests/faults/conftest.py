"""What the fault tests share."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from collections.abc import Callable


@pytest.fixture
def report(capsys: pytest.CaptureFixture[str]) -> Callable[[str], None]:
    """Give a way to put a line of figures into the run's output, whether the test passes or not."""

    def line(text: str) -> None:
        with capsys.disabled():
            print(f"\n  {text}")  # noqa: T201 - the run's output is where figures belong

    return line
