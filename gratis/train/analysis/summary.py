"""What a recipe's network is, in numbers: `gratis summary`, `gratis summary --recipe owt`.

Shapes, parameters and multiplications per image, and what crosses between the towers, from the plan
that the network itself is built on. No data, no torch."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise

from rich.console import Console
from rich.table import Table

from gratis.train.network.layers import LayerSpec, plan
from gratis.train.options import Fields, read
from gratis.train.recipes import RELEASED, Layer, Recipe, RecipeName

FLOAT = 4  # bytes
WIDTH = 100  # columns: narrower cuts numbers
CLASSES = 1000  # by default


@dataclass(frozen=True, kw_only=True)
class Exchange:
    """What one boundary sends per image, in elements, both towers together.

    forward goes from each tower to the other; backward the partial gradients of the same features
    go back. Images and logits are not part of the 2012 network's exchanges: there the data were on
    both GPUs and fc8 on one alone."""

    what: str  # the layer that reads it, as `gather` names it
    source: str
    forward: int
    backward: int
    original: int  # of forward, and again of backward, in the 2012 system: fc7 went one way only


def exchanges(recipe: Recipe, classes: int) -> list[Exchange]:
    """Empty for one tower. Elements per image of the global batch."""
    if recipe.towers == 1:
        return []
    layers = plan(recipe, classes)
    names = list(layers)
    pixels = 3 * recipe.crop**2
    rows = [Exchange(what="images", source="loader", forward=pixels, backward=0, original=0)]
    for before, layer in pairwise(names):
        own = layers[layer]
        if own.groups > 1:
            continue
        dense = own.side == 1 and own.kernel == 1
        sent = own.inputs if dense else own.inputs * own.read_side**2
        source = f"pool{before[-1]}" if layers[before].pooled != layers[before].side else before
        original = sent // 2 if layer == "fc8" else sent
        row = Exchange(what=layer, source=source, forward=sent, backward=sent, original=original)
        rows.append(row)
    padded = classes + classes % 2  # the shorter half is padded
    rows.append(Exchange(what="logits", source="fc8", forward=padded, backward=padded, original=0))
    return rows


def backward_macs(layers: dict[Layer, LayerSpec]) -> int:
    """Per image: every layer's two products but conv1's gradient of the image, which nobody
    needs."""
    return sum(own.macs * (1 if layer == "conv1" else 2) for layer, own in layers.items())


@dataclass(frozen=True, kw_only=True)
class Summary:
    """Describes a recipe's network: layers, shapes, parameters, multiplications, and what crosses
    between towers."""

    recipe: RecipeName = "released"
    """Where the fields below begin."""
    fields: Fields = RELEASED


def main(arguments: list[str]) -> None:
    options = read(Summary, arguments, "released", "gratis summary")
    show(options.fields, options.fields.classes or CLASSES)


def show(recipe: Recipe, classes: int) -> None:
    console, batch = Console(width=max(WIDTH, Console().width)), recipe.batch
    layers = plan(recipe, classes)
    console.print(_layers_table(layers, recipe))
    parameters, macs = (
        sum(getattr(own, key) for own in layers.values()) for key in ("parameters", "macs")
    )
    gflops = 2 * (macs + backward_macs(layers)) / 1e9
    print(
        f"{parameters:,} parameters; {macs:,} multiplications per image forward; "
        f"{gflops:.3f} GFLOP to train it"
    )
    if rows := exchanges(recipe, classes):
        console.print(_exchange_table(rows, batch))
        both = 2 * sum(row.original for row in rows)
        sizes = f"{both * FLOAT:,} bytes an image, {_mb(both * batch)} a batch"
        print(f"of 2012's rows: both ways {sizes}")


def _layers_table(layers: dict[Layer, LayerSpec], recipe: Recipe) -> Table:
    table = Table(title=f"crop {recipe.crop}, towers {recipe.towers}")
    headings = ("layer", "weight", "output", "passes on", "parameters", "multiplications", "reads")
    for heading in headings:
        table.add_column(heading, justify="left" if heading in ("layer", "reads") else "right")
    for layer, own in layers.items():
        reads = "image" if layer == "conv1" else "own tower" if own.groups > 1 else "all"
        spatial = own.side > 1 or own.kernel > 1
        shapes = [
            f"{own.outputs}x{side}x{side}" if spatial else f"{own.outputs}"
            for side in (own.side, own.pooled)
        ]
        weight = "x".join(map(str, own.weight))
        table.add_row(layer, weight, *shapes, f"{own.parameters:,}", f"{own.macs:,}", reads)
    return table


def _exchange_table(rows: list[Exchange], batch: int) -> Table:
    wire = f"float32, batch {batch}; 16 bits on the wire: half"
    table = Table(title=f"between the towers, both directions, {wire}")
    for heading in ("from", "to", "elements an image", "forward", "backward", "2012, forward"):
        table.add_column(heading, justify="left" if heading in ("from", "to") else "right")
    for row in rows:
        sizes = (_mb(size * batch) for size in (row.forward, row.backward, row.original))
        table.add_row(row.source, row.what, f"{row.forward:,}", *sizes)
    return table


def _mb(elements: int) -> str:
    return f"{elements * FLOAT / 1e6:.2f} MB" if elements else "-"
