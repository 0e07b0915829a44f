"""Time to fastai's accuracy: headstart's stages against fastai's fine_tune.

    python bench/fastai_loop.py                   # emoji, about a quarter of an hour on two quiet cores
    python bench/fastai_loop.py --source FOLDER   # your own, such as the ants and bees of PyTorch's tutorial

fastai's side is its usual recipe in one process: ImageDataLoaders (Resize(256), aug_transforms(size=224), two workers),
vision_learner, fine_tune(4), which is one epoch of the head and four of everything. Its clock stops where fine_tune ends;
what it has then on the test pictures is the accuracy to reach. It lives in an environment of its own, .headstart/fastai,
made at first use (several GB) with the torch, torchvision and timm of this one.

headstart's side is its stages' scripts with the defaults of params.yaml, one after the other in a fresh clone of the last
commit, up to the first classifier that is at least as accurate on the same test pictures: the head or the fine-tuned
network. Where neither is, it is said and the whole counts. Both clocks begin with a process and include its imports, and
exclude the evaluation. headstart's includes audit, decoding and features of the test pictures and the curve in MLflow; it
excludes what DVC adds. Test pictures say when to stop the clock and choose nothing else.

Both get the same pictures, the split that prepare makes, tf_efficientnet_lite0 with the same weights, normalised alike,
batches of 32 and all cores, alternately. Transparent pictures are laid over white for fastai as headstart lays them.
fastai draws other random numbers each time, as its users' runs do. Prints accuracies and seconds of every round and the
ratio of seconds as median (least–most).
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from importlib.metadata import version
from pathlib import Path

from _project import ROOT, clone, stages
from _sides import alternate, report

FASTAI, HEADSTART, INSIDE = "fastai", "headstart", "inside fastai's environment"
RELEASE = "2.8.12"
NETWORK, BATCH = "tf_efficientnet_lite0", 32
PYTHON = ROOT / ".headstart" / "fastai" / "bin" / "python"


def install() -> None:
    """fastai's environment; a glance where it is there already."""
    uv = Path(sys.executable).with_name("uv")
    same = [f"{name}=={version(name)}" for name in ("torch", "torchvision", "timm", "safetensors")]
    wanted = ["--compile-bytecode", "--python", PYTHON, f"fastai=={RELEASE}", *same]
    subprocess.run([uv, "venv", "--quiet", "--allow-existing", "--python", sys.executable, PYTHON.parents[1]], check=True)
    subprocess.run([uv, "pip", "install", "--quiet", *wanted], check=True)
    subprocess.run([PYTHON, "-W", "ignore", "-c", "import fastai.vision.all"], check=True)  # read from the disk once


def project(asked: argparse.Namespace, folder: Path) -> None:
    data = {"source": asked.source, "limit": asked.limit}
    finetune = {"epochs": asked.epochs, "batch_size": BATCH}
    clone(folder, backbone=NETWORK, weights="default", data=data, finetune=finetune)


def fill(asked: argparse.Namespace) -> None:
    """What fastai gets: the weights, and the pictures in folders as prepare split them."""
    from PIL import Image

    from headstart.base.sections import Data
    from headstart.data.decode import decode
    from headstart.data.manifest import read_manifest
    from headstart.data.sources import locate

    project(asked, asked.folder)
    stages(asked.folder, "fetch", "prepare", "backbone")
    root = locate(Data(source=asked.source)).root.resolve()
    for number, row in enumerate(read_manifest(asked.folder / "data" / "prepare").itertuples()):
        original = root / row.path
        picture = asked.folder / "pictures" / row.split / row.label / f"{number:05d}{original.suffix}"
        picture.parent.mkdir(parents=True, exist_ok=True)
        if Image.open(original).has_transparency_data:
            Image.fromarray(decode(original).pixels).save(picture)
        else:
            picture.symlink_to(original)


def headstart(asked: argparse.Namespace) -> dict[str, float]:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        project(asked, folder)
        start = time.perf_counter()
        stages(folder, "fetch", "prepare", "backbone", "features", "head")
        head = time.perf_counter() - start
        stages(folder, "finetune")
        tuned = time.perf_counter() - start
        stages(folder, "evaluate")
        test = json.loads((folder / "data" / "evaluate" / "metrics.json").read_text(encoding="utf-8"))["test"]
    accuracies = {f"{name} accuracy": test[name]["accuracy"] for name in ("head", "finetune")}
    return {"head": head, "finetune": tuned} | accuracies


