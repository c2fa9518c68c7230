"""Every explorer, as the tests make it: by its name, and `norms`, the second face of `who_shares_a_mean`."""

from bnlib import explore, lenet
from bnlib.data import Images, digits

IMAGES = Images(*(tensor[:64] for tensor in list(vars(digits()).values())[:4]), tuple("0123456789"), "a few digits")
WITH_DATA = {
    "train_it_yourself": lambda: explore.train_it_yourself(IMAGES),
    "inside_the_layers": lambda: explore.inside_the_layers(
        [explore.inside_the_layers.record(lenet(seed=seed), IMAGES.train_images) for seed in range(3)]
    ),
}
ALONE = {name: getattr(explore, name) for name in explore.__all__ if name not in WITH_DATA}
ALONE["norms"] = lambda: explore.who_shares_a_mean("norms")
EXPLORERS = ALONE | WITH_DATA
