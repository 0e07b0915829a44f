"""Networks by name: what there is, how it is built, and how what was stored is loaded.

Three families answer to a name: torchvision's classification models, timm's models, and the user's own
``file.py:factory``. A name that both libraries know (``resnet18``) is torchvision's; timm's own is reached with its tag
(``resnet18.a1_in1k``).
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from torch import Tensor, nn

from headstart.base.artifacts import BackboneFolder
from headstart.base.artifacts.card import Card, Preprocessing
from headstart.base.artifacts.members import first_of, member_folders
from headstart.base.errors import HeadstartError, nearest
from headstart.base.paths import OWN_MODULE, SIDE_BY_SIDE, is_own, members_of, network_of
from headstart.base.private_names import without_torch_compiler
from headstart.base.safe_text import shortened
from headstart.base.tensors import tensors_of
from headstart.models.preprocessing import View
from headstart.models.side_by_side import SideBySide
from headstart.models.trunk import IMAGENET_CLASSES, Trunk, plain

IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
# These were published with ``transform_input``: a switch that turns torchvision's usual normalisation into the 0.5/0.5
# they were trained with. Saying 0.5/0.5 on the card does the same and works without the switch.
HALF_NORMALISED = ("inception_v3", "googlenet")


@dataclass(frozen=True)
class Architecture:
    """A network that can be built, before any weights.

    Attributes:
        name: as in params.yaml.
        library: torchvision, timm or own.
        create: builds the whole network, classifier included.
        view: its evaluation preprocessing.
        resized: whether it is shown pictures of another size than its publisher's.
    """

    name: str
    library: str
    create: Callable[[], nn.Module]
    view: View
    resized: bool = False

    def whole(self, seed: int = 0) -> nn.Module:
        """The network with its classifier, randomly initialised from ``seed``, without auxiliary heads in use."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            return self.create()

    def trunk(self, seed: int = 0) -> Trunk:
        """The network without its classifier, randomly initialised from ``seed``."""
        return Trunk(self.whole(seed), self.view)


def architecture(
    name: str, network_file: Path | None = None, weights: str = "default", size: int | None = None
) -> Architecture:
    """The network called ``name``.

    Args:
        network_file: where the user's own factory stands, for ``file.py:factory`` names.
        weights: torchvision's models have preprocessing of their own for each of their weights.
        size: of the pictures it is shown, in pixels; None: as its publisher has it. Some transformers are built for it.

    Raises:
        HeadstartError: nobody knows the name, or the user's file is at fault. A size that the network does not take is said
            when it is built.
    """
    found = _architecture(name, network_file, weights, size)
    if size in (None, found.view.size):
        return found
    return replace(found, view=replace(found.view, size=size), resized=True)


def stored_architecture(
    name: str, weights: str, preprocessing: Preprocessing, network_file: Path | None = None
) -> Architecture:
    """The network called ``name``, or several side by side, as a card or a packaged model describes them."""
    members = members_of(name)
    if len(members) > 1:
        beside = preprocessing.model_copy(update={"beside": None}), *(preprocessing.beside or ())
        return side_by_side(
            name,
            [stored_architecture(network_of(member), weights, own) for member, own in zip(members, beside, strict=True)],
        )
    size = preprocessing.built_for or preprocessing.size
    return replace(architecture(name, network_file, weights, size), view=View.of(preprocessing))


def side_by_side(name: str, members: Sequence[Architecture]) -> Architecture:
    """Several networks as one, called ``name``."""
    view = replace(members[0].view, beside=tuple(member.view for member in members[1:]))

    def create() -> nn.Module:
        return SideBySide([member.trunk() for member in members], view)

    return Architecture(name, SIDE_BY_SIDE.join(sorted({member.library for member in members})), create, view)


