"""Pictures decoded in processes of their own, which can be stopped: a picture that would take the memory of the machine, or
minutes of its time, or that crashes a decoder, is only a picture that cannot be used.

A process answers one request after the other on its standard input and output: the length of a JSON object, the object, and
the bytes whose number it gives. Nothing is unpickled, so that a decoder that was taken over by a picture cannot take over
who reads its answers.
"""

from __future__ import annotations

import json
import os
import queue
import signal
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import IO, Any

import numpy as np

from headstart.data.decode import (
    MAX_PIPED,
    SIXTEEN_BITS,
    Array,
    Formats,
    Unusable,
    decode,
    encode,
    fingerprint,
    quiet,
    stored_size,
    within_memory,
)
from headstart.data.file_properties import FileProperties

BYTES_PER_PIXEL = 32  # may be taken; the most that was found is 27, for lossless WebP
BASE_BYTES = 256 << 20  # of a process that decodes nothing, with room for files that Pillow reads whole
SECONDS, SECONDS_PER_HEADER = 60.0, 10.0  # of processor time for one picture, and for its header
MEGAPIXELS_PER_PROCESS = 25.0  # in work at once, on average
PROGRAM = "import sys; sys.path.insert(0, sys.argv[1]); from headstart.data.decoders import main; main()"
LENGTH = struct.Struct("<I")


@dataclass(frozen=True)
class Rules:
    """What ``decode`` is called with, for all pictures alike."""

    short_side: int | None = None
    max_megapixels: float = 100.0
    formats: Formats = "all"
    white_level: int = SIXTEEN_BITS


@dataclass(frozen=True)
class Stored:
    """A picture as prepare stores it.

    Attributes:
        height, width: as stored.
        original_height, original_width: of the file, upright.
        phash, thumbnail: as ``headstart.data.decode.fingerprint`` returns them.
        notes: the conversions that were needed.
        file: what its file says of itself.
    """

    height: int
    width: int
    original_height: int
    original_width: int
    phash: int
    thumbnail: bytes
    notes: tuple[str, ...]
    file: FileProperties = field(default=FileProperties(), kw_only=True)


@dataclass
class Allowance:
    """Seconds of processor time that are left for one picture, or for all pictures of one request."""

    seconds: float = SECONDS


class Decoders:
    """At most ``count`` processes that decode pictures, started when they are needed. Safe to use from several threads.

    Large pictures wait for each other: those in work hold ``MEGAPIXELS_PER_PROCESS`` on average at most, or are one alone.
    """

    def __init__(self, count: int, rules: Rules, largest: float | None = None, nice: int = 0) -> None:
        """
        Args:
            largest: megapixels of the largest picture that will come; by default the largest allowed.
            nice: by how much the processes give way to others (nice(2)).
        """
        self.rules = rules
        self._largest = largest or rules.max_megapixels
        self._processes = [_Process(self._largest, nice) for _ in range(count)]
        self._idle: queue.LifoQueue[_Process] = queue.LifoQueue()
        for process in self._processes:
            self._idle.put(process)
        self._room = max(self._largest, MEGAPIXELS_PER_PROCESS * count)
        self._changed = threading.Condition()

    def close(self) -> None:
        for process in self._processes:
            process.close()

    def start_one(self) -> None:
        """Start a process while there is something else to wait for."""
        with self._borrowed() as process:
            process.start()

    def size(self, source: bytes | Path, allowance: Allowance | None = None) -> tuple[int, int]:
        """Width and height as ``stored_size`` returns them.

        Raises:
            Unusable: as there, or the process that read the header died.
        """
        request = {"do": "size", "max_megapixels": self.rules.max_megapixels, "formats": self.rules.formats}
        with self._borrowed() as process:
            reply, _ = process.ask(request, source, allowance or Allowance(SECONDS_PER_HEADER))
        return reply["width"], reply["height"]

    def decode(self, source: bytes | Path, size: tuple[int, int], allowance: Allowance | None = None) -> Array:
        """The pixels of a picture of which ``size`` has been read, (height, width, 3) uint8.

        Raises:
            Unusable: as ``decode`` does, or the process died: it took too much memory, or more than the allowance.
        """
        request = {"do": "decode"} | asdict(self.rules)
        with self._room_for(size), self._borrowed() as process:
            reply, data = process.ask(request, source, allowance or Allowance())
        return np.frombuffer(data, np.uint8).reshape(reply["height"], reply["width"], 3)

    def pack(self, source: bytes | Path, size: tuple[int, int], jpeg_quality: int | None) -> tuple[Stored, bytes]:
        """All that prepare stores of a picture, and its pixels: raw RGB, or a JPEG if there is a quality."""
        request = {"do": "pack", "jpeg_quality": jpeg_quality} | asdict(self.rules)
        with self._room_for(size), self._borrowed() as process:
            reply, data = process.ask(request, source, Allowance())
        of_thumbnail = reply["of_thumbnail"]
        stored = Stored(
            reply["height"], reply["width"], reply["original_height"], reply["original_width"], reply["phash"],
            bytes(data[:of_thumbnail]), tuple(reply["notes"]), file=FileProperties(**reply["file"]),
        )  # fmt: skip
        return stored, bytes(data[of_thumbnail:])

    @contextmanager
    def _borrowed(self) -> Iterator[_Process]:
        process = self._idle.get()
        try:
            yield process
        finally:
            self._idle.put(process)

    @contextmanager
    def _room_for(self, size: tuple[int, int]) -> Iterator[None]:
        megapixels = min(size[0] * size[1] / 1e6, self._largest)
        with self._changed:
            self._changed.wait_for(lambda: megapixels <= self._room)
            self._room -= megapixels
        try:
            yield
        finally:
            with self._changed:
                self._room += megapixels
                self._changed.notify_all()


