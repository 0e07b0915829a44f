"""Numbers with their 95% intervals, as sentences have them."""

from __future__ import annotations


def signed(number: float, digits: int) -> str:
    """With its sign, unless nothing but zeros is left of it."""
    text = f"{number:+.{digits}f}"
    return text if float(text) else text[1:]


def share(value: float, low: float, high: float, digits: int = 0) -> str:
    """``83% (80–86)``. An interval that is as narrow as what is written is left out."""
    written, *ends = (f"{100 * each:.{digits}f}" for each in (value, low, high))
    return f"{written}%" if ends == [written, written] else f"{written}% ({ends[0]}–{ends[1]})"


def points(value: float, low: float, high: float, digits: int = 1) -> str:
    """``+1.6 points (-0.3 to +3.5)``, of a difference in points; likewise without an interval that says nothing."""
    written, *ends = (signed(each, digits) for each in (value, low, high))
    return f"{written} points" if ends == [written, written] else f"{written} points ({ends[0]} to {ends[1]})"


def log_loss_difference(value: float, low: float, high: float) -> str:
    """``0.012 (-0.003 to +0.027)``, whose direction the sentence says; likewise."""
    ends = [signed(each, 3) for each in (low, high)]
    return f"{value:.3f}" if ends[0] == ends[1] else f"{value:.3f} ({ends[0]} to {ends[1]})"
