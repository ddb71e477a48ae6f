"""A real sshd with a key that may only flash, alone on a network whose speed is set."""

from __future__ import annotations

import contextlib
import itertools
import os
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

from device_kit import Device
from needs import absent, needed

from agrikd.flash import SSH, Options


class Sshd:
    """An OpenSSH server for one device's folder; `config` is for ssh -F, host `field`."""

    def __init__(self, folder: Path, device: Device, address: str, prefix: tuple[str, ...] = ()) -> None:
        self.folder, self.address, self.port = folder, address, _free_port()
        for name in ("host", "user"):
            words = [needed("ssh-keygen", "openssh-client"), "-q", "-t", "ed25519", "-N", "", "-f", folder / name]
            subprocess.run(words, check=True)
        command = " ".join(device.command("serve", "--stdio"))
        forced = f'command="PYTHONPATH={os.pathsep.join(sys.path)} OMP_NUM_THREADS=1 {command}",restrict'
        (folder / "authorized_keys").write_text(f"{forced} {(folder / 'user.pub').read_text()}")
        (folder / "sshd_config").write_text(
            f"Port {self.port}\nListenAddress {address}\nHostKey {folder}/host\nPidFile none\nUsePAM no\n"
            f"AuthorizedKeysFile {folder}/authorized_keys\nStrictModes no\nPasswordAuthentication no\n"
            "PermitRootLogin yes\nMaxStartups 100\nSubsystem sftp internal-sftp\n"
        )
        Path("/run/sshd").mkdir(exist_ok=True)
        words = [*prefix, needed("sshd", "openssh-server"), "-D", "-e", "-f", str(folder / "sshd_config")]
        self._log = (folder / "sshd.log").open("wb")
        self._process = subprocess.Popen(words, stderr=self._log)
        self.through(address, self.port)
        self._wait()

    def through(self, address: str, port: int) -> None:
        """What ssh connects to from now on."""
        (self.folder / "config").write_text(
            f"Host field\n  HostName {address}\n  Port {port}\n  User {os.environ.get('USER', 'root')}\n"
            f"  IdentityFile {self.folder}/user\n  IdentitiesOnly yes\n  UserKnownHostsFile {self.folder}/known\n"
            "  StrictHostKeyChecking accept-new\n  HostKeyAlias field\n  LogLevel ERROR\n"
        )

    @property
    def options(self) -> Options:
        return Options(ssh=(*SSH, "-F", str(self.folder / "config")), silence_s=8, patience_s=120)

    def ssh(self, *words: str) -> subprocess.CompletedProcess[bytes]:
        whole = ["ssh", "-F", str(self.folder / "config"), *words]
        return subprocess.run(whole, capture_output=True, timeout=60, check=False, stdin=subprocess.DEVNULL)

    def stop(self) -> None:
        self._process.kill()
        self._process.wait()
        self._log.close()

    def _wait(self) -> None:
        end = time.monotonic() + 20
        while b"Server listening" not in (self.folder / "sshd.log").read_bytes():
            assert self._process.poll() is None and time.monotonic() < end, (self.folder / "sshd.log").read_text()
            time.sleep(0.05)


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


class Proxy:
    """TCP to (address, port) that ends each connection after `cut` bytes to the device, or goes silent after them."""

    def __init__(self, address: str, port: int, cut: int, *, stall: bool = False) -> None:
        self._target, self._cut, self._stall = (address, port), cut, stall
        self.connections = self.carried = 0
        self._door = socket.create_server(("127.0.0.1", 0))
        self.port = self._door.getsockname()[1]
        threading.Thread(target=self._accept, daemon=True).start()

    def close(self) -> None:
        self._door.close()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                near, _ = self._door.accept()
                self.connections += 1
                far = socket.create_connection(self._target)
                threading.Thread(target=self._up, args=(near, far), daemon=True).start()
                threading.Thread(target=self._down, args=(far, near), daemon=True).start()

    def _up(self, near: socket.socket, far: socket.socket) -> None:
        left = self._cut
        with contextlib.suppress(OSError):
            while left and (data := near.recv(min(left, 4096))):
                far.sendall(data)
                left -= len(data)
                self.carried += len(data)
            if self._stall and not left:
                return
            for one in (near, far):
                one.shutdown(socket.SHUT_RDWR)

    def _down(self, far: socket.socket, near: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while data := far.recv(65536):
                near.sendall(data)
            near.shutdown(socket.SHUT_RDWR)


_numbers = itertools.count(os.getpid() % 200 * 10)


class Network:
    """A network namespace with one link to here, `rate` from here to there; needs root."""

    def __init__(self) -> None:
        if os.geteuid() != 0:
            absent("only root makes network namespaces")
        number = next(_numbers) % 16000
        self._ip, self.name, self.link = needed("ip", "iproute2"), f"akd{number}", f"akl{number}"
        subnet = f"10.{200 + number // 250 % 50}.{number % 250}"
        self.address, here = f"{subnet}.2", f"{subnet}.1"
        self("netns", "add", self.name)
        self("link", "add", self.link, "type", "veth", "peer", "name", "eth0", "netns", self.name)
        self("addr", "add", f"{here}/30", "dev", self.link)
        self("link", "set", self.link, "up")
        self("-n", self.name, "addr", "add", f"{self.address}/30", "dev", "eth0")
        self("-n", self.name, "link", "set", "eth0", "up")
        self("-n", self.name, "link", "set", "lo", "up")
        self.inside = (self._ip, "netns", "exec", self.name)

    def __call__(self, *words: str) -> None:
        subprocess.run([self._ip, *words], check=True, capture_output=True)

    def rate(self, kbyte_s: float) -> None:
        """What the link carries from here, in thousands of bytes a second."""
        shape = ["rate", f"{8 * kbyte_s:g}kbit", "burst", "3000", "limit", "60000"]
        words = [needed("tc", "iproute2"), "qdisc", "replace", "dev", self.link, "root", "tbf", *shape]
        subprocess.run(words, check=True, capture_output=True)

    def close(self) -> None:
        self("netns", "del", self.name)
