"""Which picture is for training, which for choosing, which for the one report at the end."""

from __future__ import annotations

import hashlib

SPLITS = ("train", "val", "test")


def place(key: str, seed: int) -> float:
    """Where ``key`` falls in [0, 1): uniform over keys, the same for ever."""
    digest = hashlib.sha256(f"{seed}\n{key}".encode()).digest()
    return int.from_bytes(digest[:8], "big") / 2**64


def split_of(key: str, seed: int, val: float, test: float) -> str:
    """The split of one picture or group, from its own key alone.

    Because nothing else is looked at, adding pictures never moves one that was there before, each class is cut in the
    same proportions up to chance, and a larger ``test`` only takes pictures from ``train``'s end of the scale.
    """
    at = place(key, seed)
    return "test" if at < test else "val" if at >= 1 - val else "train"
