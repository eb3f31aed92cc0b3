"""Networks of described ops, and plans of what becomes of them. Nothing here imports torch.

A :class:`Network` is what the readers make of a torch.fx or ONNX graph, and :func:`densify.planning.walk` plans it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import TYPE_CHECKING, Any

from densify.cost import Cost, peak_memory, work
from densify.maps import Lattices, Layout, Map
from densify.ops import Merge, Op, PhaseWise, Windowed
from densify.shown import Shown

if TYPE_CHECKING:
    from rich.console import Console


@dataclass(frozen=True)
class Site:
    """One op of a network where it stands.

    Attributes:
        key: its name in the graph, unique.
        layer: the name that people use: the module's path, for functions the path of the calling module and the
            function's name.
        kind: the op's name in its framework, for display.
        op: its description; None for the network's inputs.
        inputs: keys of the sites whose maps it reads.
        shape: shape of its result in the original, or None where that is no tensor.
        where: source file and line, where known.
        work: multiply-additions per output sample and image (transposed convolutions: per sample that they read); of an
            op without a rule all those per image at the reference size.
        layout: what its result is in the original.
        linear: whether an average of its results is its result on the average, at whichever of its maps.
        views, rereads: where the op changes a tensor that is read again, keys of its views and of what reads later.
    """

    key: str
    layer: str
    kind: str
    op: Op | None
    inputs: tuple[str, ...]
    shape: tuple[int, ...] | None
    where: str = ""
    work: int = 0
    layout: Layout = Layout.MAP
    linear: bool = False
    views: tuple[str, ...] = ()
    rereads: tuple[str, ...] = ()


@dataclass(frozen=True)
class Network:
    """The ops of one graph in order.

    Attributes:
        sites: by key; ops without a spatial map (sizes, parameters) are not among them.
        outputs: for every output tensor its name and the key of its site.
        training: whether the graph is that of train mode.
    """

    sites: Mapping[str, Site]
    outputs: Mapping[str, str]
    training: bool = False

    def ancestors(self, key: str) -> set[str]:
        """Keys of all sites that `key` depends on, itself included."""
        seen: set[str] = set()
        stack = [key]
        while stack:
            current = stack.pop()
            if current not in seen:
                seen.add(current)
                stack.extend(self.sites[current].inputs)
        return seen


@dataclass(frozen=True)
class Step:
    """What becomes of one site: the op that is put there, the maps it reads and the map it makes."""

    site: Site
    op: Op | None
    sources: tuple[Map, ...]
    map: Map


Chosen = frozenset[tuple[str, int]]


@dataclass(frozen=True)
class Plan(Shown):
    """What would change, and where everything comes to lie.

    Attributes:
        network: the original's ops, after the head option was applied.
        steps: by key.
        chosen: the (site key, axis) whose strides are removed.
        padding, head, merge: as given to convert.
    """

    network: Network
    steps: Mapping[str, Step]
    chosen: Chosen
    padding: str
    head: str
    merge: str = "select"

    def __repr__(self) -> str:
        return f"Plan(lattices={self.lattices}, layers={self.layers}, {len(self.steps)} steps)"

    def to_dict(self) -> dict[str, Any]:
        """What would change and cost, as `densify plan --json` has it: plain numbers, texts, lists and dicts."""
        from densify.facts import plain, plan_facts

        facts: dict[str, Any] = plain(plan_facts(self))
        return facts

    def _show(self, screen: Console) -> None:
        from densify.display import show_plan

        show_plan(self.to_dict(), screen)

    @property
    def input_size(self) -> list[int]:
        """Of the image at the reference, [C, *spatial]."""
        (shape,) = (site.shape for site in self.network.sites.values() if site.op is None)
        return list(shape or ())[1:]

    @property
    def outputs(self) -> dict[str, Map]:
        """The map of every output tensor, before head="average" takes its mean."""
        return {name: self.steps[key].map for name, key in self.network.outputs.items()}

    @property
    def lattices(self) -> dict[str, Lattices]:
        """The lattice of every output, per spatial axis, marked where it is made of several phases."""
        return {name: Lattices() if self.head == "average" else one.lattices for name, one in self.outputs.items()}

    @property
    def exact(self) -> bool:
        """False where padding="same" changed what border windows see, so that law 1 holds clear of the borders only."""
        return all(axis.exact for one in self.outputs.values() for axis in one.axes)

    @property
    def follows_size(self) -> bool:
        """Whether padding follows the map's size (ONNX's auto_pad): then samples look elsewhere at other sizes."""
        ops = [step.site.op for step in self.steps.values()]
        return any(isinstance(op, Windowed) and bool(op.same) and op.strided for op in ops)

    @property
    def layers(self) -> tuple[str, ...]:
        """Names of the chosen layers in graph order."""
        keys = {key for key, _ in self.chosen}
        return tuple(dict.fromkeys(site.layer for key, site in self.network.sites.items() if key in keys))

    @property
    def wrapped(self) -> dict[str, str]:
        """The layers that run on every phase by itself, statistics over the whole map among them, and their ops."""
        steps = [step for step in self.steps.values() if isinstance(step.op, PhaseWise)]
        return {s.site.layer: s.site.kind for s in steps if not all(source.untouched for source in s.sources)}

    @property
    def cost(self) -> Cost:
        """Multiply-additions per image at the reference size, of the original and of the dense network."""
        return Cost(*map(sum, zip(*map(work, self.steps.values()), strict=True)))

    @property
    def memory(self) -> Cost:
        """Bytes of maps alive at once, per image at the reference size, see :func:`densify.cost.peak_memory`."""
        return peak_memory(self)

    @property
    def merges(self) -> dict[str, str]:
        """The upsamplings that meet a denser map, and which of "select", "average" and "resample" they do."""
        return {step.site.layer: step.op.how for step in self.steps.values() if isinstance(step.op, Merge)}


@dataclass(frozen=True, repr=False)
class Survey(Plan):
    """An original's own geometry: a plan in which nothing is changed.

    Attributes:
        parameters: their number by the name of a layer or block.
        total: of all of them.
    """

    parameters: Mapping[str, int] = field(default_factory=dict)
    total: int = 0

    def __repr__(self) -> str:
        strided = ", ".join(layer["name"] for layer in self.to_dict()["layers"] if layer["strided"])
        return f"Survey({len(self.steps)} steps, strided={strided or 'none'})"

    def to_dict(self, *, every: bool = False) -> dict[str, Any]:
        """The layers, as `densify inspect --json` has them.

        Args:
            every: pointwise ones too.
        """
        from densify.facts import plain, survey_facts

        facts: dict[str, Any] = plain(survey_facts(self, every=every))
        return facts

    def _show(self, screen: Console) -> None:
        from densify.display import show_layers

        show_layers(self.to_dict(), screen)

    @staticmethod
    def of(plan: Plan, parameters: Mapping[str, int], total: int) -> Survey:
        """A plan in which nothing is changed, with numbers of parameters."""
        return Survey(**{one.name: getattr(plan, one.name) for one in fields(Plan)}, parameters=parameters, total=total)
