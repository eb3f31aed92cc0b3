"""What is exported from a dense network and what is made dense of an exported one compute the same."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from laws.checks import options, outputs
from laws.decoders import random_decoder
from laws.integers import inputs
from laws.nets import other_shape, random_net
from laws.onnx import as_converted, exported, run, written
from laws.program import RandomNet
from torch import nn

from densify.conversion import Dense, convert
from densify.errors import ConversionError, RefusedError

pytestmark = pytest.mark.filterwarnings("ignore")
FORMS = ("dilated", "fragments")
TOLERANCE = 1e-5  # float32, sums of several thousand integers


def _networks(kind: str, seed: int) -> tuple[RandomNet, Dense] | None:
    """A random network in float32 and its dense form; None where it is refused, or not equal to its own export.

    torch's average pooling with a divisor of its own is exported as a convolution over one more zero: in ceil mode the
    windows of the far side, which repeat the last one, are then others.
    """
    if kind == "plain":
        net, choice = random_net(seed)
        how = "select"
    else:
        net, choice, how = random_decoder(seed)
    poolings = [module for module in net.modules() if isinstance(module, nn.AvgPool2d | nn.AvgPool3d)]
    if any(pool.divisor_override and pool.ceil_mode for pool in poolings):
        return None
    try:
        return net, convert(net.float(), net.reference, **options(choice), merge=how)
    except RefusedError:
        return None


def _check(kind: str, seed: int, folder: Path) -> str:
    """What became of one network: "" where everything agreed."""
    made = _networks(kind, seed)
    if made is None:
        return "refused in torch"
    net, dense = made
    try:
        source = exported(net, net.reference, folder)
    except ConversionError:
        return "not exported"
    x = inputs(net.reference, 3).float()
    with torch.no_grad():
        mine, theirs = outputs(net(x), x.dim() - 2), outputs(run(source.graph, x), x.dim() - 2)
    if any(not torch.allclose(mine[name], theirs[name], rtol=1e-5) for name in mine):
        return "exported otherwise"
    try:
        reading, plan = as_converted(source, dense)
    except (ValueError, RefusedError) as error:
        return f"{type(error).__name__}"
    assert plan.lattices == dense.lattices
    fixed = any(size is not None for size in source.declared()[2:])
    shapes = [net.reference] if fixed else [net.reference, other_shape(net.double(), seed)]
    net.float()
    for form in FORMS:
        model = written(source, reading, plan, form)
        for shape in shapes:
            x = inputs(shape, 4).float()
            with torch.no_grad():
                want = outputs(dense(x), x.dim() - 2)
            have = outputs(run(model, x, optimised=form == "dilated"), x.dim() - 2)
            for name, expected in want.items():
                assert have[name].shape == expected.shape, (form, name)
                off = (have[name] - expected).abs().max() / expected.abs().max().clamp(min=1)
                assert off <= TOLERANCE, (form, name, float(off))
    return ""


PLAIN = (0, 1, 2, 3, 5, 7, 10, 11)
DECODERS = (5000, 5003, 5004)


@pytest.mark.parametrize(("kind", "seed"), [*(("plain", seed) for seed in PLAIN), *(("decoder", s) for s in DECODERS)])
def test_random_networks_agree(kind: str, seed: int, tmp_path: Path) -> None:
    assert _check(kind, seed, tmp_path) == ""


def test_a_wrong_writer_is_found(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """One that does not repeat the last windows on the far side."""
    monkeypatch.setattr("densify.graphs.onnx.layers.windows.far_side", lambda y, found, windows: y)
    broken = 0
    for seed in PLAIN[:4]:
        try:
            _check("plain", seed, tmp_path)
        except Exception:
            broken += 1
    assert broken > 1
