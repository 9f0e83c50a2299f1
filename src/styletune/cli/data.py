"""Commands on images and captions: init, data check, data captions, data caption."""

from __future__ import annotations

import dataclasses
import re
import shlex
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import click

from styletune import api
from styletune.cli.shared import clip, computes, gathered, json_option, print_json, say
from styletune.errors import BadInput

if TYPE_CHECKING:
    from styletune.data.captions.folder import FolderFixes


@click.command("init")
@click.argument("name")
@json_option
def init_command(name: str, as_json: bool) -> None:
    """Create a project folder: data set card, recipe and evaluation suite, ready to fill in."""
    folder = Path(name)
    written = api.init_project(folder)
    if as_json:
        print_json({"dir": str(folder), "files": [str(file) for file in written]})
        return
    for file in written:
        click.echo(f"  {file}")
    click.echo(
        f"put images with captions into {folder / 'images'} and fill in its dataset.toml, then\n"
        f"next: {shlex.join(['styletune', 'data', 'check', str(folder / 'recipe.toml')])}"
    )


@click.group("data")
def data_group() -> None:
    """Check and caption images before training on them."""


@dataclasses.dataclass(frozen=True, slots=True)
class CheckSettings:
    """How a set on its own is judged, as the options of the same names say it."""

    resolution: int
    default_caption: str | None
    background: str | None
    encoder: str


@data_group.command("check")
@click.argument("path", type=click.Path(path_type=Path))
@click.option("--report", type=click.Path(path_type=Path), help="Also write this HTML page.")
@click.option(
    "--resolution",
    type=click.IntRange(64, 4096),
    default=1024,
    show_default=True,
    help="Training resolution in pixels; a recipe's own wins.",
)
@click.option("--default-caption", help="Caption of images without one.")
@click.option("--background", help='Color under transparent pixels, "#rrggbb".')
@click.option(
    "--encoder",
    default="none",
    show_default=True,
    help='Also find motifs and outliers: "mini", ARCHITECTURE/PRETRAINED or local-dir:FOLDER.',
)
@json_option
@gathered("settings", CheckSettings)
@computes
def data_check_command(
    path: Path, report: Path | None, settings: CheckSettings, as_json: bool
) -> None:
    """Check the images of PATH: a folder, an archive, a table, a Hub id, or a recipe.

    Nothing is changed. Exit 1 if there are errors: training would refuse the set.
    """
    background = settings.background
    if background is not None and not re.fullmatch("#[0-9a-fA-F]{6}", background):
        raise BadInput(f'"{background}" is not a color', where="--background", fix='"#ffffff"')
    if _is_recipe(path):
        _refuse_recipe_keys(path)
        data = api.check_data(api.load_recipe(path))
    else:
        data = api.check_data(
            path,
            resolution=settings.resolution,
            default_caption=settings.default_caption,
            background=background,
            encoder=settings.encoder,
        )
    if data.note:
        say(f"note: {data.note}")
    if report is not None:
        data.write_page(report)
    if as_json:
        print_json(data.result.as_json())
    else:
        _print_check(data, report)
    if data.checked.errors:
        raise SystemExit(1)


def _is_recipe(path: Path) -> bool:
    """Whether a path means a recipe, by its name. Raises BadInput for a data set card."""
    if path.name.endswith("dataset.toml"):
        raise BadInput(
            "is the card of a data set", where=str(path), fix=f"give its folder, {path.parent}"
        )
    return path.suffix.lower() == ".toml"


def _refuse_recipe_keys(recipe: Path) -> None:
    """Raise BadInput if an option was given that the recipe decides."""
    source = click.get_current_context().get_parameter_source
    for name in ("resolution", "default_caption", "background", "encoder"):
        if source(name) is click.core.ParameterSource.COMMANDLINE:
            raise BadInput(
                f"the recipe decides {name}",
                where=f"--{name.replace('_', '-')}",
                fix=f"set data.{name} in {recipe}",
            )


