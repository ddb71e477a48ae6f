"""The process that ends an installation: python -m agrikd.device.advance FOLDER LIMITS…, started by the agent."""

from __future__ import annotations

import contextlib
import sys
from pathlib import Path

from agrikd.device import installer
from agrikd.device.child import Limits
from agrikd.device.store import Store
from agrikd.errors import DeviceError


def main(folder: Path, limits: Limits) -> None:
    """Bring what is pending to its end, unless another process is at it."""
    store = Store(folder)
    with contextlib.suppress(DeviceError), store.locked():
        installer.recover(store)
        installer.advance(store, limits)


if __name__ == "__main__":
    main(Path(sys.argv[1]), Limits(*map(float, sys.argv[2:])))