def _architecture(name: str, network_file: Path | None, weights: str, size: int | None) -> Architecture:
    if is_own(name):
        return _own(name, network_file)
    with without_torch_compiler():
        import timm
        import torchvision

    known = torchvision.models.list_models(module=torchvision.models)
    if name in known:
        return _torchvision(name, weights, size)
    if timm.is_model(name.split(".")[0]) and (name in timm.list_models() or timm.is_model_pretrained(name)):
        return _timm(name, size)
    hint = nearest(name, [*known, *timm.list_models()]) or "`headstart models PATTERN` lists what there is"
    raise HeadstartError(f"backbone {name!r} is neither a torchvision nor a timm model, nor a file.py:factory; {hint}")


def load_trunk(folder: Path, network_file: Path | None = None) -> tuple[Trunk, Card]:
    """The trunk that the backbone stage stored in ``folder``, with its card."""
    files = BackboneFolder(folder)
    card = Card.read(files.card)
    folders = member_folders(files)
    if len(folders) > 1:
        trunks = [load_trunk(member)[0] for member in folders]
        view = View.of(card.preprocessing)
        return Trunk(SideBySide(trunks, view), view), card
    trunk = stored_architecture(card.name, card.weights, card.preprocessing, network_file).trunk()
    with tensors_of(BackboneFolder(folder).weights, card.made_by) as state:
        trunk.network.load_state_dict(state)
    return trunk, card


def load_first(folder: Path, network_file: Path | None = None) -> tuple[Trunk, Card]:
    """What fine-tuning trains: of several networks in ``folder`` the first one, with its last layer's features alone."""
    trunk, card = load_trunk(first_of(folder), network_file)
    return plain(trunk), card


def load_classifier(folder: Path) -> tuple[Tensor, Tensor] | None:
    """The publisher's ImageNet classifier on the trunk's features, (1000, D) and (1000,); None where it was not stored."""
    file = BackboneFolder(folder).imagenet_classifier
    if not file.exists():
        return None
    with tensors_of(file, Card.made_by) as stored:
        return stored["weight"], stored["bias"]


def _not_of_this_size(name: str, size: int | None, published: int, error: Exception) -> HeadstartError:
    reason = f"{type(error).__name__}: {shortened(str(error), 200)}"
    return HeadstartError(f"backbone {name!r} takes no pictures of {size} pixels, its own size is {published} ({reason})")


# --- the three families -------------------------------------------------------------------------------------------


def _torchvision(name: str, weights: str, wanted: int | None) -> Architecture:
    import torchvision

    # Random weights and the user's own file are looked at as the publisher's default is.
    entry: Any = torchvision_weights(name, weights) or torchvision_weights(name, "default")
    preset = entry.transforms()
    size = preset.crop_size[0]
    mean, std = tuple(preset.mean), tuple(preset.std)
    options: dict[str, Any] = {}
    if name in HALF_NORMALISED:
        options["init_weights"] = True
        mean = std = (0.5, 0.5, 0.5)
    if name.startswith("vit_"):  # one position embedding per patch: the input size is part of the architecture
        options["image_size"] = wanted or size

    def create() -> nn.Module:
        try:
            network: nn.Module = torchvision.models.get_model(name, weights=None, **options)
        except AssertionError as error:
            if wanted is None:
                raise
            raise _not_of_this_size(name, wanted, size, error) from None
        return network

    crop = min(size / preset.resize_size[0], 1.0)
    return Architecture(name, "torchvision", create, View(size, crop, preset.interpolation.value, mean, std))


def torchvision_weights(name: str, weights: str) -> Any | None:
    """The entry of torchvision's weights enum that ``weights`` names; None where it names none (a local file).

    Raises:
        HeadstartError: ``weights`` looks like an entry's name and is none.
    """
    import torchvision

    entries = torchvision.models.get_model_weights(name)
    if weights == "default":
        return entries.DEFAULT
    short = weights.split(".")[-1]
    if short in entries.__members__ and weights in (short, f"{entries.__name__}.{short}"):
        return entries[short]
    if short in entries.__members__:
        raise HeadstartError(
            f"weights {weights!r} belong to another backbone than {name!r}; use {entries.__name__}.{short}"
        )
    return None


