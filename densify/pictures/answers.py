"""What two networks answer to one image, every sample where it looks."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from torch import Tensor, nn

from densify.choose import survey
from densify.comparison import evaluating, named_outputs
from densify.conversion import Dense, inspect, inverse
from densify.errors import UsageError
from densify.graphs.onnx.read import Reading, read
from densify.maps import Map, Position, positions
from densify.onnx.conversion import DenseOnnx
from densify.onnx.metadata import of_original
from densify.onnx.model import OnnxModel
from densify.onnx.runtime import Runtime, plain
from densify.onnx.verification import reference_graph
from densify.originals import Reference
from densify.pictures.placed import PlacedMap
from densify.planning import at_sizes
from densify.plans import Plan

Network = nn.Module | DenseOnnx | OnnxModel


@dataclass(frozen=True, eq=False)
class Answers:
    """One output of two networks.

    Attributes:
        output: its name.
        first, second: the original's map and the dense one's, or of two networks of one kind the two in order.
        features: whether the channels are features, not predictions.
        merged: whether the second is made of several phases (see :class:`densify.maps.Merged`).
        alike: whether neither or both are dense.
    """

    output: str
    first: PlacedMap
    second: PlacedMap
    features: bool = False
    merged: str = ""
    alike: bool = False


def answers(original: Network | None, dense: Network, image: Tensor) -> dict[str, Answers | str]:
    """All outputs of two networks on one image [1, C, H, W], by name; a text says why one cannot be drawn.

    Args:
        original: None for the dense network's own original. Where neither or both are dense, the two are compared as
            they are.

    Raises:
        UsageError: a torch network and an ONNX graph, or outputs of other names.
    """
    if not isinstance(dense, Dense | DenseOnnx) and isinstance(original, Dense | DenseOnnx):
        original, dense = dense, original
    if original is not None and isinstance(original, nn.Module) != isinstance(dense, nn.Module):
        raise UsageError("a torch network and an ONNX graph: compare networks of one kind, such as two .onnx files.")
    if original is not None and isinstance(original, Dense | DenseOnnx) == isinstance(dense, Dense | DenseOnnx):
        return _alike(original, dense, image)
    if isinstance(dense, Dense) and not isinstance(original, DenseOnnx | OnnxModel):
        return _of_module(original, dense, image)
    if isinstance(dense, DenseOnnx) and (original is None or isinstance(original, OnnxModel)):
        return _of_graph(original, dense, image)
    raise UsageError("this is an original: give the dense network, or another original to compare with.")


def _of_module(original: nn.Module | None, dense: Dense, image: Tensor) -> dict[str, Answers | str]:
    probe = dense.with_head("dense") if dense.options.head == "average" else dense
    model = inverse(dense, share=True) if original is None else original
    with evaluating(model, dense, probe):
        want = Reference(model, probe)(image)
        have = dict(named_outputs(probe(image.clone())))
    maps = _maps(probe.plan, image)
    return _pairs(maps, want, have, dense.options.head)


def _of_graph(original: OnnxModel | None, dense: DenseOnnx, image: Tensor) -> dict[str, Answers | str]:
    probe = dense.changed(head="dense") if dense.options.head == "average" else dense
    source = original or dense.source
    with Runtime(source.name) as runtime:
        graphs = (reference_graph(source, probe), probe.graph)
        (want,), (have,) = (runtime.run(graph, dense.reading.order, [image], optimised=False) for graph in graphs)
    maps = _maps(probe.plan, image)
    want, have = (_ordered(probe.reading, probe.plan.network.outputs, maps, made) for made in (want, have))
    return _pairs(maps, want, have, dense.options.head)


def _maps(plan: Plan, image: Tensor) -> Mapping[str, Map]:
    """A dense network's outputs; their positions are those of every size, unless padding follows the size."""
    return (at_sizes(plan, tuple(image.shape[2:])) if plan.follows_size else plan).outputs


def _ordered(
    reading: Reading, keys: Mapping[str, str], maps: Mapping[str, Map], made: Mapping[str, Tensor]
) -> dict[str, Tensor]:
    """A graph's outputs as [B, C, *spatial]."""
    return {name: plain(made[name], reading.places[keys[name]].order, len(one.axes)) for name, one in maps.items()}


def _pairs(
    maps: Mapping[str, Map], want: Mapping[str, Tensor], have: Mapping[str, Tensor], head: str
) -> dict[str, Answers | str]:
    places = {name: positions(one) for name, one in maps.items()}
    _, before = of_original({name: one.lattices for name, one in maps.items()}, places)
    found: dict[str, Answers | str] = {}
    for name, one in maps.items():
        first = _placed(want[name], [Position(*axis) for axis in before[name]])
        second = _placed(have[name], places[name])
        if isinstance(first, str) or isinstance(second, str):
            found[name] = str(second)
        else:
            found[name] = Answers(name, first, second, head == "features", one.merged.value)
    return found


def _placed(value: Tensor, places: Sequence[Position]) -> PlacedMap | str:
    """The map of one image; a text where it cannot be drawn."""
    if len(places) != 2:
        return f"it has {len(places)} spatial axes; pictures are of two"
    if any(axis.first is None for axis in places):
        return (
            "each prediction sees the whole image, so that none has a place in it; what lies in front of the head has: "
            'convert with --head features or --head cam (head="features" or "cam")'
        )
    values = value.detach().double().cpu()
    if values.dim() == 2:
        values = values[:, :, None, None]
    if values.dim() != 4 or 0 in values.shape:
        return f"its shape is {list(value.shape)}; pictures are of [B, C, height, width]"
    (top, left), (down, right) = ((float(axis.first or 0) for axis in places), (float(axis.step) for axis in places))
    return PlacedMap(np.ascontiguousarray(values[0].numpy()), (top, left), (down, right))


def _alike(one: Network, two: Network, image: Tensor) -> dict[str, Answers | str]:
    """Two networks of one kind."""
    first, second = _placed_outputs(one, image), _placed_outputs(two, image)
    if first.keys() != second.keys():
        raise UsageError(f"the networks have different outputs: {', '.join(first)} and {', '.join(second)}.")
    found: dict[str, Answers | str] = {}
    for name, a in first.items():
        b = second[name]
        found[name] = a if isinstance(a, str) else b if isinstance(b, str) else Answers(name, a, b, alike=True)
    return found


def _placed_outputs(network: Network, image: Tensor) -> dict[str, PlacedMap | str]:
    """All outputs of a network by themselves."""
    if isinstance(network, nn.Module):
        with evaluating(network):
            made = dict(named_outputs(network(image.clone())))
        maps = _maps(network.plan, image) if isinstance(network, Dense) else inspect(network, image).outputs
        return {name: _placed(made[name], positions(one)) for name, one in maps.items()}
    if isinstance(network, DenseOnnx):
        reading, maps = network.reading, _maps(network.plan, image)
    else:
        reading = read(network.graph, network.shape_at(tuple(image.shape[1:])))
        maps = survey(reading.network).outputs
    with Runtime("the network") as runtime:
        (outputs,) = runtime.run(network.graph, reading.order, [image], optimised=False)
    made = _ordered(reading, reading.network.outputs, maps, outputs)
    return {name: _placed(made[name], positions(one)) for name, one in maps.items()}
