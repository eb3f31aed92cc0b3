"""Walk a network once, ask the rule of every op, collect all refusals: a plan of what is to change.

Nothing here imports torch.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial

from densify.errors import ConversionError, Refusal, RefusedError
from densify.lattice import Axis
from densify.maps import Layout, Map, Merged
from densify.ops import (
    AdaptivePool,
    Chain,
    Channelwise,
    Crop,
    Flatten,
    Identity,
    Interpolation,
    Join,
    Merge,
    Op,
    Other,
    Pad,
    PhaseWise,
    Pointwise,
    Sliding,
    Upsampling,
    Windowed,
)
from densify.plans import Chosen, Network, Plan, Site, Step
from densify.rules import Refused, rewrite


def walk(
    network: Network,
    chosen: Chosen = frozenset(),
    *,
    padding: str = "full",
    head: str = "dense",
    merge: str = "select",
    sizes: tuple[int, ...] | None = None,
) -> Plan:
    """Apply the rules along a network.

    Args:
        sizes: spatial size of the inputs; default the example's.

    Raises:
        RefusedError: all ops that have no meaning on their lattices.
    """
    steps: dict[str, Step] = {}
    refusals: list[Refusal] = []
    for key, site in network.sites.items():
        if any(source not in steps for source in site.inputs):
            continue  # it hangs on a refused op, which is reported already
        sources = tuple(steps[source].map for source in site.inputs)
        if site.op is None:
            steps[key] = Step(site, None, (), _input(site, sizes))
            continue
        try:
            op, result = rewrite(_prepared(site, chosen, merge, network), *sources, padding=padding)
        except Refused as error:
            remedy = _siblings(network, site, chosen) if isinstance(site.op, Join | Chain) else ""
            if isinstance(site.op, AdaptivePool) and sizes is None:
                remedy = _fitting_size(network, site)
            reason = error.reason + _operands(network, site)
            refusals.append(Refusal(site.layer, reason, remedy or error.remedy + ".", site.where))
            continue
        result = replace(result, wide=_is_wide(op, sources, result))
        steps[key] = Step(site, op, sources, replace(result, merged=_merged(site, op, sources, result)))
        if sizes is None:
            _agrees(site, result)
    refusals += [*_mixed_outputs(network, steps), *_stale_reads(network, steps)]
    if chosen and not refusals and merge == "select":
        again = partial(walk, network, chosen, padding=padding, head=head, sizes=sizes)
        refusals += _lost_density(network, steps, lambda other: again(merge=other))
    if refusals:
        raise RefusedError(tuple(refusals))
    return Plan(network, steps, chosen, padding, head, merge)


def at_sizes(plan: Plan, sizes: tuple[int, ...]) -> Plan:
    """The same rewriting for inputs of another spatial size: windows of the head stay those of the reference."""
    sites = {}
    for key, site in plan.network.sites.items():
        if isinstance(site.op, AdaptivePool) and isinstance(plan.steps[key].op, Identity):
            site = replace(site, op=Pointwise())
        elif isinstance(site.op, Flatten) and not plan.steps[key].sources[0].collapsed:
            site = replace(site, op=Flatten(tuple(axis.pending for axis in plan.steps[key].map.axes)))
        sites[key] = site
    again = replace(plan.network, sites=sites)
    return walk(again, plan.chosen, padding=plan.padding, head=plan.head, merge=plan.merge, sizes=sizes)


def _input(site: Site, sizes: tuple[int, ...] | None) -> Map:
    shape = site.shape or ()
    return Map(tuple(Axis.of_input(size) for size in (sizes or shape[2:])))


def _is_wide(op: Op, sources: tuple[Map, ...], result: Map) -> bool:
    """Whether a sample may depend on more than a window of the image, so that it does not move with the image."""
    mixes = isinstance(op, Chain) or (isinstance(op, PhaseWise) and isinstance(op.op, Other))
    return mixes or any(source.wide for source in sources) or any(axis.whole for axis in result.axes)


def _merged(site: Site, op: Op, sources: tuple[Map, ...], result: Map) -> Merged:
    """What upsamplings have made of a result up to here."""
    before = {source.merged for source in sources}
    if Merged.AVERAGE in before and not (site.linear and _moves_along(site, op, sources, result)):
        return Merged.NEW
    if Merged.NEW in before:
        return Merged.NEW
    if isinstance(op, Merge) and op.how != "select":
        return Merged.AVERAGE if op.how == "average" else Merged.NEW
    return Merged.AVERAGE if Merged.AVERAGE in before else Merged.NOT


def _moves_along(site: Site, op: Op, sources: tuple[Map, ...], result: Map) -> bool:
    """Whether an op makes of a moved image what it makes of the image, moved: else an average is one no more."""
    if isinstance(site.op, Windowed) and site.op.strided:
        return False
    if any(source.wide for source in sources):
        return False
    est = [axis.lattice.stride for axis in result.axes]
    return isinstance(op, Merge) or all([axis.lattice.stride for axis in one.axes] == est for one in sources)


def _operands(network: Network, site: Site) -> str:
    """The layers whose maps a refused op reads, where the trouble lies between it and them."""
    if not isinstance(site.op, Join | Chain | Upsampling | Other | Pad | Crop):
        return ""
    names = dict.fromkeys(network.sites[key].layer for key in site.inputs)
    return f" (it reads {' and '.join(names)})"


def _prepared(site: Site, chosen: Chosen, merge: str, network: Network) -> Op:
    op = site.op
    assert op is not None
    if isinstance(op, Windowed):
        return replace(op, chosen=tuple((site.key, axis) in chosen for axis in range(len(op.windows))))
    if isinstance(op, AdaptivePool):
        return replace(op, window=_makes_window(network, site, op))
    return replace(op, merge=merge) if isinstance(op, Upsampling) else op


def _makes_window(network: Network, site: Site, op: AdaptivePool) -> bool:
    """Whether an adaptive pooling feeds a flatten. Auxiliary heads of train mode pool as they did where they must."""
    reached = {site.key}
    for other in network.sites.values():
        if not reached & set(other.inputs):
            continue
        if isinstance(other.op, Flatten):
            before = network.sites[site.inputs[0]].shape or ()
            return not network.training or before[2:] == op.sizes
        if isinstance(other.op, Pointwise | Channelwise | AdaptivePool):
            reached.add(other.key)
    return False


def _mixed_outputs(network: Network, steps: Mapping[str, Step]) -> list[Refusal]:
    """Outputs whose spatial axes are nowhere to be put."""
    found = []
    for name, key in network.outputs.items():
        step = steps.get(key)
        if step is not None and step.site.layout is Layout.MIXED and not step.map.untouched:
            reason = f'it makes the output "{name}", whose spatial axes are not those of a map [B, C, *spatial]'
            found.append(Refusal(step.site.layer, reason, "Return the map itself.", step.site.where))
    return found


def _stale_reads(network: Network, steps: Mapping[str, Step]) -> list[Refusal]:
    """Changes in place that would be lost, because somebody works on a copy: fragments, above all."""
    found = []
    for key, site in network.sites.items():
        changing = [steps[one] for one in (*site.views, key) if one in steps and site.rereads]
        reading = [steps[one] for one in site.rereads if one in steps]
        lost = any(not (one.map.untouched or isinstance(one.op, _ON_THE_SPOT)) for one in changing)
        if lost or any(isinstance(one.op, PhaseWise) and not one.map.untouched for one in reading):
            reason = "it changes a tensor in place that is read again, and phases are taken from a copy of that tensor"
            found.append(Refusal(site.layer, reason, "Let it make a new tensor (no inplace=True).", site.where))
    return found


_ON_THE_SPOT = (Pointwise, Channelwise, Chain, Join, Identity, Crop)


def _lost_density(network: Network, steps: Mapping[str, Step], again: Callable[[str], Plan]) -> list[Refusal]:
    """Upsamplings that leave every output as coarse as it was: then the conversion would be for nothing.

    Args:
        again: plans the same conversion with another merge.
    """
    ends = [steps[key].map for key in network.outputs.values()]
    if any(lattice.stride > 1 for end in ends for lattice in end.lattices):
        return []
    found = [step.site for step in steps.values() if isinstance(step.op, Merge) and step.op.drops]
    if not found:
        return []
    first, others = found[0], dict.fromkeys(site.layer for site in found[1:])
    others.pop(first.layer, None)
    reason = "it meets the denser map as an upsampling, and takes all of the new density away from every output"
    more = f"; so do {', '.join(others)}" if others else ""
    between = any(isinstance(site.op, Interpolation) for site in found)
    ways = [text for how, text in _MERGES.items() if (between or how == "average") and _plans(again, how)]
    ways.append("Or choose" if ways else "Choose")
    remedy = " ".join(ways) + " layers whose maps reach an output without an upsampling."
    return [Refusal(first.layer, reason + _operands(network, first) + more, remedy, first.where)]


_MERGES = {
    "average": 'Use merge="average": upsamplings run on every shift of the image, and the results are averaged.',
    "resample": 'Use merge="resample": interpolations read the denser map where the original reads between samples.',
}


def _plans(again: Callable[[str], Plan], merge: str) -> bool:
    try:
        again(merge)
    except RefusedError:
        return False
    return True


def _agrees(site: Site, result: Map) -> None:
    """The rules' sizes must be those that were traced."""
    if site.shape is None or site.layout is not Layout.MAP or result.collapsed or result.pooled:
        return
    sizes = tuple(axis.size for axis in result.axes)
    if site.shape[len(site.shape) - len(sizes) :] != sizes:
        raise ConversionError(
            f"{site.layer}: the rule of {site.kind} expects a map of {sizes}, the model made {site.shape}. "
            + (
                "Mend the geometry that its rule gives."
                if isinstance(site.op, Sliding)
                else "This is a bug in densify: please report the layer's arguments."
            )
        )


