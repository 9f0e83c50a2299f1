"""The procedural world that the mini base knows: backgrounds drawn from words and a seed.

A view is (scene, time of day, extras, seed). A *look* (palette, texture, lines) is applied to the
same geometry, so any view can be drawn in any look, and ``truth`` says what is where in it. That
makes the world the ground truth of every test: unlimited held-out images of a brand, with known
captions, depths, edges, materials and masks.

Coordinates are in units of 1/128 of the image side, whatever the side in pixels.
"""

from world.canvas import UNITS
from world.drawing import MATERIAL_NAMES, Pixels, Truth, render, truth
from world.looks import (
    ACCENTED,
    HORIZON,
    HORIZON_PALETTE,
    NATURAL,
    Look,
    Rgb,
    jittered_natural,
    random_look,
)
from world.views import (
    EXTRAS,
    PLURALS,
    SCENES,
    TIMES,
    View,
    caption,
    extra_words,
    is_held_out,
    random_view,
    split_extra,
)

__all__ = [
    "ACCENTED",
    "EXTRAS",
    "HORIZON",
    "HORIZON_PALETTE",
    "MATERIAL_NAMES",
    "NATURAL",
    "PLURALS",
    "SCENES",
    "TIMES",
    "UNITS",
    "Look",
    "Pixels",
    "Rgb",
    "Truth",
    "View",
    "caption",
    "extra_words",
    "is_held_out",
    "jittered_natural",
    "random_look",
    "random_view",
    "render",
    "split_extra",
    "truth",
]
