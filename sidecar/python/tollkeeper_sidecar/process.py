"""Runs the control plane of a process whose data plane serves already."""

from __future__ import annotations

import asyncio
import os
import threading
from typing import TYPE_CHECKING

from tollkeeper_sidecar import control, logs

if TYPE_CHECKING:
    from tollkeeper_sidecar.config import Settings
    from tollkeeper_sidecar.plane import DataPlane


def run(plane: DataPlane, settings: Settings) -> str:
    """Carry the data plane's commands until the process is told to stop; return what went wrong, empty for nothing."""
    try:
        if asyncio.run(_control(plane, settings)):
            return ""
    except asyncio.CancelledError:
        return "stopped at once: it was told a second time while it gave back what it held"
    except OSError as error:
        return f"can't go on:\n{str(error) or type(error).__name__}"
    return f"stopped before everything was given back and shipped: that took longer than {settings.drain_s} s"


async def _control(plane: DataPlane, settings: Settings) -> bool:
    logs.configure(settings.log_level)
    logs.logger(__name__).info("data plane serves", addresses=plane.addresses())
    if settings.sidecar_nice:
        # Linux keeps niceness per thread: this lowers the control plane alone, since the data plane's threads exist
        # already and keep theirs. Where cores are shared, a busy control plane then can't delay a check.
        os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), settings.sidecar_nice)
    stopping = asyncio.Event()
    control.stop_on_signals(stopping)
    return await control.run(plane, settings, stopping=stopping)
