"""What addresses in params.yaml get into holds none of their secrets: MLflow's parameters and tags, pages and cards."""

from __future__ import annotations

import pytest
from jinja2 import Environment

from headstart.base.params import Params
from headstart.evaluation import pages
from headstart.tracking import model_card, runs, track
from tests.test_house import PROJECT

ADDRESSES = (
    "https://anna:Geheim7@host/pets.zip", "https://anna:Geh/eim7@7@host/pets.zip", "https://Geheim7@host/pets.zip",
    "https://host/pets.zip?token=Geheim7", "s3://host/pets?X-Amz-Signature=Geheim7&v=1",
)  # fmt: skip


@pytest.mark.parametrize("address", ADDRESSES)
def test_parameters_and_tags_of_a_run(address: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(PROJECT)  # which parameters make a result is in dvc.yaml
    params = Params.model_validate({"data": {"source": address, "mirror": address}, "weights_mirror": address})
    told = track.comparable(params) | runs.filters(params)
    assert {key for key, value in told.items() if "***" in value} == {
        "data.source",
        "data.mirror",
        "weights_mirror",
        "source",
    }
    assert not [value for value in told.values() if "eim7" in value]


@pytest.mark.parametrize("address", ADDRESSES)
def test_pages_and_the_model_card(address: str) -> None:
    params = Params.model_validate({"data": {"source": address}})
    lines = [
        line for line in (pages.TEMPLATES / model_card.TEMPLATE).read_text("utf-8").splitlines() if "data.source" in line
    ]
    environment = Environment(finalize=pages.finalize, autoescape=True)
    environment.filters |= {"plain": model_card.plain, "masked": model_card.masked, "percent": str, "interval": str}
    environment.filters |= {"title_of": pages.title_of, "prose": pages.prose}
    for name in ("report.html.j2", "story.html.j2"):
        text = (pages.TEMPLATES / name).read_text("utf-8").replace("story.params", "params")
        lines += [line for line in text.splitlines() if "params.data.source" in line and line.count("{%") in (0, 2)]
    told = [environment.from_string(line).render(params=params, backbone="b", card={"name": "c"}) for line in lines]
    assert len(told) > 4
    assert not [line for line in told if "eim7" in line]


def test_a_template_masks_what_is_filled_in() -> None:
    page = pages.template(
        "report.html.j2", percent=str, interval=str, thumbnail=str, of_subgroup=str
    ).environment.from_string("<p>{{ a }} {{ b }} {{ c|safe }}</p>")
    assert page.render(a="http://u:Geheim7@h/<b>", b=1.5, c="<i>") == "<p>http://***@h/&lt;b&gt; 1.5 <i></p>"
    assert pages.prose("http://u:Geheim7@h/<b>") == "http://***@h/&lt;b&gt;"
