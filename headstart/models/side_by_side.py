"""Several networks that look at one picture, each with a view of its own: their features stand side by side.

One tensor holds all views of a picture (``View.beside``), so that whatever takes a network takes several.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from headstart.models.preprocessing import View


class SideBySide(nn.Module):
    """(N, 3, H, W) pictures, all views in one tensor and normalised as the first network's → (N, D) features of all."""

    def __init__(self, members: Sequence[nn.Module], view: View) -> None:
        """
        Args:
            members: each (N, 3, size, size) normalised pictures → (N, features).
            view: of all of them.
        """
        super().__init__()
        self.members = nn.ModuleList(members)
        tops, top = {}, 0
        for different in view.different:
            tops[different] = top
            top += different.size
        views = [view.first, *view.beside]
        self.places = [(tops[own.shown], own.size) for own in views]
        for number, own in enumerate(views):
            mean, std, first_mean, first_std = (
                torch.tensor(values).view(1, 3, 1, 1) for values in (own.mean, own.std, view.mean, view.std)
            )
            same = (own.mean, own.std) == (view.mean, view.std)
            self.register_buffer(f"scale{number}", None if same else first_std / std, persistent=False)
            self.register_buffer(f"shift{number}", None if same else (first_mean - mean) / std, persistent=False)

    def forward(self, pictures: Tensor) -> Tensor:
        return torch.cat([member(self.seen_by(number, pictures)) for number, member in enumerate(self.members)], dim=1)

    def seen_by(self, number: int, pictures: Tensor) -> Tensor:
        """(N, 3, size, size): the view of one of the networks, normalised as its publisher did."""
        top, size = self.places[number]
        seen = pictures[:, :, top : top + size, :size]
        scale, shift = getattr(self, f"scale{number}"), getattr(self, f"shift{number}")
        if scale is not None:
            seen = seen * scale + shift
        return seen.contiguous(memory_format=torch.channels_last)
