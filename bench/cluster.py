"""features on a Ray cluster of two nodes of one core each, against this machine with two threads.

    python bench/cluster.py              # 20,000 pictures: about half an hour on two quiet cores, and 5 GB of disk
    python bench/cluster.py --pictures 1000 --store 80

Needs the extra: ``pip install -e '.[ray]'`` or ``make test``, once. Generated 400×533 JPEGs are packed once; then their
features are made with tf_efficientnet_lite0 (random weights, ``features.engine: auto``), each time in a process of its own:

- ``local``: two threads.
- ``cluster``: two nodes on this machine (``ray.cluster_utils.Cluster``), each with one core and an object store of its own
  of ``--store`` MB. Connecting and comparing versions is on the clock, starting the nodes is not.
- ``broken``: the same, but a worker is killed after a quarter of the batches, and one whole node after half of them.

Prints seconds and, as ratios, both by local. Then for each: MB that passed through, the most that the object stores held at
once (``stored``), what was spilled to the disk, the peak of the driver's memory, and how far the features are from local
ones, in the same order; it fails if that is more than an engine may be.
"""

from __future__ import annotations

import argparse
import os
import threading
import time
from pathlib import Path
from typing import Any

from _sides import measured, report
from tutorial_loop import generate

NETWORK = "tf_efficientnet_lite0"
SIDES = ("local", "cluster", "broken")
TOLERANCE = 1e-4  # as headstart.engines.select has it
LOOK_EVERY_S = 0.2


def fill(asked: argparse.Namespace) -> None:
    from headstart.base.sections import Data, Prepare, Split
    from headstart.base.threads import cores
    from headstart.data.fetch import fetch
    from headstart.data.prepare import prepare

    generate(asked.folder, asked.pictures)
    os.chdir(asked.folder.parent)  # .headstart goes there
    pictures = fetch(Data(source=str(asked.folder)), Path("manifest.csv"))
    prepare(pictures, asked.folder, Prepare(raw_gb=0), Split(near_duplicate_bits=None), 0, cores(), Path("prepare"))


def measure(side: str, asked: argparse.Namespace) -> dict[str, float]:
    from headstart.base.device import set_up
    from headstart.data.manifest import read_manifest
    from headstart.data.packed import Pixels
    from headstart.models.backbones import architecture
    from headstart.training.features import extract

    device = set_up(2)
    place = asked.folder.parent
    trunk, pixels, manifest = architecture(NETWORK).trunk(), Pixels(place / "prepare"), read_manifest(place / "prepare")
    out = place / side
    if side == "local":
        start = time.perf_counter()
        extract(trunk, pixels, manifest, device, out)
        return {"seconds": time.perf_counter() - start, **peak()}
    return on_cluster(side, asked, lambda cluster: extract(trunk, pixels, manifest, cluster, out))


def on_cluster(side: str, asked: argparse.Namespace, work: Any) -> dict[str, float]:
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    import ray
    from ray.cluster_utils import Cluster as Nodes

    from headstart.base.cluster import connected

    room = {"num_cpus": 1, "object_store_memory": asked.store << 20}
    nodes = Nodes(initialize_head=True, head_node_args=room | {"include_dashboard": False})
    second = nodes.add_node(**room)
    nodes.wait_for_nodes()
    found = {"stored": 0.0}
    stop = threading.Event()

    def look() -> None:
        while not stop.wait(LOOK_EVERY_S):
            used = ray.cluster_resources()["object_store_memory"] - ray.available_resources()["object_store_memory"]
            found["stored"] = max(found["stored"], used / 1e6)

    try:
        start = time.perf_counter()
        with connected(nodes.address, "headstart.training.features") as cluster:
            if side == "broken":
                break_half_way(nodes, second, asked.pictures // 64)
            threading.Thread(target=look, daemon=True).start()
            work(cluster)
            found["seconds"] = time.perf_counter() - start
            stop.set()
            session = Path(ray._private.worker._global_node.get_session_dir_path())
            spilled = [file.stat().st_size for file in session.rglob("ray_spilled_objects*/*")]
        return found | {"spilled": sum(spilled) / 1e6} | peak()
    finally:
        stop.set()
        nodes.shutdown()


def break_half_way(nodes: Any, second: Any, batches: int) -> None:
    import psutil

    from headstart.base.cluster import Cluster

    answer, taken, killed = Cluster._answer, 0, 0

    def answer_and_break(self: Cluster, *waiting: Any) -> Any:
        nonlocal taken, killed
        taken += 1
        if taken >= batches // 4 and not killed:  # at the next answer where none is at work just now
            (raylet,) = nodes.head_node.all_processes["raylet"]
            at_work = [p for p in psutil.Process(raylet.process.pid).children() if "_work" in " ".join(p.cmdline())]
            killed = len([worker.kill() for worker in at_work])
        if taken == batches // 2:
            nodes.remove_node(second, allow_graceful=False)
        return answer(self, *waiting)

    Cluster._answer = answer_and_break  # type: ignore[method-assign]


def peak() -> dict[str, float]:
    import resource

    return {"megabytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e3}


def furthest(place: Path, side: str) -> float:
    """The largest difference of a feature from the local one, as a share of the largest feature."""
    import torch

    from headstart.training.feature_files import load_features

    found = 0.0
    for split in ("train", "val", "test"):
        (here, labels), (there, its) = (load_features(place / name, split) for name in ("local", side))
        assert torch.equal(labels, its)
        assert len(here) == len(there)
        found = max(found, float((here - there).abs().max() / here.abs().max()))
    assert found <= TOLERANCE, f"features of {side} are {found:.2g} from local ones"
    return found


if __name__ == "__main__":

    def measure_side(side: str, asked: argparse.Namespace) -> dict[str, float]:
        found = measure(side, asked)
        if (asked.folder.parent / "local").exists():
            found["furthest"] = furthest(asked.folder.parent, side)
        return found | {"passed": (asked.folder.parent / "prepare/pixels.bin").stat().st_size / 1e6}

    _, rounds = measured(__doc__, SIDES, measure_side, 1, {"pictures": 20_000, "store": 100}, fill)
    seconds = {side: [found[side]["seconds"] for found in rounds] for side in SIDES}
    for side in SIDES[1:]:
        claim = "features on two nodes of one core" + (", a worker and a node killed" if side == "broken" else "")
        report(claim, seconds["local"], seconds[side], "s", ("local, two threads", side))
    for side in SIDES:
        print(side, {name: float(f"{max(found[side][name] for found in rounds):.3g}") for name in rounds[0][side]})
