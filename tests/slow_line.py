"""A TCP line to a port that is slow and long: so many bytes a second, so many seconds there and back."""

from __future__ import annotations

import contextlib
import queue
import socket
import threading
import time

_AT_ONCE, _BUFFER_BYTES = 4096, 32 * 1024
"""What a router holds for a link; more waits at the sender."""


class SlowLine:
    """Between this machine and `port`; `port` of it is the near end."""

    def __init__(self, target: int, bytes_per_s: float, round_trip_s: float) -> None:
        self._target, self._rate, self._delay_s = target, bytes_per_s, round_trip_s / 2
        self._free = {"up": 0.0, "down": 0.0}
        self._lock, self._silences = threading.Lock(), 0
        self._door = socket.create_server(("127.0.0.1", 0))
        self.port = int(self._door.getsockname()[1])
        threading.Thread(target=self._accept, daemon=True).start()

    def silence(self) -> None:
        """Nobody hears any more from whom he is connected to, nor that he is gone; who comes anew is served."""
        self._silences += 1

    def close(self) -> None:
        with contextlib.suppress(OSError):
            self._door.shutdown(socket.SHUT_RDWR)
        self._door.close()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                near, _ = self._door.accept()
                far = socket.create_connection(("127.0.0.1", self._target))
                for one in (near, far):
                    one.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, _BUFFER_BYTES)
                    one.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                self._carry(near, far, "up")
                self._carry(far, near, "down")

    def _carry(self, here: socket.socket, there: socket.socket, lane: str) -> None:
        way: queue.Queue[tuple[float, bytes]] = queue.Queue(int(_BUFFER_BYTES + self._rate * self._delay_s) // _AT_ONCE)
        threading.Thread(target=self._take, args=(here, way, lane), daemon=True).start()
        threading.Thread(target=self._give, args=(there, way), daemon=True).start()

    def _take(self, here: socket.socket, way: queue.Queue[tuple[float, bytes]], lane: str) -> None:
        with contextlib.suppress(OSError):
            while data := here.recv(_AT_ONCE):
                with self._lock:  # all who are connected share it
                    self._free[lane] = max(self._free[lane], time.monotonic()) + len(data) / self._rate
                    due = self._free[lane] + self._delay_s
                way.put((due, data))
        way.put((0.0, b""))

    def _give(self, there: socket.socket, way: queue.Queue[tuple[float, bytes]]) -> None:
        silences = self._silences
        with contextlib.suppress(OSError), there:
            while (due := way.get())[1]:
                time.sleep(max(0.0, due[0] - time.monotonic()))
                if silences == self._silences:
                    there.sendall(due[1])
            there.shutdown(socket.SHUT_RDWR)
