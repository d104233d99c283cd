"""Colours of the pages and pictures, one set for light pages and paper and one for dark pages.

Tests hold text to a contrast of 4.5 to 1 and lines and areas to 3 to 1 (WCAG 2.2, 1.4.3 and 1.4.11), and hold the colours of
stages, and of events, apart under simulated protanopia, deuteranopia and tritanopia. Nothing is told by colour alone.
"""

from __future__ import annotations

from sleepfm.constants import STAGE_NAMES

LIGHT = {
    "paper": "#ffffff",
    "tint": "#f4f6f8",
    "ink": "#1d2a35",
    "soft": "#54626f",
    "line": "#d9e0e6",
    "accent": "#1f62a0",
    "edge": "#7f8c98",
    "notice": "#fff4d6",
    "notice-ink": "#4a3500",
    "stage-w": "#c0870a",
    "stage-n1": "#2e8fe0",
    "stage-n2": "#113f7c",
    "stage-n3": "#070b16",
    "stage-rem": "#c6415c",
    "apnea": "#8c2d92",
    "hypopnea": "#007a5e",
    "desaturation": "#c04a00",
    "arousal": "#1f2937",
    "good": "#4f7f9f",
    "flagged": "#a06a00",
    "lost": "#9a3040",
}
DARK = {
    "paper": "#12181e",
    "tint": "#1b232b",
    "ink": "#e8edf2",
    "soft": "#a9b6c2",
    "line": "#2e3943",
    "accent": "#7db8f0",
    "edge": "#76838f",
    "notice": "#3a2f10",
    "notice-ink": "#ffe6a6",
    "stage-w": "#dd8d12",
    "stage-n1": "#e7f3f9",
    "stage-n2": "#63b8ea",
    "stage-n3": "#395dd1",
    "stage-rem": "#ef3176",
    "apnea": "#d68ae0",
    "hypopnea": "#2fc79c",
    "desaturation": "#ff9550",
    "arousal": "#eef2f6",
    "good": "#6fa5c8",
    "flagged": "#e0a83e",
    "lost": "#f07f90",
}
STAGE_COLOURS = {name: LIGHT[f"stage-{name.lower()}"] for name in STAGE_NAMES}
EVENT_COLOURS = {name: LIGHT[name] for name in ("apnea", "hypopnea", "desaturation", "arousal")}
