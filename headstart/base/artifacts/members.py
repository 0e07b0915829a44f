"""Where the networks are that stand side by side."""

from __future__ import annotations

from pathlib import Path

from headstart.base.artifacts import BackboneFolder
from headstart.base.artifacts.card import Card
from headstart.base.paths import members_of


def member_folders(folder: Path) -> list[BackboneFolder]:
    """Where the networks are that stand side by side in ``folder``; for one network, ``folder`` itself."""
    files = BackboneFolder(folder)
    members = members_of(Card.read(files.card).name)
    return [files.member(member) for member in members] if len(members) > 1 else [files]


def first_of(folder: Path) -> BackboneFolder:
    """Where the first of the networks in ``folder`` is: the one that fine-tuning trains."""
    return member_folders(folder)[0]
