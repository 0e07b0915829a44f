"""What an engine is."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor

Engine = Callable[[Tensor], Tensor]
