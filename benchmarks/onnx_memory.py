"""Peak memory of `densify convert` on a large ONNX file, beside onnx-ir's own load and save of that file.

    python benchmarks/onnx_memory.py [MEGABYTES]

Each runs in a process of its own; densify's holds torch as well, and verifies in ONNX Runtime.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper

ROOT = Path(__file__).resolve().parent.parent
_REPORT = "import resource; print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024)"
_PEERS = {
    "onnx-ir, load and save": "import onnx_ir as ir; ir.save(ir.load('{source}'), '{target}')",
    "densify convert": (
        "from densify.cli.app import app; app(['convert', '{source}', '--output-stride', '4', '-o', '{target}', '-q'], "
        "standalone_mode=False)"
    ),
}


def network(megabytes: int) -> onnx.ModelProto:
    """Four convolutions of 3 x 3 with weights of that size in float32, three of them behind poolings."""
    channels = int((megabytes * 2**20 / 4 / 9 / 3) ** 0.5)
    rng, nodes, weights, last = np.random.default_rng(0), [], [], "input"
    two: dict[str, Any] = {"kernel_shape": [2, 2], "strides": [2, 2]}
    one: dict[str, Any] = {"pads": [1, 1, 1, 1]}
    for place in range(4):
        shape = (channels, channels if place else 3, 3, 3)
        weight = rng.standard_normal(shape, np.float32) / (9 * shape[1]) ** 0.5
        weights.append(onnx.numpy_helper.from_array(weight, f"w{place}"))
        nodes.append(helper.make_node("Conv", [last, f"w{place}"], [f"c{place}"], f"c{place}", **one))
        last = f"p{place}"
        nodes.append(helper.make_node("MaxPool", [f"c{place}"], [last], last, **two))
    given = helper.make_tensor_value_info("input", TensorProto.FLOAT, ["N", 3, 32, 32])
    made = helper.make_tensor_value_info(last, TensorProto.FLOAT, ["N", channels, "H", "W"])
    graph = helper.make_graph(nodes, "large", [given], [made], weights)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=8)


def peak(code: str) -> int:
    """Peak resident memory of a process that runs this, MB."""
    made = subprocess.run(
        [sys.executable, "-c", f"{code}; {_REPORT}"], cwd=ROOT, capture_output=True, text=True, check=True
    )
    return int(made.stdout.split()[-1])


def main(megabytes: int) -> None:
    with tempfile.TemporaryDirectory() as folder:
        source = Path(folder) / "large.onnx"  # made by another process: a child counts what its parent once held
        subprocess.run([sys.executable, __file__, str(megabytes), "--make", str(source)], check=True)
        print(f"a file of {source.stat().st_size / 2**20:.0f} MB")
        found = {}
        for name, code in _PEERS.items():
            found[name] = peak(code.format(source=source, target=Path(folder) / "made.onnx"))
            print(f"{name}: {found[name]} MB")
            (Path(folder) / "made.onnx").unlink()
        first, second = found.values()
        print(f"ratio {second / first:.2f}")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("megabytes", nargs="?", type=int, default=500)
    parser.add_argument("--make", metavar="FILE", help="write the network, and no more")
    asked = parser.parse_args()
    if asked.make:
        onnx.save(network(asked.megabytes), asked.make)
    else:
        main(asked.megabytes)
