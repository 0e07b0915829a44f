"""The kinds of ``data.source``, and which of them a given one is.

The pictures stay where they are. A manifest holds paths relative to a root that ``locate`` finds again from the
parameters; archives are unpacked under ``.headstart/`` in the checkout, and what is known of files elsewhere is kept
there. Nothing here imports torch, MLflow or pandas before a source needs it, so that listing an unchanged folder is quick.
"""

from __future__ import annotations

from headstart.base.errors import HeadstartError, nearest
from headstart.base.paths import users_path
from headstart.base.sections import Data
from headstart.data.picture import Listing, Source
from headstart.data.sources_address import Address
from headstart.data.sources_archive import Archive
from headstart.data.sources_coco import Coco
from headstart.data.sources_emoji import Emoji
from headstart.data.sources_folder import Folder
from headstart.data.sources_hymenoptera import Hymenoptera
from headstart.data.sources_parquet import ParquetPictures
from headstart.data.sources_table import Table
from headstart.data.sources_torchvision import Torchvision
from headstart.data.sources_webdataset import WebDataset

# The first that takes a data.source gets it: names before addresses, addresses before paths.
SOURCES: list[Source] = [
    Emoji(), Hymenoptera(), Torchvision(), Address(), ParquetPictures(), Table(), Coco(), WebDataset(), Archive(), Folder(),
]  # fmt: skip


def source_of(data: Data) -> Source:
    """The kind of ``data.source``.

    Raises:
        HeadstartError: it is of no known kind, or the path does not exist.
    """
    for source in SOURCES:
        if source.takes(data.source):
            return source
    forms = [source.form for source in SOURCES]
    hint = nearest(data.source, [form for form in forms if " " not in form])  # the others describe a path or an address
    raise HeadstartError(
        f"data.source {data.source!r} is unknown, and {users_path(data.source)} is not there; allowed: {', '.join(forms)}"
        + (f"; {hint}" if hint else "")
    )


def locate(data: Data) -> Listing:
    """The pictures of ``data.source`` and the folder their paths are relative to.

    Raises:
        HeadstartError: the source is unknown or cannot be reached.
    """
    return source_of(data).listing(data)
