"""How long a flash takes beside scp of the same file, in the same run, over the same link."""

from __future__ import annotations

import shutil
import statistics
import subprocess
import time
from pathlib import Path

import numpy as np
import pytest
from device_kit import Device, Pack, contents
from needs import needed
from ssh_kit import Network, Sshd

from agrikd import flash

pytestmark = pytest.mark.bench
TIMES = 3


@pytest.fixture
def twelve(packed: Pack) -> Path:
    ballast = np.random.default_rng(0).integers(0, 256, 12_000_000).astype(np.uint8).tobytes()
    return packed(1, held={**contents(), "ballast.bin": ballast})


def scp_s(sshd: Sshd, file: Path, to: Path) -> float:
    """With a key that may copy; the flashing key may not."""
    begun = time.perf_counter()
    words = [needed("scp", "openssh-client"), "-q", "-F", str(sshd.folder / "config"), str(file), f"field:{to}"]
    subprocess.run(words, check=True)
    return time.perf_counter() - begun


def verified_s(sshd: Sshd, file: Path, device: Device) -> float:
    """Until the device has the whole of it, verified; the building and trying are apart."""
    begun, seen = time.perf_counter(), []

    def report(host: str, what: str, sent: object) -> None:
        if sent is None and not seen:
            seen.append(time.perf_counter() - begun)

    done = flash.flash("field", file, sshd.options, report)
    assert done.good and done.cuts == 0, done
    return seen[0]


def fresh(device: Device, root: bytes) -> None:
    device.stop()
    shutil.rmtree(device.store.folder)
    device.__init__(device.store.folder, root)  # type: ignore[misc]
    device.start()


@pytest.mark.parametrize(("kbyte_s", "most", "plus_s"), [(1000, 1.15, 0.0), (None, 1.0, 2.0)])
def test_beside_scp(
    kbyte_s: float | None, most: float, plus_s: float, device: Device, short: Path, twelve: Path
) -> None:
    root = (device.store.folder / "trust" / "root-1.dsse").read_bytes()
    network = Network() if kbyte_s else None
    if network and kbyte_s:
        network.rate(kbyte_s)
    address, prefix = (network.address, network.inside) if network else ("127.0.0.1", ())
    flashing, copying = short / "flash", short / "copy"
    flashing.mkdir()
    copying.mkdir()
    device.start()
    forced, free = Sshd(flashing, device, address, prefix), Sshd(copying, device, address, prefix)
    (copying / "authorized_keys").write_text((copying / "user.pub").read_text())
    try:
        scp, ours = [], []
        for _ in range(TIMES):
            scp.append(scp_s(free, twelve, short / "got.akb"))
            fresh(device, root)
            ours.append(verified_s(forced, twelve, device))
    finally:
        forced.stop()
        free.stop()
        if network:
            network.close()
    ratio = statistics.median(ours) / statistics.median(scp)
    where = f"{kbyte_s} kB/s" if kbyte_s else "loopback"
    print(f"\n12 MB at {where}: scp {sorted(scp)} s, verified {sorted(ours)} s, ratio of medians {ratio:.3f}")
    assert statistics.median(ours) <= most * statistics.median(scp) + plus_s