def fastai() -> dict[str, float]:
    start = time.time()
    command = [PYTHON, "-W", "ignore", *sys.argv, "--side", INSIDE]
    found = json.loads(subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True).stdout.splitlines()[-1])
    return {"seconds": found["end"] - start, "accuracy": found["accuracy"]}


def inside(asked: argparse.Namespace) -> dict[str, float]:
    import fastai.vision.all as vision
    from safetensors.torch import load_file

    views = {"item_tfms": vision.Resize(256), "batch_tfms": vision.aug_transforms(size=224)}
    pictures, weights = asked.folder / "pictures", asked.folder / "data" / "backbone" / "weights.safetensors"
    loaders = vision.ImageDataLoaders.from_folder(pictures, valid="val", bs=BATCH, num_workers=2, **views)
    # timm reads our file instead of its publisher's; all else is what fastai does with pre-trained weights.
    own = {"file": str(weights)}
    learner = vision.vision_learner(loaders, NETWORK, metrics=vision.accuracy, pretrained_cfg_overlay=own)
    learner.model[0].model.load_state_dict(load_file(weights))  # once more, strictly: timm passes over what does not fit
    with learner.no_bar():
        learner.fine_tune(asked.epochs)
        end = time.time()
        test = loaders.test_dl(vision.get_image_files(pictures / "test"), with_labels=True)
        return {"end": end, "accuracy": float(vision.accuracy(*learner.get_preds(dl=test)))}


def compare(name: str, rounds: list[dict[str, dict[str, float]]]) -> None:
    """Print what came of the pictures ``name``, and report the ratio."""
    theirs, ours, missed = [], [], 0
    for loop, own in ((found[FASTAI], found[HEADSTART]) for found in rounds):
        # fastai's is a float32: the same number of right answers may come out a hair larger.
        good = [kind for kind in ("head", "finetune") if own[f"{kind} accuracy"] > loop["accuracy"] - 1e-6]
        theirs.append(loop["seconds"])
        ours.append(own[good[0] if good else "finetune"])
        missed += not good
        print(
            f"{name}: test accuracy {loop['accuracy']:.3f} by fastai after {loop['seconds']:.1f} s; {HEADSTART}: "
            f"head {own['head accuracy']:.3f} after {own['head']:.1f} s, fine-tuned {own['finetune accuracy']:.3f} after "
            f"{own['finetune']:.1f} s; first as good: {good[0] if good else 'NEITHER, the whole counts'}"
        )
    short = f"{HEADSTART}, less accurate in {missed} of {len(rounds)} rounds" if missed else HEADSTART
    report(f"time to fastai's accuracy: {name}", theirs, ours, "s", (FASTAI, short))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--source", default="emoji", help="data.source, a folder for instance; default: emoji")
    parser.add_argument("--rounds", type=int, default=1, help="default: 1")
    parser.add_argument("--epochs", type=int, default=4, help="of fine-tuning, on both sides; default: 4")
    parser.add_argument("--limit", type=int, help="data.limit, for a quick look; default: all pictures")
    parser.add_argument("--side", choices=(FASTAI, HEADSTART, INSIDE), help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    asked = parser.parse_args()
    if asked.side:
        sides = {FASTAI: fastai, HEADSTART: lambda: headstart(asked), INSIDE: lambda: inside(asked)}
        print(json.dumps(sides[asked.side]()))
        sys.exit()
    install()
    if Path(asked.source).exists():
        asked.source = str(Path(asked.source).resolve())
    with tempfile.TemporaryDirectory() as scratch:
        asked.folder = Path(scratch) / "project"
        fill(asked)
        given = {key: getattr(asked, key) for key in ("epochs", "limit", "source", "folder")}
        arguments = [part for key, value in given.items() if value for part in (f"--{key}", str(value))]
        found = alternate(Path(__file__).name, (FASTAI, HEADSTART), asked.rounds, *arguments, cwd=Path(scratch))
        compare(Path(asked.source).name, found)
