"""The process that ends an installation: python -m agrikd.device.advance FOLDER LIMITS…, started by the agent."""

from __future__ import annotations

import contextlib
import sys
from pathlib import Path

from agrikd import console, files
from agrikd.device import installer
from agrikd.device.child import Limits
from agrikd.device.store import BusyError, Store
from agrikd.errors import AgriKDError


def main(folder: Path, limits: Limits) -> None:
    """Bring what is pending to its end, unless another process is at it; what the disk refuses is tried again."""
    try:
        with files.storage_errors(folder), contextlib.suppress(BusyError), (store := Store(folder)).locked():
            installer.recover(store)
            installer.advance(store, limits)
    except AgriKDError as error:
        console.complain(str(error))
        sys.exit(error.exit_code)


if __name__ == "__main__":
    main(Path(sys.argv[1]), Limits(*map(float, sys.argv[2:])))
