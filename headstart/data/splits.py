"""The splits: train to learn from, val to choose with, test for the one report at the end."""

from __future__ import annotations

import hashlib

SPLITS = ("train", "val", "test")
FEW_PICTURES = 100  # fewer validation pictures than these cannot tell good from lucky


def unit_hash(key: str, seed: int) -> float:
    """A hash in [0, 1), uniform over keys. Users' splits rely on it: it must never change."""
    digest = hashlib.sha256(f"{seed}\n{key}".encode()).digest()
    return int.from_bytes(digest[:8], "big") / 2**64


def split_of(key: str, seed: int, val: float, test: float) -> str:
    """The split of one picture or group, from its own key alone.

    Since nothing else counts, adding pictures never moves an earlier one, every class is split in the same proportions up
    to chance, and a larger ``test`` or ``val`` only takes pictures from train.
    """
    position = unit_hash(key, seed)
    return "test" if position < test else "val" if position >= 1 - val else "train"
