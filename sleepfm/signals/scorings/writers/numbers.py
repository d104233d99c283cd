"""Seconds as text."""

from __future__ import annotations


def decimal(seconds: float) -> str:
    """``seconds`` to the millisecond, with one digit behind the point at least."""
    text = f"{seconds:.3f}".rstrip("0")
    return text + "0" if text.endswith(".") else text


def shortest(seconds: float) -> str:
    """``seconds`` to the millisecond, without needless zeros."""
    return decimal(seconds).removesuffix(".0")
