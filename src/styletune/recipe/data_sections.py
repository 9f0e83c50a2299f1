"""What a recipe says about its images: [data] and [[data.sources]]."""

from __future__ import annotations

import difflib
from typing import Annotated, Any, Literal, Self

from pydantic import BeforeValidator, Field, ValidationError, model_validator

from styletune.recipe.section import PathText, Section, as_tuple

MIN_RESOLUTION = 64
Side = Annotated[int, Field(ge=MIN_RESOLUTION, le=4096, multiple_of=8)]


class SourceSection(Section):
    """One of several places that images come from."""

    path: PathText = Field(
        min_length=1,
        description="Folder, .zip, .tar, .parquet, .arrow, or folder of such shards, relative to "
        'the recipe; or a Hub data set, "owner/name".',
    )
    revision: str | None = Field(
        None, min_length=1, description="Commit of the Hub data set to pin."
    )
    name: str | None = Field(
        None,
        pattern=r"^[^/\\\x00-\x1f]+$",
        description="Prefix of its images' names; the last part of path if left out.",
    )
    split: str = Field(
        "train", min_length=1, description="Which shards or folders of a Hub data set are read."
    )
    repeats: int = Field(1, ge=1, le=1000, description="How often each image appears per epoch.")
    weight: float = Field(1.0, gt=0, le=100, description="Weight of its images' loss.")
    default_caption: str | None = Field(
        None, description="Caption of its images that have none, instead of that of [data]."
    )
    image_column: str = Field("image", min_length=1, description="Column of a table's images.")
    caption_column: str = Field("text", min_length=1, description="Column of its captions.")


def _sources(value: object) -> object:
    """Sources from TOML; a fault in one is reported with its number and key."""
    if not isinstance(value, list):
        return value
    faults: list[str] = []
    sources = []
    for number, table in enumerate(value, start=1):
        try:
            sources.append(SourceSection.model_validate(table))
        except ValidationError as error:
            faults += [f"source {number}: {_fault(item)}" for item in error.errors()]
    if faults:
        raise ValueError("; ".join(faults))
    return tuple(sources)


def _fault(item: Any) -> str:
    key = ".".join(str(part)[:80] for part in item["loc"]) or "table"
    if item["type"] == "missing":
        return f'missing key "{key}"'
    if item["type"] == "extra_forbidden":
        known = sorted(SourceSection.model_fields)
        near = difflib.get_close_matches(key, known, n=1)
        meant = f'did you mean "{near[0]}"? ' if near else ""
        return f'unknown key "{key}"; {meant}known keys: {", ".join(known)}'
    return f"{key}: {item['msg'][0].lower()}{item['msg'][1:]}"


# Errors in the images that a recipe may lower to warnings.
AllowedCode = Literal[
    "unreadable-image",
    "foreign-file",
    "unread-caption-file",
    "empty-caption",
    "placeholder",
    "too-long-caption",
    "too-small",
    "missing-rights",
    "bad-license",
]