def _timm(name: str, size: int | None) -> Architecture:
    import timm
    import timm.data

    cfg: Any = timm.models.get_pretrained_cfg(name) if timm.is_model_pretrained(name) else None
    if cfg is None:
        # A throw-away model on the meta device gives the merged configuration without allocating anything.
        with torch.device("meta"):
            cfg = timm.create_model(name, pretrained=False).pretrained_cfg
    settings = cfg if isinstance(cfg, dict) else cfg.to_dict()
    data = timm.data.resolve_data_config({}, pretrained_cfg=settings)  # type: ignore[attr-defined, no-untyped-call]

    options: dict[str, Any] = {"img_size": size} if size is not None and settings.get("fixed_input_size") else {}

    def create() -> nn.Module:
        try:
            network: nn.Module = timm.create_model(name, pretrained=False, **options)
        except Exception as error:  # each family says in its own way which sizes it can be built for
            if not options:
                raise
            raise _not_of_this_size(name, size, height, error) from None
        return network

    channels, height, width = data["input_size"]
    if channels != 3 or height != width:
        raise HeadstartError(
            f"backbone {name!r} takes {channels}×{height}×{width} inputs; choose one with three channels and a square input"
        )
    crop = min(data["crop_pct"], 1.0)  # above 1 timm pads with black
    return Architecture(name, "timm", create, View(height, crop, data["interpolation"], data["mean"], data["std"]))


def _own(name: str, network_file: Path | None) -> Architecture:
    """``factory(num_classes)`` from the user's file; optional attributes input_size, mean and std on the network."""
    path, factory_name = name.rsplit(":", 1)
    file = network_file or Path(path)
    if file.suffix != ".py" or not file.is_file() or not file.stat().st_size:
        raise HeadstartError(f"backbone {name!r}: {path} is not there; give its path from the project's top folder")
    module = ModuleType(OWN_MODULE)
    module.__file__ = str(file)
    try:
        # An import would run bytecode that lies beside the file, which no digest covers, and would write it into a package.
        sys.modules[module.__name__] = module  # where dataclasses look for the names in their annotations
        exec(compile(file.read_bytes(), str(file), "exec", dont_inherit=True), vars(module))
    except Exception as error:
        raise HeadstartError(f"backbone {name!r}: {path} does not run: {type(error).__name__}: {error}") from None

    factory = getattr(module, factory_name, None)
    if factory is None:
        hint = nearest(factory_name, vars(module)) or f"define `def {factory_name}(num_classes)` there"
        raise HeadstartError(f"backbone {name!r}: {path} has no {factory_name!r}; {hint}")

    def create() -> nn.Module:
        try:
            network = factory(IMAGENET_CLASSES)
        except Exception as error:
            raise HeadstartError(
                f"backbone {name!r}: {factory_name}(num_classes) failed: {type(error).__name__}: {error}"
            ) from None
        if not isinstance(network, nn.Module):
            raise HeadstartError(f"backbone {name!r}: {factory_name} returned {type(network).__name__}, not a nn.Module")
        return network

    with torch.random.fork_rng(devices=[]):
        network = create()
    size: Any = getattr(network, "input_size", 224)
    mean: Any = getattr(network, "mean", IMAGENET_MEAN)
    std: Any = getattr(network, "std", IMAGENET_STD)
    try:
        (red, green, blue), (r, g, b) = map(float, mean), map(float, std)
        if not isinstance(size, int) or size < 1 or min(r, g, b) <= 0:
            raise ValueError
    except (TypeError, ValueError):
        raise HeadstartError(
            f"backbone {name!r}: input_size must be one whole number of pixels, mean and std three numbers each (std above "
            f"0); found {size!r}, {mean!r} and {std!r}"
        ) from None
    return Architecture(name, "own", create, View(size, 1.0, "bilinear", (red, green, blue), (r, g, b)))