def _siblings(network: Network, site: Site, chosen: Chosen) -> str:
    """Which strided layers to choose as well, so that the branches of a join meet."""
    branches = [network.ancestors(source) for source in site.inputs]
    common = set.intersection(*branches)
    keys = {key for key, _ in chosen}
    missing = [
        other.layer
        for key, other in network.sites.items()
        if key in set.union(*branches) - common
        and key not in keys
        and isinstance(other.op, Windowed)
        and other.op.strided
    ]
    return f"Choose as well: {', '.join(dict.fromkeys(missing))}." if missing else ""


def _fitting_size(network: Network, site: Site) -> str:
    """An input size at which an adaptive pooling has nothing to do, by trying them."""
    assert isinstance(site.op, AdaptivePool)
    reference = next(s.shape for s in network.sites.values() if s.op is None) or ()
    around = sorted(range(1, 2 * max(reference[2:]) + 1), key=lambda size: abs(size - reference[2]))
    upstream = {key: s for key, s in network.sites.items() if key in network.ancestors(site.inputs[0])}
    part = Network(upstream, {"output": site.inputs[0]})
    for size in around:
        try:
            made = walk(part, sizes=(size,) * len(site.op.sizes)).outputs["output"]
        except (RefusedError, ValueError):
            continue
        if tuple(axis.size for axis in made.axes) == site.op.sizes:
            return f"Give an example (--input-size) of {'x'.join([str(size)] * len(site.op.sizes))}."
    return ""
