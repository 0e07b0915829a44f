"""What the trained layers see: random views of the training pictures, epoch by epoch, and the validation pictures."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from itertools import islice
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import BatchSampler, DataLoader, RandomSampler

from headstart.base.arrays import Ints
from headstart.base.device import derived_seed
from headstart.base.errors import HeadstartError
from headstart.base.identity import code_of
from headstart.engines.activations import folder_for, known_or_made
from headstart.models.preprocessing import batches
from headstart.training import distributed
from headstart.training.augmentation import START, TrainingViews, augmentation
from headstart.training.network import TrainedNetwork
from headstart.training.recipe import TrainingSetup

Batch = tuple[Tensor, Tensor]  # activations, labels


def loaders(device: torch.device) -> int:
    """How many processes make views: a GPU leaves the cores to them."""
    return 1 if device.type == "cpu" else torch.get_num_threads()


class TrainingData:
    """Activations of the frozen part, of training and validation pictures.

    What the frozen part makes of the validation pictures is computed once, and where ``finetune.views`` asks for it, so is
    what it makes of that many views of the training pictures. Where several processes train together, each has its share of
    every batch.

    Attributes:
        batch: pictures in a batch, those of all processes.
        steps: batches in an epoch.
        val_labels: (N,) of the validation pictures.
    """

    def __init__(self, setup: TrainingSetup, network: TrainedNetwork, cache: Path) -> None:
        """
        Args:
            cache: the folder for activations.

        Raises:
            HeadstartError: a batch has fewer pictures than there are processes.
        """
        settings = setup.recipe.settings
        self.setup, self.frozen = setup, network.frozen
        self.eval_batch = distributed.least(network.eval_batch, setup.device)
        train, val = setup.rows("train"), setup.rows("val")
        self.batch = min(settings.batch_size, len(train))
        if self.batch < distributed.world():
            raise HeadstartError(
                f"finetune: {distributed.world()} processes cannot share batches of {self.batch} pictures; start at most "
                f"{self.batch}, or raise finetune.batch_size"
            )
        transform = augmentation(settings, setup.trunk.view, setup.head.task)
        stored = self.frozen.layers is not None and settings.views is not None
        seed = setup.recipe.seed if stored else setup.recipe.own_seed  # repeats share what is stored
        self.views = TrainingViews(setup.pixels, train, setup.labels[train], transform, seed)
        self.val_rows, self.val_labels = val, setup.labels[val]
        self.steps = max(1, len(train) // settings.batch_size)
        self.val_activations: NDArray[np.float32] | None = None
        self.stored_views: list[NDArray[np.float32]] = []
        if self.frozen.layers is not None:
            with distributed.first_alone():
                self._store(cache)

    def _store(self, cache: Path) -> None:
        """Compute the activations that stay the same, or find them in ``cache``."""
        setup, engine, shape = self.setup, self.frozen.engine, self.frozen.shape
        assert self.frozen.layers is not None
        seen = (
            code_of("headstart.training.trainer"), str(self.views.transform), setup.trunk.view.as_dict(), setup.recipe.seed,
            self.views.rows.tolist(), self.val_rows.tolist(),
        )  # fmt: skip
        home = folder_for(cache, self.frozen.layers, self.frozen.choice.engine, setup.pixels, seen)
        of_val = (len(self.val_rows), *shape)
        self.val_activations = known_or_made(home / "validation", of_val, engine, self._val_pictures)
        for epoch in range(1, min(setup.recipe.settings.views or 0, setup.recipe.epochs) + 1):
            pictures = partial(self.views.all, epoch, self.eval_batch, loaders=loaders(setup.device))
            self.stored_views.append(known_or_made(home / f"view-{epoch}", (len(self.views), *shape), engine, pictures))

    def _val_pictures(self, first: int = 0) -> Iterator[Tensor]:
        return self._pictures(self.val_rows[first:])

    def _pictures(self, rows: Ints) -> Iterator[Tensor]:
        setup = self.setup
        yield from (p for _, p in batches(setup.trunk.view, setup.pixels, rows.tolist(), self.eval_batch, setup.device))

    def validation(self) -> Iterator[tuple[slice, Tensor]]:
        """Which of the validation pictures, and their activations, batch by batch."""
        count = len(self.val_rows)
        shares = [slice(at, min(at + self.eval_batch, count)) for at in range(0, count, self.eval_batch)]
        shares = list(distributed.own(shares))
        device = self.setup.device
        if self.val_activations is not None:
            yield from ((share, torch.from_numpy(self.val_activations[share]).to(device)) for share in shares)
        elif shares:
            pictures = self._pictures(np.concatenate([self.val_rows[share] for share in shares]))
            yield from ((share, self.frozen.engine(p.to(device))) for share, p in zip(shares, pictures, strict=True))

    def epochs(self, first: int) -> Iterator[Iterator[Batch]]:
        """The batches of each epoch from ``first`` on."""
        numbers = range(first, self.setup.recipe.epochs + 1)
        if self.stored_views:
            yield from map(self._stored_epoch, numbers)
            return
        loader = iter(self._loader(numbers))
        for _ in numbers:
            yield self._loaded_epoch(loader)

    def _stored_epoch(self, epoch: int) -> Iterator[Batch]:
        view = self.stored_views[(epoch - 1) % len(self.stored_views)]
        for rows in self._shuffled(epoch):
            yield torch.from_numpy(view[rows]).to(self.setup.device), torch.from_numpy(self.views.labels[rows])

    def _loaded_epoch(self, loader: Iterator[Batch]) -> Iterator[Batch]:
        for pictures, labels in islice(loader, self.steps):
            yield self.frozen.engine(pictures.to(self.setup.device, non_blocking=True)), labels

    def _loader(self, epochs: range) -> DataLoader[tuple[Tensor, int]]:
        """Batches of all ``epochs`` from the same processes: with others forked for each epoch, the kernel copies all
        memory that training writes to, every time."""
        device = self.setup.device
        return DataLoader(
            self.views,
            batch_sampler=([(epoch, n) for n in rows] for epoch in epochs for rows in self._shuffled(epoch)),
            generator=torch.Generator(),  # or it takes numbers from the one that training draws from
            num_workers=loaders(device),
            multiprocessing_context=START,
            pin_memory=device.type == "cuda",
        )

    def _shuffled(self, epoch: int) -> Iterator[list[int]]:
        """The training pictures of one epoch, this process's share of each batch, by number: a resumed run draws what the
        first would have."""
        order = torch.Generator().manual_seed(derived_seed(self.setup.recipe.own_seed, epoch))
        torch.empty((), dtype=torch.int64).random_(generator=order)  # as a DataLoader does before it shuffles
        batch = self.setup.recipe.settings.batch_size
        drop_last = len(self.views) > batch  # a last batch of one picture would shake batch-norm and the step alike
        shuffled = BatchSampler(RandomSampler(self.views, generator=order), batch, drop_last)
        return (list(distributed.own(numbers)) for numbers in shuffled)