def _print_check(result: api.DataReport, report: Path | None) -> None:
    from rich import box
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    from styletune.data.findings import finding_line

    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, show_lines=True)
    table.add_column("")
    table.add_column("finding", no_wrap=True)
    table.add_column("images", justify="right")
    table.add_column("details", overflow="fold")
    checked = result.checked
    for finding in checked.findings:
        table.add_row(
            finding.severity,
            finding.code,
            str(len(finding.files) or ""),
            escape(f"{clip(finding_line(finding))}\n→ {finding.fix}"),
        )
    console = Console(width=110 if not sys.stdout.isatty() else None)
    if checked.findings:
        console.print(table)
    palette = " ".join(f"{color} {weight:.0%}" for color, weight in checked.palette.extracted)
    sides = list(checked.sides.values())
    click.echo(
        f"images   {len(checked.items)}, {len(checked.facts)} readable "
        f"({result.hits} known from before)\n"
        f"split    {sides.count('train')} to train on, {sides.count('holdout')} held out; "
        f"{_counted(len(checked.groups), 'group')} of duplicates\n"
        f"palette  {palette}\n"
        f"verdict  {_counted(len(checked.errors), 'error')}, "
        f"{_counted(len(checked.warnings), 'warning')}: "
        + ("training would refuse this set" if checked.errors else "ready to train")
    )
    if report is not None:
        click.echo(f"report   {report}")
    else:
        click.echo(f"next: {_same_command('--report', 'data.html')}")


def _same_command(*more: str) -> str:
    """The running command with the options that were given, as it can be typed, and more."""
    context = click.get_current_context()
    names: list[str] = []
    part = context
    while part.parent is not None:
        names.insert(0, part.info_name or "")
        part = part.parent
    words = ["styletune", *names]
    for parameter in context.command.params:
        name = parameter.name or ""
        value = context.params.get(name)
        if context.get_parameter_source(name) is not click.core.ParameterSource.COMMANDLINE:
            continue
        if isinstance(parameter, click.Argument):
            words.append(str(value))
        else:
            words += [parameter.opts[0]] if value is True else [parameter.opts[0], str(value)]
    return shlex.join([*words, *more])


def _counted(number: int, word: str) -> str:
    return f"{number} {word}{'' if number == 1 else 's'}"


@data_group.command("captions")
@click.argument("folder", type=click.Path(path_type=Path))
@click.option("--trigger", help="Use this instead of the card's.")
@click.option("--apply", "write", is_flag=True, help="Write the changes shown.")
@json_option
def data_captions_command(folder: Path, trigger: str | None, write: bool, as_json: bool) -> None:
    """Show caption fixes for FOLDER as a diff; exit 1 if any remain to be made."""
    result = api.fix_captions(folder, trigger=trigger, write=write)
    if as_json:
        print_json(
            {
                "fixes": [dataclasses.asdict(fix) for fix in result.fixes],
                "written": result.written,
                "left": result.left,
            }
        )
    else:
        _print_fixes(result, write)
    if result.left or (result.fixes and not write):
        raise SystemExit(1)


def _print_fixes(result: FolderFixes, write: bool) -> None:
    click.echo(result.diff or "nothing to fix")
    if result.written:
        click.echo(f"written: {', '.join(result.written)}")
    if result.left:
        click.echo(f"not written, change them by hand: {', '.join(result.left)}")
    elif result.fixes and not write:
        click.echo(f"next: {_same_command('--apply')}")


@dataclasses.dataclass(frozen=True, slots=True)
class Captioning:
    """How captions are written, as the options of the same names say it."""

    model: str
    revision: str | None
    template: str
    trigger: str | None
    prompt: str
    batch_size: int
    redo: bool


@data_group.command("caption")
@click.argument("folder", type=click.Path(path_type=Path))
@click.option(
    "--model", required=True, help="Image-to-text model: a folder, or a Hub id on this machine."
)
@click.option("--revision", help="Commit of the Hub model.")
@click.option(
    "--template",
    default="{trigger}, {caption}",
    show_default=True,
    help="Caption to write; {trigger} is the card's.",
)
@click.option("--trigger", help="Use this instead of the card's.")
@click.option("--prompt", default="", help="Question to the model; many need none.")
@click.option("--batch-size", type=click.IntRange(1, 1024), default=4, show_default=True)
@click.option(
    "--redo", is_flag=True, help="Also replace captions that a model wrote with other settings."
)
@json_option
@gathered("captioning", Captioning)
@computes
def data_caption_command(folder: Path, captioning: Captioning, as_json: bool) -> None:
    """Caption images of FOLDER without a caption using a model; people's are never touched."""
    captioned = api.write_captions(
        folder,
        captioning.model,
        revision=captioning.revision,
        template=captioning.template,
        trigger=captioning.trigger,
        prompt=captioning.prompt,
        batch_size=captioning.batch_size,
        redo=captioning.redo,
    )
    if as_json:
        print_json(dataclasses.asdict(captioned))
        return
    click.echo(
        f"{len(captioned.written)} captions written to {folder / 'metadata.jsonl'}, "
        f"{len(captioned.kept)} kept, {len(captioned.empty)} still empty"
    )
    click.echo(f"next: read them, then styletune data check {folder}")
