"""Do fresh checkouts of one commit give the same bytes on one machine, whatever else the machine does?

    python bench/checkouts.py                                    five of the default, a busy process beside two
    python bench/checkouts.py --source FOLDER --generated 1000   photographs in folders, and drawn ones

Each checkout starts with an empty DVC cache, an empty .headstart and an MLflow store of its own. Prints every output whose
digest differs, and the share of outputs that are the same in all checkouts: 1.00 is what is promised.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import yaml
from _project import clone
from PIL import Image


def busy() -> None:
    while True:
        sum(range(100_000))


def with_generated(source: Path, count: int, folder: Path) -> Path:
    """A copy of ``source``, one folder per class, with ``count`` pictures more: noise over a colour of the class."""
    target = folder / "pictures"
    shutil.copytree(source, target)
    rng = np.random.default_rng(0)
    classes = sorted(path for path in target.iterdir() if path.is_dir())
    for number in range(count):
        kind = number % len(classes)
        colour = np.array([kind * 25 % 256, kind * 85 % 256, kind * 145 % 256])
        pixels = np.clip(colour + rng.normal(0, 60, (96, 96, 3)), 0, 255).astype(np.uint8)
        Image.fromarray(pixels).save(classes[kind] / f"generated-{number}.png")
    return target


def outputs(folder: Path) -> dict[str, str]:
    """DVC's digests of all outputs."""
    stages = yaml.safe_load((folder / "dvc.lock").read_text(encoding="utf-8"))["stages"]
    return {out["path"]: out["md5"] for stage in stages.values() for out in stage["outs"]}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--source", default="emoji", help="data.source")
    parser.add_argument("--generated", type=int, default=0, help="drawn pictures to add to a folder of pictures")
    parser.add_argument("--checkouts", type=int, default=5)
    parser.add_argument("--unfreeze", default=None, help="finetune.unfreeze, where that of params.yaml takes too long")
    arguments = parser.parse_args()
    found: list[dict[str, str]] = []
    with tempfile.TemporaryDirectory() as name:
        source = arguments.source
        if arguments.generated:
            source = str(with_generated(Path(source).resolve(), arguments.generated, Path(name)))
        for number in range(arguments.checkouts):
            folder = Path(name) / f"checkout-{number}"
            sections = {"finetune": {"unfreeze": arguments.unfreeze}} if arguments.unfreeze else {}
            clone(folder, data={"source": source}, **sections)
            beside = multiprocessing.Process(target=busy, daemon=True) if number in (1, 3) else None
            if beside:
                beside.start()
            start = time.monotonic()
            kept = {key: value for key, value in os.environ.items() if not key.startswith(("DVC_", "MLFLOW_"))}
            path = f"{Path(sys.executable).parent}{os.pathsep}{kept['PATH']}"
            command = [sys.executable, "-m", "dvc", "repro", "--quiet"]
            subprocess.run(command, cwd=folder, env=kept | {"PATH": path, "PYTHONPATH": str(folder)}, check=True)
            if beside:
                beside.terminate()
            found.append(outputs(folder))
            print(
                f"checkout {number + 1}{' beside a busy process' if beside else ''}: {time.monotonic() - start:.0f} s",
                flush=True,
            )
            shutil.rmtree(folder)
    different = [path for path in found[0] if len({one[path] for one in found}) > 1]
    for path in different:
        print(f"{path} differs: {[one[path][:8] for one in found]}")
    same = len(found[0]) - len(different)
    print(f"outputs that are the same in all {len(found)} checkouts: {same}/{len(found[0])} = {same / len(found[0]):.2f}")


if __name__ == "__main__":
    main()
