"""A backbone or weights that do not exist are said before any picture is looked at."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from headstart.base.artifacts import DataFolder
from headstart.base.errors import HeadstartError
from headstart.base.params import Params
from headstart.models.names import check_names
from tests.test_house import PROJECT


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("DVC_ROOT", raising=False)
    (tmp_path / "net.py").write_text("import torch\ndef small(num_classes): return torch.nn.Linear(2, num_classes)\n")
    (tmp_path / "mine.pth").touch()
    return tmp_path


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"backbone": "resnet81"}, r"backbone 'resnet81' is neither .*; did you mean 'resnet18'"),
        ({"backbone": "resnet18", "weights": "IMAGENET1K_V9"}, " for 'resnet18'; allowed: default, none, IMAGENET1K_V1"),
        ({"backbone": "resnet18", "weights": "ResNet50_Weights.IMAGENET1K_V1"}, "belong to another"),
        ({"backbone": "tf_efficientnet_lite0", "weights": "V1"}, "weights 'V1' is unknown for the timm model"),
        ({"backbone": "resnet18.no_such_tag"}, "backbone 'resnet18.no_such_tag' is neither"),
        ({"backbone": "net.py:small", "weights": "V1"}, "weights 'V1': for your own network"),
        ({"backbone": "net.py:smal"}, "smal"),
        ({"backbone": "gone.py:small"}, "gone.py is not there"),
        ({"backbone": "resnet18", "weights": "gone.pth"}, "no such file"),
        ({"backbone": "resnet18+resnet81"}, "did you mean"),
    ],
)  # fmt: skip
def test_a_name_that_nobody_knows_is_said_with_what_is_near(here: Path, settings: dict[str, str], says: str) -> None:
    with pytest.raises(HeadstartError, match=says) as caught:
        check_names(Params(**settings), DataFolder(here, "data"))
    told = str(caught.value).partition("did you mean ")[2].rstrip("?").split(" or ")
    assert len(told) == len(set(told))


@pytest.mark.parametrize(
    "settings",
    [
        {}, {"backbone": "resnet50", "weights": "IMAGENET1K_V2"}, {"backbone": "resnet18", "weights": "none"},
        {"backbone": "resnet18.a1_in1k"}, {"backbone": "resnet18", "weights": "mine.pth"}, {"backbone": "net.py:small"},
        {"backbone": "net.py:small", "weights": "none"}, {"backbone": "net.py:small", "weights": "mine.pth"},
    ],
)  # fmt: skip
def test_what_exists_passes(here: Path, settings: dict[str, str]) -> None:
    check_names(Params(**settings), DataFolder(here, "data"))


def test_fetch_asks_for_the_names_before_it_lists_a_picture(here: Path) -> None:
    (here / "params.yaml").write_text("backbone: resnet81\ndata: {source: nowhere}\n")
    done = subprocess.run([sys.executable, PROJECT / "stages/fetch.py"], cwd=here, capture_output=True, text=True)
    assert done.returncode == 1
    assert done.stderr.startswith("headstart: backbone 'resnet81' is neither a torchvision nor a timm model")
    assert done.stderr.count("\n") == 1
