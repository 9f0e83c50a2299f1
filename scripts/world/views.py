"""Views: what is to be seen, drawn at random, and said in words."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from world.extras import GROUND_EXTRAS

SCENES: dict[str, tuple[str, ...]] = {
    "mountains": ("mountains", "a mountain range"),
    "sea": ("the sea", "a sea coast"),
    "city": ("a city skyline", "a city"),
    "forest": ("a forest", "a pine forest"),
    "desert": ("desert dunes", "a desert"),
    "meadow": ("a green meadow", "rolling meadow hills"),
    "room": ("an interior room", "a room with a window"),
    "stage": ("a product stage", "a round product podium"),
}
TIMES: tuple[str, ...] = ("dawn", "noon", "sunset", "night")
EXTRAS: dict[str, str] = {
    "clouds": "clouds",
    "birds": "birds",
    "balloon": "a balloon",
    "rainbow": "a rainbow",
    "snow": "falling snow",
    "mist": "mist",
    "sphere": "a sphere",
    "cube": "a cube",
    "arch": "an arch",
    "plant": "a plant",
    "lamp": "a lamp",
    "flag": "a flag",
}
PLURALS: dict[str, str] = {
    "balloon": "balloons",
    "sphere": "spheres",
    "cube": "cubes",
    "arch": "arches",
    "plant": "plants",
    "lamp": "lamps",
    "flag": "flags",
}
PLACES = ("left", "right", "two")


@dataclass(frozen=True, slots=True)
class View:
    """What is to be seen; ``seed`` places and shapes it.

    ``extras`` are keys of ``EXTRAS``; those of ``PLURALS`` may have one of ``PLACES`` behind an @,
    "lamp@left" for one. At most two stand on the ground.
    """

    scene: str
    time: str
    extras: tuple[str, ...]
    seed: int


def split_extra(extra: str) -> tuple[str, str]:
    """``"lamp@left"`` -> ("lamp", "left"); the place is "" where any will do."""
    name, _, place = extra.partition("@")
    return name, place


def extra_words(extra: str) -> str:
    """``"a lamp on the left"``, ``"two lamps"`` or ``"a lamp"``."""
    name, place = split_extra(extra)
    if place == "two":
        return f"two {PLURALS[name]}"
    return f"{EXTRAS[name]} on the {place}" if place else EXTRAS[name]


def random_view(rng: np.random.Generator, max_extras: int = 2, places: float = 0.0) -> View:
    """Draw a view; extras are distinct, and at most two stand on the ground.

    Args:
        rng: decides everything.
        max_extras: 0 to 4.
        places: the share of extras that are to be left, right or twice, of those that can be.
    """
    count = int(rng.choice(max_extras + 1, p=_extra_odds(max_extras)))
    names = [str(e) for e in rng.choice(list(EXTRAS), size=count, replace=False)]
    standing = [name for name in names if name in GROUND_EXTRAS]
    names = [name for name in names if name not in standing[2:]]
    extras, free = [], ["left", "right"]
    for name in names:
        options = [*free] if name in GROUND_EXTRAS else ["left", "right"]
        if name == "balloon" or len(standing) == 1:
            options.append("two")
        place = ""
        if name in PLURALS and places and rng.random() < places:
            place = str(rng.choice(options))
            if name in GROUND_EXTRAS and place in free:
                free.remove(place)
        extras.append(f"{name}@{place}" if place else name)
    scene, time = str(rng.choice(list(SCENES))), str(rng.choice(TIMES))
    return View(scene, time, tuple(extras), int(rng.integers(2**31)))


def is_held_out(view: View) -> bool:
    """Whether no stage of the mini base's training saw its composition: one in ten is left out."""
    key = "|".join((view.scene, view.time, *sorted(view.extras)))
    return sum(ord(c) * (i + 7) for i, c in enumerate(key)) % 10 == 0


def _extra_odds(max_extras: int) -> list[float]:
    weights = [1.0, 3.0, 3.0, 1.0, 1.0][: max_extras + 1]
    return [w / sum(weights) for w in weights]


_TEMPLATES = (
    "{scene} at {time} with {extras}",
    "{scene} at {time}, {extras}",
    "a {time} view of {scene} with {extras}",
    "background of {scene}, {time}, {extras}",
)
_BARE_TEMPLATES = (
    "{scene} at {time}",
    "a {time} view of {scene}",
    "background of {scene}, {time}",
)


def caption(view: View, template: int | None = None, rng: np.random.Generator | None = None) -> str:
    """Say the view in words.

    The wording follows the view's seed, or ``rng`` if given, unless a template is chosen:
    template 0 with the scene's first name is the plainest, "mountains at sunset with birds".
    """
    rng = rng or np.random.default_rng([view.seed, 0xCAFE])
    pick = int(rng.integers(1 << 20)) if template is None else template
    names = SCENES[view.scene]
    name = names[int(rng.integers(len(names)))] if template is None else names[0]
    words = " and ".join(extra_words(e) for e in view.extras)
    templates = _TEMPLATES if view.extras else _BARE_TEMPLATES
    return templates[pick % len(templates)].format(scene=name, time=view.time, extras=words)
