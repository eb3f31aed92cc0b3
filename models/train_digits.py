"""Train models/digits.py on scikit-learn's handwritten digits, on the CPU: `python models/train_digits.py`.

Writes digits.safetensors and samples/ beside this file and prints the accuracy on patches and scenes made of digits
that were held out. Needs the extra `train` (scikit-learn). The same seed gives the same scenes everywhere; the weights
may differ in their last digits from one machine to another.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from safetensors.torch import save_file

from digit_scenes import Array, Digits, Placed, Scene, crop, scene, split_digits
from digits import BACKGROUND, INPUT_SIZE, MEAN, STD, DigitNet, digit_net

HERE = Path(__file__).resolve().parent
SIDE = INPUT_SIZE[1]
WIDE = SIDE + 16  # a patch and one cell of the last feature map (8 pixels) around it
JITTER = 3  # a digit's class is asked for up to so many pixels off its centre
CLEAR = 12  # a patch is background when every digit's centre is so many pixels off
MARGIN = WIDE // 2 + JITTER

Patches = tuple[NDArray[np.uint8], NDArray[np.int64]]


def patches(rng: np.random.Generator, digits: Digits, scenes: int) -> Patches:
    """Wide patches [n, WIDE, WIDE, 3] as bytes and their classes [n], cut from new scenes of the digits."""
    images: list[NDArray[np.uint8]] = []
    classes: list[int] = []
    for _ in range(scenes):
        made = scene(rng, digits, 170, 170, count=12, margin=MARGIN)
        for x, y, label in places(rng, made):
            images.append(as_bytes(crop(made.image, x, y, WIDE)))
            classes.append(label)
    return np.stack(images), np.array(classes, np.int64)


def places(rng: np.random.Generator, made: Scene) -> list[tuple[int, int, int]]:
    """Where to cut patches from a scene, as (x, y, class): one near each digit, and four of background."""
    found = []
    for digit in made.digits:
        dx, dy = rng.integers(-JITTER, JITTER + 1, 2)
        found.append((digit.x + int(dx), digit.y + int(dy), digit.digit))
    height, width, _ = made.image.shape
    for x, y in zip(rng.integers(24, width - 24, 4), rng.integers(24, height - 24, 4), strict=True):
        if all(max(abs(x - digit.x), abs(y - digit.y)) >= CLEAR for digit in made.digits):
            found.append((int(x), int(y), BACKGROUND))
    return found


def as_bytes(image: Array) -> NDArray[np.uint8]:
    """An image in [0, 1] as an image file holds it."""
    return np.asarray(np.rint(image * 255), dtype=np.uint8)


def as_input(images: NDArray[np.uint8]) -> torch.Tensor:
    """Bytes [n, h, w, 3] to the network's normalised input [n, 3, h, w]."""
    scaled = torch.from_numpy(images).permute(0, 3, 1, 2).float() / 255
    return ((scaled - torch.tensor(MEAN)[:, None, None]) / torch.tensor(STD)[:, None, None]).contiguous()


def middle(wide: torch.Tensor) -> torch.Tensor:
    """The patches [n, 3, SIDE, SIDE] in the middle of wide ones."""
    edge = (WIDE - SIDE) // 2
    return wide[..., edge : edge + SIDE, edge : edge + SIDE]


def scores_in_context(net: DigitNet, wide: torch.Tensor) -> torch.Tensor:
    """Scores of the middle patches as a scene gives them: what borders on the patch is image, not zero padding."""
    return net.classify(net.features(wide)[..., 1:-1, 1:-1])


def train(net: DigitNet, data: Patches, epochs: int, batch: int) -> None:
    """Fit the net to patches, every other batch in context, so that it serves for patches and for scenes."""
    images, labels = data[0], torch.from_numpy(data[1])
    steps = epochs * (len(labels) // batch)
    optimiser = torch.optim.AdamW(net.parameters(), lr=3e-3, weight_decay=0.02)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, max_lr=3e-3, total_steps=steps)
    net.train()
    step, total = 0, 0.0
    while step < steps:
        order = torch.randperm(len(labels))
        for rows in order[: len(labels) // batch * batch].split(batch):
            wide = as_input(images[rows.numpy()])
            scores = net(middle(wide)) if step % 2 else scores_in_context(net, wide)
            loss = torch.nn.functional.cross_entropy(scores, labels[rows], label_smoothing=0.05)
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
            schedule.step()
            step, total = step + 1, total + float(loss.detach())
            if step % 200 == 0:
                print(f"step {step}/{steps}: mean loss {total / 200:.4f}", flush=True)
                total = 0.0


@torch.no_grad()
def report(net: DigitNet, data: Patches) -> None:
    """Print the accuracy on held-out patches, alone and in context."""
    net.eval()
    wide, labels = as_input(data[0]), torch.from_numpy(data[1])
    is_digit = labels != BACKGROUND
    for name, scores in (("patches", net(middle(wide))), ("in context", scores_in_context(net, wide))):
        right = scores.argmax(1) == labels
        print(
            f"held-out {name}: {right.float().mean():.2%} of {len(labels)} right "
            f"(digits {right[is_digit].float().mean():.2%}, background {right[~is_digit].float().mean():.2%})"
        )


def samples(digits: Digits, seed: int) -> dict[str, Scene]:
    """Two scenes and one patch of the digits, under the names of their files."""
    rng = np.random.default_rng(seed)
    return {
        "scene1.png": scene(rng, digits, height=119, width=161, count=9, margin=SIDE // 2),
        "scene2.png": scene(rng, digits, height=144, width=200, count=12, margin=SIDE // 2),
        "patch.png": single(rng, digits),
    }


def write_samples(folder: Path, digits: Digits, seed: int) -> None:
    """Two scenes and one patch of the digits as PNG, and where their digits are as labels.json."""
    folder.mkdir(exist_ok=True)
    labels = {}
    for name, made in samples(digits, seed).items():
        Image.fromarray(as_bytes(made.image)).save(folder / name, optimize=True)
        labels[name] = [{"x": digit.x, "y": digit.y, "class": digit.digit} for digit in made.digits]
    (folder / "labels.json").write_text(json.dumps(labels, indent=1) + "\n")


def single(rng: np.random.Generator, digits: Digits) -> Scene:
    """One digit in the middle of a patch [SIDE, SIDE, 3]."""
    made = scene(rng, digits, height=64, width=64, count=1, margin=SIDE // 2)
    (digit,) = made.digits
    image, labels = crop(made.image, digit.x, digit.y, SIDE), crop(made.labels, digit.x, digit.y, SIDE)
    return Scene(image, labels, (Placed(SIDE // 2, SIDE // 2, digit.digit),))


def main() -> None:
    parser = argparse.ArgumentParser(description="Train the digit recogniser; write its checkpoint and samples.")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--scenes", type=int, default=3000, help="training scenes, about 11 patches each")
    parser.add_argument("--epochs", type=int, default=6)
    arguments = parser.parse_args()

    torch.set_num_threads(2)
    torch.manual_seed(arguments.seed)
    training, held_out = split_digits()
    data = patches(np.random.default_rng(arguments.seed), training, arguments.scenes)
    print(f"{len(data[1])} training patches", flush=True)
    net = digit_net()
    train(net, data, arguments.epochs, batch=128)
    report(net, patches(np.random.default_rng(arguments.seed + 1), held_out, 400))
    save_file(net.state_dict(), HERE / "digits.safetensors", metadata={"format": "pt"})
    write_samples(HERE / "samples", held_out, arguments.seed + 2)


if __name__ == "__main__":
    main()
