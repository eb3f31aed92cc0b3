"""Check all laws on many random networks, and count what they hold: ``python -m laws.run 10000 [FIRST]``."""

from __future__ import annotations

import sys
import time
import warnings
from collections import Counter

import torch

from laws.checks import Outcome, check_net


def main(count: int, first: int = 0) -> int:
    """Check the networks of `count` seeds.

    Returns:
        How many broke a law.
    """
    torch.set_num_threads(1)
    warnings.filterwarnings("ignore", "Using padding='same'", UserWarning)
    counts: Counter[str] = Counter()
    kinds: Counter[str] = Counter()
    refused: Counter[str] = Counter()
    broken: dict[int, str] = {}
    began = time.monotonic()
    for number, seed in enumerate(range(first, first + count), 1):
        try:
            outcome = check_net(seed)
        except Exception as error:
            broken[seed] = f"{type(error).__name__}: {error}"
            print(f"check_net({seed}): {broken[seed]}", flush=True)
            continue
        counts.update(_counted(outcome))
        kinds.update(outcome.net.kinds)
        if outcome.refused:
            refused[f"{outcome.form}: {outcome.refused}"] += 1
        if number % 500 == 0:
            print(f"{number} networks, {len(broken)} broken, {time.monotonic() - began:.0f} s", flush=True)
    print(f"\n{count} networks from seed {first}: every law held on {count - len(broken)}")
    for title, counter in (("of these", counts), ("contained", kinds), ("refused", refused)):
        print(f"\n{title}")
        for name, times in counter.most_common():
            print(f"{times:7} {name}")
    return len(broken)


def _counted(outcome: Outcome) -> list[str]:
    net, est = outcome.net, outcome.est
    found = ["values exact" if net.exact else "values to 1e-12"]
    found.append("gradients exact" if net.exact_gradient else "gradients to 1e-12")
    found.append(f"{len(est)}-D")
    found.append(f"also checked: {outcome.form}{', refused' if outcome.refused else ''}")
    if outcome.another_size:
        found.append("at another size too")
    if min(est) == 1 < max(est):
        found.append("denser along some axes only")
    if max(est) == 1:
        found.append("head alone converted")
    return found


if __name__ == "__main__":
    sys.exit(main(*(int(argument) for argument in sys.argv[1:])) > 0)