class DataSection(Section):
    """The curated images: either path, or one [[data.sources]] table for each place."""

    path: PathText | None = Field(
        None,
        min_length=1,
        description="Folder, .zip, .tar, .parquet, .arrow, or folder of such shards, relative to "
        'the recipe; or a Hub data set, "owner/name".',
    )
    sources: Annotated[tuple[SourceSection, ...], BeforeValidator(_sources)] = Field(
        (), description="Several places, each with keys of its own, instead of path."
    )
    default_caption: str | None = Field(
        None, description="Caption of every image that has none; without it they are an error."
    )
    background: str | None = Field(
        None,
        pattern="^#[0-9a-fA-F]{6}$",
        description="Color under transparent pixels, instead of the data set card's.",
    )
    holdout: float = Field(
        0.2, ge=0, lt=1, description="Share of images held out from training, for scoring."
    )
    folds: int | None = Field(
        None,
        ge=2,
        le=20,
        description="Instead of holdout: split the images into this many parts and hold one out, "
        "to repeat a run with each part in turn.",
    )
    fold: int = Field(0, ge=0, le=19, description="Which of the folds is held out, from 0.")
    allow: Annotated[tuple[AllowedCode, ...], BeforeValidator(as_tuple)] = Field(
        (),
        description="Errors that become warnings; an unreadable image is then left out.",
    )
    require_rights: bool = Field(
        False, description="Train only when every image has license, holder, consent and source."
    )
    opt_out_override: str | None = Field(
        None,
        pattern=r"\S",
        description="Who decided, and why, that images whose XMP prohibits training may be used.",
    )
    encoder: PathText = Field(
        "none",
        min_length=1,
        description="Image encoder that finds and reports pictures of one motif: a name as in a "
        'suite\'s [encoder], or "none" to compare pixels only.',
    )
    resolution: Side | None = Field(
        None,
        description="Size to train at: the side of a square of the same area as the images' "
        "crops; the base model's own if left out.",
    )
    extra_resolutions: Annotated[tuple[Side, ...], BeforeValidator(as_tuple)] = Field(
        (),
        description="Additional sizes at which every image is trained, for adapters that are to "
        "work at several.",
    )
    buckets: bool = Field(
        True,
        description="Crop every image to the nearest of several shapes (aspect buckets), so that "
        "wide ones stay wide; false crops them all to squares.",
    )
    bucket_step: int | None = Field(
        None,
        ge=8,
        le=512,
        multiple_of=8,
        description="Sides of buckets are multiples of this; 64 if left out, 32 below 512 px.",
    )
    max_aspect: float = Field(
        2.0,
        ge=1,
        le=8,
        description="Largest aspect ratio of a bucket: its long side over its short side.",
    )
    flip: bool = Field(False, description="Also train on every image mirrored.")
    mask: Literal["none", "alpha", "folder"] = Field(
        "none",
        description="Where the loss counts: everywhere, where the image is opaque, or where a "
        "mask image in mask_path is white. Elsewhere nothing is learned.",
    )
    mask_path: PathText | None = Field(
        None, description='Folder of masks named like their images, for mask = "folder".'
    )
    mask_floor: float = Field(
        0.0,
        ge=0,
        lt=1,
        description="Weight of the loss outside the mask, where 1 is as much as inside.",
    )
    caption_variants: int = Field(
        1,
        ge=1,
        le=64,
        description="How many versions of each caption are made; each step picks one. They are "
        "encoded once, so they cost no training time.",
    )
    caption_shuffle: bool = Field(
        False,
        description="Shuffle the comma-separated parts of a caption in each version, so that the "
        "order is not learned.",
    )
    caption_keep_first: int = Field(
        0,
        ge=0,
        description="How many parts at the start stay in place and are never dropped, such as "
        "the trigger word.",
    )
    caption_tag_dropout: float = Field(
        0.0,
        ge=0,
        lt=1,
        description="Chance that a part of the caption is left out of a version, so that the "
        "adapter does not depend on single words.",
    )

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if (self.path is None) == (not self.sources):
            raise ValueError("give either path or [[data.sources]]")
        if self.fold >= (self.folds or 1):
            raise ValueError(f"fold = {self.fold} needs folds above {self.fold}")
        # A resolved recipe spells the default out and must load again.
        if self.folds and "holdout" in self.model_fields_set and self.holdout != 0.2:
            raise ValueError("folds decide what is held out: leave holdout out")
        if (self.mask == "folder") != (self.mask_path is not None):
            raise ValueError('mask = "folder" and mask_path go together')
        if self.mask_floor and self.mask == "none":
            raise ValueError("mask_floor needs a mask")
        varied = self.caption_shuffle or self.caption_tag_dropout > 0
        if varied != (self.caption_variants > 1):
            raise ValueError(
                "caption_variants above 1 goes together with caption_shuffle or caption_tag_dropout"
            )
        return self
