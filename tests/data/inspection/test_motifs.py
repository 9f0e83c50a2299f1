"""Motifs and strangers by features; the embedded encoder on renders of its own world."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image

import world
from styletune.data.findings import CODES
from styletune.data.inspection.duplicates import ImageGroup
from styletune.data.inspection.motifs import Features, look_findings, motif_groups, outliers
from styletune.encoders.clip import encode_images, load_clip


def circle(*degrees: float) -> Features:
    angle = np.deg2rad(np.array(degrees))
    return np.stack([np.cos(angle), np.sin(angle)], 1).astype(np.float32)


def test_near_directions_are_one_motif() -> None:
    """Within the threshold they group, beyond they do not, and single ones stay out."""
    features = circle(0, 5, 60, 65, 120)
    assert motif_groups(features, list("abcde"), [], threshold=0.99) == [
        ImageGroup("motif", ("a", "b")),
        ImageGroup("motif", ("c", "d")),
    ]
    assert motif_groups(features, list("abcde"), [], threshold=0.9999) == []


def test_chains_of_small_steps_do_not_become_one_motif() -> None:
    """Everyone in a group is near everyone else, however many lie between."""
    features = circle(*range(0, 90, 3))
    names = [f"{i:02}" for i in range(30)]
    groups = motif_groups(features, names, [], threshold=float(np.cos(np.deg2rad(10))))
    assert groups
    assert max(len(group.files) for group in groups) <= 4


def test_variants_alone_are_no_motif_but_join_one() -> None:
    """A near group stands for one picture; with another picture, all its files are listed."""
    near = [ImageGroup("near", ("a", "b"))]
    assert motif_groups(circle(0, 1, 90), list("abc"), near) == []
    assert motif_groups(circle(0, 40, 3), list("abc"), near) == [
        ImageGroup("motif", ("a", "b", "c"))
    ]
    gone = [ImageGroup("near", ("a", "z"))]
    assert motif_groups(circle(0, 90), ["a", "c"], gone) == []


def test_a_far_image_is_an_outlier() -> None:
    """One of twelve points the other way; of seven images none is said to be far."""
    features = circle(*range(0, 33, 3), 180)
    names = [f"{i:02}" for i in range(12)]
    assert [name for name, _ in outliers(features, names)] == ["11"]
    assert outliers(features[:11], names[:11]) == []
    assert outliers(features[-7:], names[-7:]) == []


def test_variants_of_a_far_image_do_not_hide_it() -> None:
    """Four copies of one picture are near each other, but all are far from the other pictures."""
    features = circle(*range(0, 33, 3), 180, 180, 180, 180)
    names = [f"{i:02}" for i in range(15)]
    copies = ImageGroup("near", ("11", "12", "13", "14"))
    assert outliers(features, names) == []
    assert [name for name, _ in outliers(features, names, [copies])] == ["11", "12", "13", "14"]


def test_the_mini_encoder_groups_one_place_at_one_hour() -> None:
    """On renders of its world every motif is of one scene and hour, and there are some."""
    rng = np.random.default_rng(0)
    views = [world.random_view(rng) for _ in range(120)]
    encoder = load_clip("mini", Path(), "cpu")
    images = [Image.fromarray(world.render(view)) for view in views]
    features = encode_images(encoder, images).astype(np.float32)
    groups = motif_groups(features, [f"{i:03}" for i in range(120)], [])
    shown = [{(views[int(f)].scene, views[int(f)].time) for f in g.files} for g in groups]
    assert len(shown) >= 3
    assert all(len(kinds) == 1 for kinds in shown)


def test_findings_name_every_file() -> None:
    """One finding a motif, one for all outliers, one for all off the palette; else none."""
    motifs = [
        ImageGroup("motif", ("a", "b")),
        ImageGroup("near", ("c", "d")),
        ImageGroup("motif", ("e", "f")),
    ]
    found = look_findings(motifs, [("x", 0.5)], [("y", 31.0), ("z", 30.0)])
    assert [(f.code, f.files) for f in found] == [
        ("same-motif", ("a", "b")),
        ("same-motif", ("e", "f")),
        ("outlier", ("x",)),
        ("off-palette", ("y", "z")),
    ]
    assert all(CODES[f.code][0] == f.severity for f in found)
    assert look_findings([]) == []
