"""Make torchvision's convolutional classifiers dense before and after their export to ONNX, and compare: one line each.

    python benchmarks/onnx_graphs.py [NAME ...]

Each line: the largest relative difference in ONNX Runtime between the graph that was made dense of the exported network
and the dense torch network, at the reference size and at another, odd one; and by how much the file grew.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
if not __package__:  # run as a script
    sys.path[:1] = [str(ROOT), str(ROOT / "tests")]

import torch
import torchvision
from laws.alive import enliven
from laws.onnx import as_converted, exported, run, written

import densify
from densify.comparison import difference, named_outputs
from densify.onnx.conversion import convert_onnx

TRANSFORMERS = ("vit_", "swin", "mvit", "maxvit")
# Reference and another size, by the beginning of the name; the first that fits.
SIZES = {
    "vgg": ((3, 224, 224), (3, 231, 225)),
    "alexnet": ((3, 224, 224), (3, 231, 225)),
    "inception": ((3, 299, 299), (3, 301, 331)),
    "": ((3, 96, 96), (3, 129, 101)),
}
SLOW_INIT = ("googlenet", "inception_v3")


def names() -> list[str]:
    """The convolutional classifiers."""
    known = torchvision.models.list_models(module=torchvision.models)
    return [name for name in known if not name.startswith(TRANSFORMERS)]


def compare(name: str, folder: Path) -> str:
    """What came of one network."""
    begin = time.perf_counter()
    reference, other = next((sizes for start, sizes in SIZES.items() if name.startswith(start)), SIZES[""])
    arguments = {"init_weights": False} if name in SLOW_INIT else {}
    model = enliven(torchvision.models.get_model(name, weights=None, **arguments), (2, *reference)).float()
    dense = densify.convert(model, (1, *reference), output_stride=8)
    source = exported(model, (1, *reference), folder)
    reading, plan = as_converted(source, dense)
    graph = written(source, reading, plan, "dilated")
    errors = []
    for size in (reference, other):
        x = torch.randn(1, *size, generator=torch.Generator().manual_seed(1))
        with torch.no_grad():
            ((_, want),) = named_outputs(dense.eval()(x))
        errors.append(difference(want, run(graph, x)["output"])[1])
    made = convert_onnx(source, reference, output_stride=8)
    densify.save(made, folder / "dense.onnx", overwrite=True)
    sizes = [sum(one.stat().st_size for one in folder.glob(f"{file}.onnx*")) for file in ("original", "dense")]
    growth = 100 * (sizes[1] / sizes[0] - 1)
    errors_said = ", ".join(f"{error:.1e}" for error in errors)
    return f"{name}: {errors_said}; {growth:.2f}% larger; {time.perf_counter() - begin:.0f} s"


def main(chosen: Sequence[str]) -> None:
    for name in chosen or names():
        with tempfile.TemporaryDirectory() as folder:
            try:
                print(compare(name, Path(folder)), flush=True)
            except Exception as error:
                print(f"{name}: {type(error).__name__}: {str(error)[:300]}", flush=True)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("names", nargs="*", metavar="NAME")
    main(parser.parse_args().names)
