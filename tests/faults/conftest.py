"""What the fault tests share."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from collections.abc import Callable


@pytest.fixture
def report(request: pytest.FixtureRequest) -> Callable[[str], None]:
    """Give a way to put a line of figures into the run's output, whether the test passes or not."""
    writer = request.config.get_terminal_writer()

    def line(text: str) -> None:
        writer.line()
        writer.line(f"  {text}")

    return line
