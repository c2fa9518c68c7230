"""Draw a still of every explorer for the README: `make gallery`. On one machine the same code draws the same bytes."""

import io
from pathlib import Path

import torch
from PIL import Image

from bnlib import explore, fit, lenet
from bnlib.data import digits

FOLDER = Path(__file__).parents[1] / "docs" / "gallery"


def trained():
    """Return the explorer of training after two runs, without normalization and with it."""
    explorer = explore.train_it_yourself()
    for norm in ("none", "scratch"):
        explorer.set(norm=norm)
        explorer.start().join()
    return explorer


def recorded():
    """Return the explorer of the layers after a training of five epochs."""
    images, model, recordings = digits(), lenet(), []

    def record(_):
        recordings.append(explore.inside_the_layers.record(model, images.test_images))

    fit(model, images, epochs=5, batch_size=64, progress=False, on_epoch=record)
    return explore.inside_the_layers(recordings)


def main():
    torch.set_num_threads(1)  # sums in one order
    FOLDER.mkdir(parents=True, exist_ok=True)
    stills = {name: getattr(explore, name) for name in explore.__all__}
    stills |= {
        "who_shares_a_mean_norms": lambda: explore.who_shares_a_mean("norms"),
        "train_it_yourself": trained,
        "inside_the_layers": recorded,
    }
    for name, make in stills.items():
        path = FOLDER / f"{name}.png"
        explorer = make()
        Image.open(io.BytesIO(explorer.png())).save(path, optimize=True)
        print(f"{path.relative_to(FOLDER.parents[1])}  {explorer.caption}")


if __name__ == "__main__":
    main()
