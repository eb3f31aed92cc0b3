"""Head options: what of a classifier's head stays."""

from __future__ import annotations

from dataclasses import replace

from densify.errors import Refusal, RefusedError
from densify.ops import AdaptivePool, Flatten, GlobalPool
from densify.plans import Network, Site

HEADS = ("dense", "average", "features", "cam")


def apply_head(network: Network, head: str) -> Network:
    """Cut or mark the classifier's head as `head` asks.

    Raises:
        RefusedError: there is no head of that kind.
    """
    if head not in ("features", "cam"):
        return network
    sites, outputs = dict(network.sites), dict(network.outputs)
    for name, key in network.outputs.items():
        pool = head_pool(network, key)
        site = network.sites[key]
        if pool is None or (head == "cam" and not isinstance(pool.op, GlobalPool)):
            wanted = "pooling over the whole map" if head == "cam" else "pooling or flatten"
            remedy = 'Use head="dense": it gives a map of predictions already.'
            raise RefusedError((Refusal(site.layer, f'head="{head}": no {wanted} stands before "{name}"', remedy),))
        if head == "features":
            outputs[name] = pool.inputs[0]
        else:
            assert isinstance(pool.op, GlobalPool)
            sites[pool.key] = replace(pool, op=replace(pool.op, through=True))
    cut = Network(sites, outputs, network.training)
    needed = set[str]().union(*(cut.ancestors(key) for key in outputs.values()))
    return replace(cut, sites={key: site for key, site in sites.items() if key in needed or site.op is None})


def head_pool(network: Network, key: str) -> Site | None:
    """The first pooling over the whole map, adaptive pooling or flatten of the chain that ends at `key`."""
    found: Site | None = None
    site = network.sites[key]
    while len(site.inputs) == 1:
        if isinstance(site.op, GlobalPool | AdaptivePool | Flatten):
            found = site
        site = network.sites[site.inputs[0]]
    return found
