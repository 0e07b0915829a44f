"""Whether a picture is like anything that a classifier has learned from: how far its features are from those of the
training pictures. It travels in the model with the predictor.

The distance is one minus the cosine to the fifth nearest training picture, after Sun et al. 2022, "Out-of-distribution
detection with deep nearest neighbors". bench/unfamiliar.py compares it with Mahalanobis' and with what the logits say. The
threshold is that of split conformal prediction (Papadopoulos et al. 2002): at least ``SHARE`` of new pictures are expected
below it if they come as those of validation did. Training pictures cannot choose it. They are nearer to each other than new
ones are to them, and fine-tuning moves them nearer still.
"""

from __future__ import annotations

import math

from safetensors.torch import save_file
from torch import Tensor
from torch.nn import functional

from headstart.base.arrays import Bools
from headstart.base.artifacts import ClassifierFolder
from headstart.base.artifacts.classifier import FamiliarityDetails, Passed
from headstart.base.tensors import tensors_of

SHARE = 0.95  # of pictures like those of validation that are familiar
NEIGHBOUR = 5  # the nearest alone is chance: one odd training picture makes others familiar (bench/unfamiliar.py)
NAMED = 3  # nearest training pictures
MOST_BYTES = 8 << 20  # of features in a model: 1,000 pictures at 3,840 features, and a tenth of them does about as well
FEWEST = math.ceil(SHARE / (1 - SHARE) - 1e-9)  # validation pictures; of fewer, not even the farthest promises so much


class Familiarity:
    """What pictures are compared with: some of the training pictures, by their features."""

    def __init__(self, reference: Tensor, details: FamiliarityDetails, width: int) -> None:
        """
        Args:
            reference: (R, D), each of length 1.
            width: of the features that will be compared, D or more.

        Raises:
            ValueError: they do not belong together.
        """
        count = len(details.images)
        fits = reference.ndim == 2 and len(reference) == count and reference.shape[1] <= width
        if not fits or not 0 < details.neighbour <= count:
            shape = tuple(reference.shape)
            raise ValueError(f"it holds features {shape}, for {count} pictures and a model of {width} features")
        if not reference.isfinite().all():
            raise ValueError("it holds numbers that are not finite")
        self.reference, self.details = reference.float(), details

    def nearest(self, features: Tensor) -> list[list[str]]:
        """(N, D or more) features → for each picture the paths of the nearest training pictures, nearest first, if it is
        unlike all of them; an empty list for one that is familiar."""
        near, places = distances(features, self.reference, self.details.neighbour)
        names = self.details.images
        return [
            [names[place] for place in row[:NAMED]] if unfamiliar else []
            for row, unfamiliar in zip(places.tolist(), (near[:, -1] > self.details.threshold).tolist(), strict=True)
        ]


def distances(features: Tensor, reference: Tensor, neighbour: int) -> tuple[Tensor, Tensor]:
    """How far pictures are from those that they are nearest to, in ascending order, and which ones these are.

    Args:
        features: (N, D or more): the packaged ensemble has those of the fine-tuned network behind the frozen ones, and with
            those nothing was compared.
        reference: (R, D), each of length 1.

    Returns:
        Two tensors, both (N, neighbour): 1 - cosine, and rows of ``reference``.
    """
    own = functional.normalize(features[:, : reference.shape[1]].float(), dim=1)
    cosines, places = (own @ reference.T).topk(neighbour, dim=1)
    return 1 - cosines, places


def fit(reference: Tensor, images: list[str], val: Tensor, test: Tensor, folder: ClassifierFolder) -> Bools:
    """Choose the threshold on the validation pictures, and write both files.

    Args:
        reference: (R, D) features of training pictures.
        images: their paths.
        val: (N, D), at least ``FEWEST``.
        test: likewise, of which is counted how many are familiar.

    Returns:
        (N,) which of the validation pictures are familiar.
    """
    stored = functional.normalize(reference.float(), dim=1).half()
    neighbour = min(NEIGHBOUR, len(stored))
    own, new = (distances(features, stored.float(), neighbour)[0][:, -1] for features in (val, test))
    threshold = own.sort().values[math.ceil((len(own) + 1) * SHARE - 1e-9) - 1]
    save_file({"reference": stored.contiguous()}, folder.reference)
    FamiliarityDetails(
        neighbour=neighbour,
        threshold=float(threshold),
        share=SHARE,
        val=Passed(pictures=len(own), familiar=int((own <= threshold).sum())),
        test=Passed(pictures=len(new), familiar=int((new <= threshold).sum())),
        images=images,
    ).write(folder.familiarity)
    familiar: Bools = (own <= threshold).numpy()
    return familiar


def load(folder: ClassifierFolder, width: int) -> Familiarity | None:
    """What a packaged model compares with; None in one of an older version, or with few validation pictures.

    Args:
        width: of the model's features.

    Raises:
        HeadstartError: its files are damaged.
    """
    details = FamiliarityDetails.read_if_made(folder.familiarity)
    if details is None:
        return None
    with tensors_of(folder.reference, details.made_by) as tensors:
        return Familiarity(tensors["reference"], details, width)
