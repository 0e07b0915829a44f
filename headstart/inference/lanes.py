"""Decoding for the server: cheap requests never wait for expensive ones."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from typing import TypeVar

from fastapi import HTTPException

from headstart.data.decode import Array, Unusable
from headstart.data.decoders import Allowance, Decoders, Rules

T = TypeVar("T")

SECONDS_PER_REQUEST = 20.0  # of processor time for decoding
SECONDS_PER_HEADER = 1.0
# Pixels per byte from which a file counts as one that was made to be expensive. Photographs have 1 to 40.
SUSPICIOUS, SURCHARGE = 100, 10
MAX_WAITING = 2000  # megapixels of the requests in one lane
OVERLOADED = 503, "the server is overloaded; try again in a moment", {"Retry-After": "1"}


@dataclass
class Lane:
    """Processes for requests of a certain size.

    Attributes:
        megapixels: of the largest request that it takes. The pixels of a suspicious one count ten times.
        waiting: megapixels of the requests that it has taken and not answered.
    """

    megapixels: float
    processes: int
    decoders: Decoders
    threads: ThreadPoolExecutor
    waiting: float = 0.0


class Lanes:
    """Decodes the pictures of requests in processes that can be stopped.

    A request goes into the first of three lanes that is wide enough for its pictures together. The wider a lane, the more
    it gives way to everything else on the machine, so that an expensive request slows others down only a little; and only
    one of the most expensive is decoded at a time.
    """

    def __init__(self, rules: Rules, processes: int) -> None:
        self.rules = rules
        self._lanes = [
            _lane(rules, megapixels, count, nice) for megapixels, count, nice in ((2, processes, 0), (25, processes, 5))
        ]
        self._lanes.append(_lane(rules, rules.max_megapixels * SURCHARGE, 1, 10))

    def start(self) -> None:
        """Start the first process before anyone waits for it."""
        self._lanes[0].threads.submit(self._lanes[0].decoders.start_one)

    def close(self) -> None:
        with ExitStack() as stack:
            for lane in self._lanes:
                stack.callback(lane.decoders.close)
                stack.callback(lane.threads.shutdown, cancel_futures=True)

    async def decode(self, files: Sequence[bytes], then: Callable[[Array], T]) -> list[T]:
        """What ``then`` makes of each picture, in the thread that decoded it, so that large ones never pile up.

        Raises:
            HTTPException: 422 a picture cannot be used, 413 they are too large together, 503 too many are waiting.
        """
        allowance = Allowance(SECONDS_PER_REQUEST)
        pixels: list[int] = []

        def size(data: bytes) -> tuple[int, int]:
            width, height = self._lanes[0].decoders.size(data, Allowance(SECONDS_PER_HEADER))
            pixels.append(width * height)
            if sum(pixels) > self.rules.max_megapixels * 1e6:
                most = f"{self.rules.max_megapixels:g} megapixels"
                raise HTTPException(413, f"the pictures of this request have more than {most} together")
            return width, height

        sizes = await _all([partial(size, data) for data in files], self._lanes[0])
        megapixels = sum(pixels) / 1e6
        if megapixels * 1e6 > SUSPICIOUS * sum(map(len, files)):
            megapixels *= SURCHARGE
        lane = next(lane for lane in self._lanes if megapixels <= lane.megapixels)
        if lane.waiting and lane.waiting + megapixels > MAX_WAITING:
            raise HTTPException(*OVERLOADED)
        lane.waiting += megapixels
        try:
            work = [partial(_decode, lane, data, size, allowance, then) for data, size in zip(files, sizes, strict=True)]
            return await _all(work, lane)
        finally:
            lane.waiting -= megapixels


def _lane(rules: Rules, megapixels: float, processes: int, nice: int) -> Lane:
    largest = min(megapixels, rules.max_megapixels)
    decoders = Decoders(processes, rules, largest, nice)
    return Lane(megapixels, processes, decoders, ThreadPoolExecutor(processes, f"decode {largest:g}"))


def _decode(lane: Lane, data: bytes, size: tuple[int, int], allowance: Allowance, then: Callable[[Array], T]) -> T:
    return then(lane.decoders.decode(data, size, allowance))


async def _all(work: Sequence[Callable[[], T]], lane: Lane) -> list[T]:
    """The results of ``work`` in the lane's threads. A request has only as many pictures there as there are processes, so
    that others get their turn. After a failure, what has not begun is not begun.
    """
    turns = asyncio.Semaphore(lane.processes)

    async def one(job: Callable[[], T]) -> T:
        async with turns:
            return await asyncio.get_running_loop().run_in_executor(lane.threads, job)

    tasks = [asyncio.ensure_future(one(job)) for job in work]
    try:
        return await asyncio.gather(*tasks)
    except Unusable as reason:
        raise HTTPException(422, str(reason).replace("prepare.max_megapixels", "this server's limit")) from None
    finally:
        for task in tasks:
            task.cancel()
