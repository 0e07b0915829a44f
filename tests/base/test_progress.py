"""A study of several trainings says which one runs, how far it is, and how long the rest takes, in a log too."""

from __future__ import annotations

import time

import pytest

from headstart.base import progress as module
from headstart.base.progress import hidden, pieces, progress
from headstart.base.terminal import say


class Clock:
    """Seconds that pass when a test says so."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = 0.0
        monkeypatch.setattr(time, "monotonic", lambda: self.now)


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    return Clock(monkeypatch)


def test_a_training_is_part_of_a_study_and_what_was_measured_gives_the_time_left(
    clock: Clock, capsys: pytest.CaptureFixture[str]
) -> None:
    with pieces("why", [0.0, 100.0, 300.0], "training") as piece:
        with piece("frozen"):
            clock.now += 40
            with progress("head", 2, "fits") as advance:
                advance()
        with piece("fine-tuned"):
            say("epoch 1")  # which a study of many trainings does not repeat
            for epoch in (1, 2):
                with progress(f"epoch {epoch}/2", 4, share=0.5) as advance:
                    for _ in range(4):
                        clock.now += 25
                        advance()
        with piece("from random weights"), progress("epoch 1/1", 10, share=1.0) as advance:
            clock.now += 60
            advance()
    out, err = capsys.readouterr()
    assert out == ""
    assert err.splitlines() == [
        "why: training 1 of 3, head: 1/2 (frozen)",
        "why: training 2 of 3, epoch 1/2: 1/4 (fine-tuned); about 13 minutes left",
        *(
            f"why: training 2 of 3, epoch 1/2: {n}/4 (fine-tuned); about {m} minutes left"
            for n, m in ((2, 12), (3, 12), (4, 12))
        ),
        *(f"why: training 2 of 3, epoch 2/2: {n}/4 (fine-tuned); about {m} minutes left" for n, m in ((1, 11), (2, 11))),
        *(f"why: training 2 of 3, epoch 2/2: {n}/4 (fine-tuned); about 10 minutes left" for n in (3, 4)),
        "why: training 3 of 3, epoch 1/1: 1/10 (from random weights); about 9 minutes left",
        "why: 3 trainings in 300.0 s",
    ]


def test_a_piece_that_says_nothing_does_not_make_a_log_silent(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(module, "LONGEST_SILENCE_S", 0.0)  # and a second between two looks at the clock
    told = ""
    with pieces("why", [1.0], "training") as piece, piece("fine-tuned"):
        while "fine-tuned" not in told:
            time.sleep(0.01)
            told += capsys.readouterr().err
    assert told.startswith("why: training 1 of 1, fine-tuned\n")


def test_nothing_is_shown_of_what_is_hidden_or_of_no_pieces(capsys: pytest.CaptureFixture[str]) -> None:
    with pieces("why", [], "training"):
        pass
    with hidden(), pieces("why", [1.0], "training") as piece, piece("fine-tuned"), progress("epoch", 1) as advance:
        advance()
    assert capsys.readouterr() == ("", "")