class _Process:
    """One process; it is started again after it has died. Not for several threads at once."""

    def __init__(self, largest: float, nice: int) -> None:
        self._max_bytes = BASE_BYTES + int(largest * 1e6 * BYTES_PER_PIXEL)
        self._nice = nice
        self._running: subprocess.Popen[bytes] | None = None

    def start(self) -> subprocess.Popen[bytes]:
        if self._running is None:
            root = Path(__file__).parents[2]
            self._running = subprocess.Popen(
                [sys.executable, "-P", "-c", PROGRAM, str(root), str(self._max_bytes), str(self._nice)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,  # C libraries write what they think of damaged files
                env=os.environ | {"OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "1"},
                process_group=0,  # Ctrl-C in a terminal is for who asked, who may still want answers
            )
        return self._running

    def ask(self, request: dict[str, Any], source: bytes | Path, allowance: Allowance) -> tuple[dict[str, Any], bytearray]:
        content, path = (source, None) if isinstance(source, bytes) else (b"", os.fsencode(source.absolute()).hex())
        seconds = max(allowance.seconds, 0.001)  # 0 would be no limit
        process = self.start()
        assert process.stdin is not None
        assert process.stdout is not None
        try:
            _send(process.stdin, request | {"path": path, "seconds": seconds}, content)
            reply, data = _receive(process.stdout)
        except (OSError, EOFError):
            allowance.seconds = 0
            raise Unusable(self._death(seconds)) from None
        except BaseException:  # Ctrl-C: the answer, when it comes, would be taken for the next one's
            self.close()
            raise
        allowance.seconds -= reply["seconds"]
        if "unusable" in reply:
            raise Unusable(reply["unusable"])
        return reply, data

    def close(self) -> int:
        """Stop the process and return its status."""
        running, self._running = self._running, None
        if running is None:
            return 0
        running.kill()
        for stream in (running.stdin, running.stdout):
            with suppress(OSError):  # what was not sent yet
                if stream is not None:
                    stream.close()
        return running.wait()

    def _death(self, seconds: float) -> str:
        """Why the process died, as the reason why its picture cannot be used."""
        assert self._running is not None
        self._running.wait()
        status = self.close()
        if os.name == "nt":
            return "its decoder crashed, or the machine was out of memory"
        if status == -signal.SIGPROF:
            return f"decoding it takes more than {seconds:.3g} s of processor time; save it in another format"
        if status == -signal.SIGKILL:
            return "the system stopped its decoding, probably because the machine was out of memory"
        if status < 0:
            return f"its decoder crashed ({signal.Signals(-status).name})"
        raise RuntimeError(f"the process that decodes pictures ended with status {status}")


def rereadable(path: Path) -> Path | bytes:
    """The path, or the content of what can be read only once and only by this process, such as /dev/stdin or a pipe."""
    if path.is_fifo() or path.is_char_device():
        with path.open("rb") as stream:
            return stream.read(MAX_PIPED)
    return path


def _send(stream: IO[bytes], message: dict[str, Any], content: bytes) -> None:
    head = json.dumps(message | {"bytes": len(content)}).encode()
    stream.write(LENGTH.pack(len(head)) + head)
    stream.write(content)
    stream.flush()


def _receive(stream: IO[bytes]) -> tuple[dict[str, Any], bytearray]:
    """
    Raises:
        EOFError: there are no more messages.
    """
    head = json.loads(_exactly(stream, LENGTH.unpack(_exactly(stream, LENGTH.size))[0]))
    return head, _exactly(stream, head["bytes"])


def _exactly(stream: IO[bytes], count: int) -> bytearray:
    data = bytearray(count)
    if stream.readinto(data) < count:  # type: ignore[attr-defined]
        raise EOFError
    return data


def main() -> None:
    """Answer requests until the input ends."""
    _, max_bytes, nice = sys.argv[1:]
    _confine(int(max_bytes), int(nice))
    requests, replies = os.fdopen(os.dup(0), "rb"), os.fdopen(os.dup(1), "wb")
    nothing = os.open(os.devnull, os.O_RDWR)
    os.dup2(nothing, 0)
    os.dup2(nothing, 1)  # what libraries print is no reply
    with quiet():
        while True:
            try:
                request, content = _receive(requests)
            except EOFError:
                return
            _end_after(request["seconds"])
            start = time.process_time()
            try:
                with within_memory():
                    reply, data = _answer(request, content)
            except Unusable as reason:
                reply, data = {"unusable": str(reason)}, b""
            except Exception as error:  # one bad picture must not end the run
                reply, data = {"unusable": f"decoding it failed: {type(error).__name__}: {error}"}, b""
            _end_after(0)
            _send(replies, reply | {"seconds": time.process_time() - start}, data)


def _end_after(seconds: float) -> None:
    """End this process after so much processor time of all its threads; 0: not any more. Windows has no such timer."""
    if hasattr(signal, "setitimer"):
        signal.setitimer(signal.ITIMER_PROF, seconds)


def _confine(max_bytes: int, nice: int) -> None:
    """Limit this process to ``max_bytes`` of memory, and let it write no files; on Windows nothing is limited."""
    if sys.platform == "win32":
        return
    import resource

    with suppress(OSError):  # the first to go when the machine is out of memory
        Path("/proc/self/oom_score_adj").write_text("1000")
    for limit, most in ((resource.RLIMIT_DATA, max_bytes), (resource.RLIMIT_CORE, 0), (resource.RLIMIT_FSIZE, 0)):
        _, hard = resource.getrlimit(limit)
        most = most if hard == resource.RLIM_INFINITY else min(most, hard)
        resource.setrlimit(limit, (most, most))
    os.nice(nice)


def _answer(request: dict[str, Any], content: bytearray) -> tuple[dict[str, Any], bytes]:
    source = bytes(content) if request["path"] is None else Path(os.fsdecode(bytes.fromhex(request["path"])))
    if request["do"] == "size":
        width, height = stored_size(source, request["max_megapixels"], request["formats"])
        return {"width": width, "height": height}, b""
    decoded = decode(source, **{name: request[name] for name in Rules.__dataclass_fields__})
    width, height = decoded.image.size
    reply: dict[str, Any] = {"height": height, "width": width}
    if request["do"] == "decode":
        return reply, decoded.image.tobytes()
    phash, thumbnail = fingerprint(decoded.image)
    original = {"original_height": decoded.height, "original_width": decoded.width, "notes": decoded.notes}
    reply |= original | {"phash": phash, "of_thumbnail": len(thumbnail), "file": asdict(decoded.file)}
    return reply, thumbnail + encode(decoded.image, request["jpeg_quality"])
