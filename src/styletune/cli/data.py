"""Commands on images and captions: init, data check, data captions, data caption."""

from __future__ import annotations

import dataclasses
import re
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import click

from styletune.cli.shared import clip, json_option, print_json, say
from styletune.errors import BadInput

if TYPE_CHECKING:
    from styletune.job.check import Answer


@click.command("init")
@click.argument("name")
@json_option
def init_command(name: str, as_json: bool) -> None:
    """Make a folder ready to fill: images with their card, recipe, evaluation suite."""
    from styletune.project.init import init_project

    folder = Path(name)
    written = init_project(folder, folder.name)
    if as_json:
        print_json({"dir": str(folder), "files": [str(file) for file in written]})
        return
    for file in written:
        click.echo(f"  {file}")
    click.echo(
        f"next: put images with captions into {folder / 'images'} and fill in its dataset.toml, "
        f"then\n  styletune data check {folder / 'recipe.toml'}"
    )


@click.group("data")
def data_group() -> None:
    """Look at a set of images before anything is trained on it."""


@data_group.command("check")
@click.argument("path", type=click.Path(path_type=Path))
@click.option("--report", type=click.Path(path_type=Path), help="Also write this HTML page.")
@click.option(
    "--resolution",
    type=click.IntRange(64, 4096),
    default=1024,
    show_default=True,
    help="Pixels to be trained at; of a recipe its own counts.",
)
@click.option("--default-caption", help="Caption of every image that has none.")
@click.option("--background", help='Colour under transparent pixels, "#rrggbb".')
@click.option(
    "--encoder",
    default="none",
    show_default=True,
    help='Also look for motifs and outliers: "mini", ARCHITECTURE/PRETRAINED or local-dir:FOLDER.',
)
@json_option
def data_check_command(
    path: Path,
    report: Path | None,
    resolution: int,
    default_caption: str | None,
    background: str | None,
    encoder: str,
    as_json: bool,
) -> None:
    """Check the images of PATH: a folder, an archive, a table, a Hub id, or a recipe.

    Nothing is changed. Exit 1 if there are errors: training would refuse the set.
    """
    if background is not None and not re.fullmatch("#[0-9a-fA-F]{6}", background):
        raise BadInput(f'"{background}" is not a colour', where="--background", fix='"#ffffff"')
    from styletune.job.check import check_path, check_recipe, recipe_or_data

    if recipe_or_data(path):
        source = click.get_current_context().get_parameter_source
        clash = [
            name
            for name in ("resolution", "default_caption", "background", "encoder")
            if source(name) is click.core.ParameterSource.COMMANDLINE
        ]
        if clash:
            raise BadInput(
                f"the recipe decides {clash[0]}",
                where=f"--{clash[0].replace('_', '-')}",
                fix=f"set data.{clash[0]} in {path}",
            )
        answer = check_recipe(path, show_progress=True)
    else:
        from styletune.data.check import CheckSettings

        settings = CheckSettings(
            resolution, default_caption=default_caption, background=background, encoder=encoder
        )
        answer = check_path(path, settings, show_progress=True)
    if answer.note:
        say(f"note: {answer.note}")
    if report is not None:
        from styletune.data.report.page import write_report

        write_report(answer.checked, report, title=answer.name)
    _print_check(answer, path, report, as_json)
    if answer.checked.errors:
        raise SystemExit(1)


def _print_check(answer: Answer, path: Path, report: Path | None, as_json: bool) -> None:
    from styletune.data.check import check_document

    result = check_document(answer.checked)
    if as_json:
        print_json(result.as_json())
        return
    from rich import box
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    from styletune.data.findings import said

    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, show_lines=True)
    table.add_column("")
    table.add_column("what", no_wrap=True)
    table.add_column("images", justify="right")
    table.add_column("says", overflow="fold")
    for found in answer.checked.findings:
        table.add_row(
            found.severity,
            found.code,
            str(len(found.files) or ""),
            escape(f"{clip(said(found))}\n→ {found.fix}"),
        )
    console = Console(width=110 if not sys.stdout.isatty() else None)
    if answer.checked.findings:
        console.print(table)
    palette = " ".join(f"{color.hex} {color.weight:.0%}" for color in result.palette)
    sides = list(result.split.values())
    click.echo(
        f"images   {result.images}, {result.readable} readable "
        f"({answer.hits} known from before)\n"
        f"split    {sides.count('train')} to train on, {sides.count('holdout')} held out, in "
        f"{len(result.groups)} groups of duplicates\n"
        f"palette  {palette}\n"
        f"verdict  {_counted(len(result.errors), 'error')}, "
        f"{_counted(len(result.warnings), 'warning')}: "
        + ("training would refuse this set" if result.errors else "ready to train")
    )
    if report is not None:
        click.echo(f"report   {report}")
    else:
        click.echo(f"next: styletune data check {path} --report data.html")


def _counted(number: int, word: str) -> str:
    return f"{number} {word}{'' if number == 1 else 's'}"


@data_group.command("captions")
@click.argument("folder", type=click.Path(path_type=Path))
@click.option("--trigger", help="Instead of the card's.")
@click.option("--apply", "applies", is_flag=True, help="Write the changes that are shown.")
@json_option
def data_captions_command(folder: Path, trigger: str | None, applies: bool, as_json: bool) -> None:
    """Show what can be mended in the captions of FOLDER as a diff; exit 1 if there is something."""
    from styletune.job.check import mend_captions

    mended = mend_captions(folder, trigger, applies=applies)
    if as_json:
        print_json(
            {
                "fixes": [dataclasses.asdict(fix) for fix in mended.fixes],
                "written": mended.written,
                "left": mended.left,
            }
        )
    else:
        click.echo(mended.diff or "nothing to mend")
        if mended.written:
            click.echo(f"written: {', '.join(mended.written)}")
        if mended.left:
            click.echo(f"not written, change them by hand: {', '.join(mended.left)}")
        elif mended.fixes and not applies:
            click.echo(f"next: styletune data captions {folder} --apply")
    if mended.left or (mended.fixes and not applies):
        raise SystemExit(1)


@data_group.command("caption")
@click.argument("folder", type=click.Path(path_type=Path))
@click.option(
    "--model", required=True, help="Image-to-text model: a folder, or a Hub id that is here."
)
@click.option("--revision", help="Commit of the Hub model.")
@click.option(
    "--template",
    default="{trigger}, {caption}",
    show_default=True,
    help="What is written; {trigger} is the card's.",
)
@click.option("--trigger", help="Instead of the card's.")
@click.option("--prompt", default="", help="What the model is asked; many need nothing.")
@click.option("--batch-size", type=click.IntRange(1, 1024), default=4, show_default=True)
@click.option("--redo", is_flag=True, help="Also replace captions of other machine settings.")
@json_option
def data_caption_command(
    folder: Path,
    model: str,
    revision: str | None,
    template: str,
    trigger: str | None,
    prompt: str,
    batch_size: int,
    redo: bool,
    as_json: bool,
) -> None:
    """Caption the images of FOLDER that have none, with a model; a person's are never touched."""
    from styletune.job.check import caption_folder

    captioned = caption_folder(
        folder,
        model=model,
        revision=revision,
        template=template,
        trigger=trigger,
        prompt=prompt,
        batch_size=batch_size,
        redo=redo,
    )
    if as_json:
        print_json(dataclasses.asdict(captioned))
        return
    click.echo(
        f"{len(captioned.written)} captions written to {folder / 'metadata.jsonl'}, "
        f"{len(captioned.kept)} kept, {len(captioned.empty)} still empty"
    )
    click.echo(f"next: read them, then styletune data check {folder}")
