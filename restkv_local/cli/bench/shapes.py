"""`restkv-bench shapes`: models with random weights, for benchmarks without downloads."""

from __future__ import annotations

import sys
from pathlib import Path

import click

from ...errors import ConfigError
from ...models.shapes import BLOCKS, DEFAULT_TYPE, SHAPES, bytes_per_cell, can_have, n_weights, shape_of
from ...plan.machine import size
from ..failure import Command
from ..options import CONTEXT_SETTINGS


def shape_list() -> str:
    """One line per shape: sizes, bytes of a file of each type, bytes of a cell in an F16 cache."""
    from ...models.random_gguf import file_bytes

    lines = [f"{'shape':<16} layers  width  heads  KV heads  head size  weights   "
             f"{'  '.join(f'{kind:>8}' for kind in BLOCKS)}  KV cell"]  # fmt: skip
    for shape in SHAPES.values():
        files = "  ".join(
            f"{size(file_bytes(shape, shape.n_layer, kind)) if can_have(shape, kind) else '-':>8}" for kind in BLOCKS
        )
        lines.append(
            f"{shape.name:<16} {shape.n_layer:>6} {shape.n_embd:>6} {shape.n_head:>6} {shape.n_head_kv:>9} "
            f"{shape.head_dim:>10} {n_weights(shape, shape.n_layer) / 1e9:>7.2f}G   {files}  "
            f"{size(bytes_per_cell(shape, shape.n_layer)):>8}"
        )
    return "\n".join(lines)


def _show(ctx: click.Context, param: click.Parameter, value: bool) -> None:
    if value and not ctx.resilient_parsing:
        click.echo(shape_list())
        ctx.exit()


@click.command(cls=Command, context_settings=CONTEXT_SETTINGS)
@click.argument("name", metavar="SHAPE", type=click.Choice(tuple(SHAPES)))
@click.option("--layers", type=click.IntRange(min=1), default=None, help="Write so many layers only.")
@click.option(
    "--type", "kind", type=click.Choice(tuple(BLOCKS)), default=DEFAULT_TYPE, show_default=True,
    help="Type of every matrix.",
)
@click.option("--seed", type=click.IntRange(min=0), default=0, show_default=True, help="The same seed, the same file.")
@click.option(
    "--out", type=click.Path(path_type=Path), default=None,
    help="The file, or the folder to put it into.  [default: this folder]",
)
@click.option("--force", is_flag=True, help="Write over a file of that name.")
@click.option(
    "--list", is_flag=True, is_eager=True, expose_value=False, callback=_show, help="Show the shapes and their sizes."
)
def shapes(name: str, layers: int | None, kind: str, seed: int, out: Path | None, force: bool) -> None:
    """Write a model with random weights in the shape of a published one.

    It loads and runs as that model does, at its speed and in its memory; its answers make no sense.
    """
    from ...models.random_gguf import file_bytes, write

    shape, n_layer = shape_of(name, layers)
    path = out or Path()
    if path.is_dir():
        path = path / f"{name}-{n_layer}-layers.{kind.upper()}.gguf"
    if not path.parent.is_dir():
        raise ConfigError(f"there is no folder {path.parent}")
    if path.exists() and not force:
        raise ConfigError(f"{path} exists; --force writes over it")
    needs = size(file_bytes(shape, n_layer, kind))
    click.echo(f"{name}, {n_layer} of {shape.n_layer} layers, {kind}: {needs} into {path}", err=True)
    shown = -1

    def show(done: int, total: int) -> None:
        nonlocal shown
        percent = 100 * done // total
        if percent != shown and sys.stderr.isatty():
            shown = percent
            click.echo(f"\r{percent:3d} %", nl=False, err=True)

    write(path, name, n_layer=layers, kind=kind, seed=seed, on_progress=show)
    click.echo(f"\r{path}" if sys.stderr.isatty() else str(path), err=True)
