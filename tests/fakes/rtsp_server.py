"""An RTSP camera for tests, run by Debian's Python: rtsp_server.py PORT WIDTH HEIGHT FPS KEYFRAME_EVERY [private].

rtsp://127.0.0.1:PORT/cam is H.264; a private one wants the user "farmer" and the password "s3cret". Two rows of 24 bars
at the top of a frame tell its number and the monotonic clock in ms, both modulo 2^24, when it was drawn. What it needs
stands in tests/rtsp_kit.py.
"""

import sys
import time

import gi

gi.require_version("Gst", "1.0")
gi.require_version("GstRtspServer", "1.0")
from gi.repository import GLib, Gst, GstRtspServer  # noqa: E402

BITS, ROWS = 24, 32
BLACK, WHITE = 16, 235
PIPELINE = (
    "( appsrc name=source is-live=true format=time block=false ! x264enc tune=zerolatency speed-preset=ultrafast"
    " threads=1 bitrate=4000 key-int-max={every} ! rtph264pay name=pay0 pt=96 config-interval=-1 )"
)


class Film:
    """Draws the frames of one viewer's stream, in I420."""

    def __init__(self, width, height, fps):
        self.size, self.fps, self.number = (width, height), fps, 0

    def begin(self, source):
        self.source, self.begun = source, time.monotonic()
        words = "video/x-raw,format=I420,width={},height={},framerate={}/1".format(*self.size, self.fps)
        source.set_property("caps", Gst.Caps.from_string(words))
        GLib.timeout_add(1000 // self.fps, self._push)

    def _push(self):
        width, height = self.size
        self.number += 1
        now = time.monotonic()
        bars = b"".join(self._row(value) * ROWS for value in (self.number, int(1000 * now)))
        dot = 16 * (self.number % (width // 16))
        luma = bars + b"".join(self._line(row, dot) for row in range(height - 2 * ROWS))
        buffer = Gst.Buffer.new_wrapped(
            luma + bytes([100]) * (width * height // 4) + bytes([120]) * (width * height // 4)
        )
        buffer.pts = int((now - self.begun) * Gst.SECOND)
        buffer.duration = Gst.SECOND // self.fps
        return self.source.emit("push-buffer", buffer) == Gst.FlowReturn.OK

    def _line(self, row, dot):
        line = bytes([60 + row // 4 % 120]) * self.size[0]
        return line[:dot] + bytes([200]) * 16 + line[dot + 16 :] if row < 16 else line

    def _row(self, value):
        wide = self.size[0] // BITS // 2 * 2
        bars = b"".join(bytes([WHITE if value >> bit & 1 else BLACK]) * wide for bit in range(BITS))
        return bars + bytes([BLACK]) * (self.size[0] - len(bars))


def main(port, width, height, fps, every, private):
    Gst.init(None)

    def configure(_factory, media):
        media.set_reusable(False)
        Film(width, height, fps).begin(media.get_element().get_by_name_recurse_up("source"))

    factory = GstRtspServer.RTSPMediaFactory()
    factory.set_launch(PIPELINE.format(every=every))
    factory.set_shared(True)
    factory.connect("media-configure", configure)
    server = GstRtspServer.RTSPServer()
    server.set_address("127.0.0.1")
    server.set_service(str(port))
    server.get_mount_points().add_factory("/cam", factory)
    if private:
        _lock(server, factory)
    server.attach(None)
    print("ready", flush=True)
    GLib.MainLoop().run()


def _lock(server, factory):
    auth = GstRtspServer.RTSPAuth()
    token = GstRtspServer.RTSPToken()
    token.set_string("media.factory.role", "farmer")
    auth.add_basic(GstRtspServer.RTSPAuth.make_basic("farmer", "s3cret"), token)
    server.set_auth(auth)
    rights = "farmer,media.factory.access=(boolean)true,media.factory.construct=(boolean)true"
    factory.add_role_from_structure(Gst.Structure.from_string(rights)[0])


if __name__ == "__main__":
    main(*map(int, sys.argv[1:6]), sys.argv[6:] == ["private"])
