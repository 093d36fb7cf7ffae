"""What registration goes by of training images, kept by a process for the next block.

images to be read again -> Sides of each, by its number

The same training images are candidates of many synthetic ones. Each is read and prepared once, as
long as there is room for it, and again where its file, or how it is read, is another one.
"""

from collections import OrderedDict
from collections.abc import Hashable

import numpy as np
import torch

from deepssim_scan.imaging.registration.sides import Sides, sides
from deepssim_scan.store.reread import Wanted

MOST = 1500
"""Images that are kept, of 68 KiB each."""

_kept: OrderedDict[Hashable, Sides] = OrderedDict()


def sides_of(images: Wanted) -> dict[int, Sides]:
    """Return the sides (1, ...) of each image by its number, but for those that cannot be read."""
    identities = images.identities()
    found = {number: _kept[each] for number, each in identities.items() if each in _kept}
    read = dict(images.only(identities.keys() - found.keys()).read())
    if read:
        made = sides(torch.from_numpy(np.stack([*read.values()])))
        for place, number in enumerate(read):
            found[number] = made.at(torch.tensor([place]))
    for number, each in found.items():
        _kept[identities[number]] = each
        _kept.move_to_end(identities[number])
    while len(_kept) > MOST:
        _kept.popitem(last=False)
    return found
