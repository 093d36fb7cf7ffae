"""Where flagged images come from: counts by each further column of the manifest, such as `seed`.

columns of every image, which are flagged -> how many of each value are flagged
"""

from collections import Counter
from collections.abc import Iterable, Mapping
from typing import Any

from deepssim_scan.storage.files import shown

MOST = 20
"""Values of a column that are told, those with the most flagged images."""


def provenance(
    columns: Mapping[str, Mapping[str, str]], judged: Iterable[str], flagged: Iterable[str]
) -> dict[str, Any]:
    """Count images by every column of a manifest.

    `columns` are by path; `judged` and `flagged` are the paths of images, one for each image. A
    column is told by its name, with `values`, how many different ones there are, and of the first
    `MOST` each `value` with the numbers of `flagged` and of judged `images`.
    """
    names = list(dict.fromkeys(name for each in columns.values() for name in each))
    every, hit = Counter(judged), Counter(flagged)
    found = {}
    for name in names:
        images, copies = Counter[str](), Counter[str]()
        for path, count in every.items():
            value = columns.get(path, {}).get(name, "")
            images[value] += count
            copies[value] += hit[path]
        order = sorted(images, key=lambda value: (-copies[value], images[value], value))
        found[shown(name)] = {
            "values": len(images),
            "most": [
                {"value": shown(value), "flagged": copies[value], "images": images[value]}
                for value in order[:MOST]
            ],
        }
    return found
