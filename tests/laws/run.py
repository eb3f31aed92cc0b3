"""Check all laws on many random networks, and count what they hold: ``python -m laws.run 10000 [FIRST]``.

``python -m laws.run 10000 FIRST decoders`` does so with encoder-decoders.
"""

from __future__ import annotations

import sys
import time
import warnings
from collections import Counter

import torch

from laws.checks import Outcome, check_net
from laws.decoder_checks import Outcome as Decoded
from laws.decoder_checks import check_decoder


def main(count: int, first: int = 0, kind: str = "networks") -> int:
    """Check the networks of `count` seeds; `kind` is "networks" or "decoders".

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
            outcome = check_decoder(seed) if kind == "decoders" else check_net(seed)
        except Exception as error:
            broken[seed] = f"{type(error).__name__}: {error}"
            print(f"{kind}, seed {seed}: {broken[seed]}", flush=True)
            continue
        net = outcome.decoder.net if isinstance(outcome, Decoded) else outcome.net
        kinds.update(net.kinds)
        if isinstance(outcome, Decoded):
            counts.update([outcome.decoder.merge, *(f"an output: {mark.name}" for mark in outcome.merged.values())])
            refused.update([f"{outcome.decoder.merge}: no density left"] if outcome.refused else [])
        else:
            counts.update(_counted(outcome))
            refused.update([f"{outcome.form}: {outcome.refused}"] if outcome.refused else [])
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
    sys.exit(main(int(sys.argv[1]), int((sys.argv[2:3] or ["0"])[0]), *sys.argv[3:4]) > 0)
