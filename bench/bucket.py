"""``headstart predict`` over a bucket, killed once: is every key answered once, and how many pictures a second?

    python bench/bucket.py --pictures 500       # about a minute on two cores
    python bench/bucket.py                      # 20,000

The bucket is one of moto's server on this machine, which keeps everything in its memory and shares the cores. It is
filled with generated JPEGs of 160×120 pixels. ``headstart predict s3://… --output s3://…`` with tf_efficientnet_lite0
(random weights) is killed by SIGKILL when a third of the parts are there, and started again. Beside it stands the same
command over the same files in a folder, into one .csv, on the same cores. Prints pictures per second of reading alone (32
at once), of the second run and of the folder, and the most memory that a process took. Fails if a key has no answer, two,
or another one than its file.
"""

from __future__ import annotations

import argparse
import csv
import io
import os
import resource
import signal
import socket
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
from PIL import Image
from predict import package

from headstart.data.in_place import Place

KEYS = {"AWS_ACCESS_KEY_ID": "moto", "AWS_SECRET_ACCESS_KEY": "moto", "AWS_DEFAULT_REGION": "us-east-1"}
HEADSTART = Path(sys.executable).parent / "headstart"


def generate(folder: Path, count: int) -> None:
    folder.mkdir()
    for n in range(count):
        coarse = np.random.default_rng(n).integers(0, 256, (4, 5, 3), np.uint8)
        Image.fromarray(coarse).resize((160, 120), Image.Resampling.BICUBIC).save(folder / f"{n:06}.jpg", quality=90)


def serving() -> subprocess.Popen[bytes]:
    """moto's server, of which the address is put into the environment."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    os.environ |= KEYS | {"AWS_ENDPOINT_URL": f"http://127.0.0.1:{port}"}
    command = [Path(sys.executable).parent / "moto_server", "-H", "127.0.0.1", "-p", str(port)]
    server = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    while True:
        assert server.poll() is None
        try:
            socket.create_connection(("127.0.0.1", port), timeout=1).close()
            return server
        except OSError:
            time.sleep(0.1)


def fill(folder: Path) -> None:
    import s3fs

    system = s3fs.S3FileSystem()
    for bucket in ("pictures", "answers"):
        system.mkdir(bucket)
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda file: system.pipe_file(f"pictures/{file.name}", file.read_bytes()), sorted(folder.iterdir())))


def answered() -> list[dict[str, str]]:
    place = Place("s3://answers")
    return [row for name in place.names() for row in csv.DictReader(io.StringIO(place.read(name).decode(), newline=""))]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--pictures", type=int, default=20_000)
    count = parser.parse_args().pictures
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        generate(folder / "pictures", count)
        package(folder / "model")
        server = serving()
        try:
            fill(folder / "pictures")
            measure(folder, count)
        finally:
            server.kill()
            server.wait()


def measure(folder: Path, count: int) -> None:
    start = time.perf_counter()
    place = Place("s3://pictures")
    with ThreadPoolExecutor(32) as pool:
        list(pool.map(place.read, place.files()))
    print(f"reading alone: {count / (time.perf_counter() - start):.0f} pictures/s")

    rows = min(1000, count // 10)
    program = f"from headstart.inference import parts; parts.ROWS = {rows}; from headstart import cli; cli.main()"
    command = [sys.executable, "-c", program, "predict", "s3://pictures", "--model", "model", "--output", "s3://answers"]
    first = subprocess.Popen(command, cwd=folder, stderr=subprocess.DEVNULL, start_new_session=True)
    while len(Place("s3://answers").names()) < count // rows // 3:
        assert first.poll() is None, "it ended before it was to be killed"
        time.sleep(0.2)
    os.killpg(first.pid, signal.SIGKILL)
    first.wait()
    before = len(answered())
    start = time.perf_counter()
    subprocess.run(command, cwd=folder, check=True)
    took = time.perf_counter() - start
    memory = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss >> 10
    print(
        f"bucket to bucket: {(count - before) / took:.0f} pictures/s for the {count - before} after the kill; {memory} MB"
    )

    start = time.perf_counter()
    subprocess.run([HEADSTART, "predict", "pictures", "--model", "model", "--output", "a.csv"], cwd=folder, check=True)
    print(f"folder to file: {count / (time.perf_counter() - start):.0f} pictures/s")

    found = answered()
    labels = {row["image"].rpartition("/")[2]: row["label"] for row in found}
    with (folder / "a.csv").open(newline="") as stream:
        expected = {row["image"].rpartition("/")[2]: row["label"] for row in csv.DictReader(stream)}
    assert len(found) == len(labels) == count, f"{len(found)} answers about {len(labels)} of {count} keys"
    other = sum(labels[name] != label for name, label in expected.items())
    print(f"every key is answered once; {other} of {count} labels differ from those of the files")
    assert other <= count // 1000


if __name__ == "__main__":
    main()
