"""How long commands that only look take, beside the bare imports of torch and torchvision.

    python benchmarks/startup.py [RUNS]

Every round runs all of them, one after the other, each in a process of its own; the figures are medians over the
rounds, of wall-clock and of processor time. The first round fills caches and is left out.
"""

from __future__ import annotations

import argparse
import resource
import subprocess
import sys
import time
from pathlib import Path
from statistics import median

ROOT = Path(__file__).resolve().parent.parent
_BARE = "import torch, torchvision"
_COMMANDS = {
    _BARE: ["-c", _BARE],
    **{
        f"densify {text}": ["-m", "densify", *text.split()]
        for text in (
            "plan torchvision:vgg16",
            "plan torchvision:vgg16 --start features.23",
            "inspect torchvision:vgg16",
            "--help",
        )
    },
}


def seconds(arguments: list[str]) -> tuple[float, float]:
    """Wall-clock and processor time of one run of python.

    Raises:
        subprocess.CalledProcessError: it failed.
    """
    before, begin = _processor(), time.perf_counter()
    subprocess.run([sys.executable, *arguments], cwd=ROOT, check=True, capture_output=True)
    return time.perf_counter() - begin, _processor() - before


def _processor() -> float:
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", nargs="?", type=int, default=7)
    runs = parser.parse_args().runs
    rounds = [{name: seconds(command) for name, command in _COMMANDS.items()} for _ in range(runs + 1)][1:]
    middle = {name: [median(one[name][kind] for one in rounds) for kind in (0, 1)] for name in _COMMANDS}
    print(f"{'':52}{'wall':>8}{'ratio':>8}{'cpu':>8}{'ratio':>8}")
    for name, (wall, cpu) in middle.items():
        ratios = wall / middle[_BARE][0], cpu / middle[_BARE][1]
        print(f"{name:52}{wall:7.2f}s{ratios[0]:8.2f}{cpu:7.2f}s{ratios[1]:8.2f}")


if __name__ == "__main__":
    main()
