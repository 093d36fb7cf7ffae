"""A person that the bundled encoder never saw: copies of their slices found, strangers cleared.

Training images are slices of the volume on all three axes. Synthetic images are copies of them,
changed in every way of `deepssim-scan demo`, and strangers: slices of the MNI152 template in the
same space, at the same positions in mm and in the same field of view, the hardest there are of
somebody else. The template shows no scalp or skull; a skull-stripped volume makes it harder.

    python benchmarks/bench_held_out.py --volume /usr/share/mricron/templates/ch2.nii.gz
    python benchmarks/bench_held_out.py --volume /usr/share/mricron/templates/ch2bet.nii.gz
"""

import argparse
import tempfile
from pathlib import Path

import nibabel
import numpy as np
from harness import add_encoder, parser, write
from nilearn.datasets import load_mni152_template
from nilearn.image import resample_to_img
from rich.console import Console
from torch import Tensor

from deepssim_scan import checkpoint
from deepssim_scan.cli.console import show_demo
from deepssim_scan.cli.progress import reporting
from deepssim_scan.demo import DemoResult, Images, audit, to_image
from deepssim_scan.subjects import load_volume, slices

AXES = ("sagittal", "coronal", "axial")
SIDE = 128  # pixels
INSIDE, LEAST_INSIDE = 0.1, 0.05  # a slice is shown when 5 % of its pixels are above 0.1
STRANGERS = "MNI152, same position"


def main() -> None:
    """Cut the slices, run the audit, print and write."""
    options = _options()
    if not options.volume.is_file():
        raise SystemExit(
            f"{options.volume}: no such file. On Debian, `apt-get install mricron-data` puts "
            "ch2.nii.gz and ch2bet.nii.gz into /usr/share/mricron/templates."
        )
    training, strangers = people(options.volume, options.positions)
    with reporting(Console(stderr=True)) as report:
        result = audit(
            options.out,
            training,
            {STRANGERS: strangers},
            encoder=options.encoder,
            copies_per_kind=min(options.copies, len(training)),
            report=report,
        )
    show_demo(result)
    save(result, options)


def people(volume: Path, positions: int) -> tuple[Images, Images]:
    """Cut the volume and the MNI152 template, brought to its grid, at the same places.

    A place is left out where either of the two is nearly empty.
    """
    person, template = (
        cut(load_volume(volume), positions),
        cut(mni152_like(volume), positions),
    )
    kept = [name for name in person if _filled(person[name]) and _filled(template[name])]
    training, strangers = (
        {name: to_image(images[name]) for name in kept} for images in (person, template)
    )
    return training, strangers


def mni152_like(volume: Path) -> Tensor:
    """Return the MNI152 template on the grid of a volume in MNI space, by their affines."""
    target = nibabel.as_closest_canonical(nibabel.load(volume))
    resampled = resample_to_img(
        load_mni152_template(resolution=1), target, force_resample=True, copy_header=True
    )
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "mni152.nii"
        nibabel.save(resampled, path)
        return load_volume(path)


def cut(volume: Tensor, positions: int) -> dict[str, Tensor]:
    """Cut a volume on every axis at evenly spaced fractions: axial-0.512 -> (SIDE, SIDE)."""
    fractions = ((np.arange(positions) + 0.5) / positions).tolist()
    return {
        f"{name}-{fraction:.3f}": image
        for axis, name in enumerate(AXES)
        for fraction, image in zip(
            fractions, slices(volume, axis, fractions, SIDE, None), strict=True
        )
    }


def save(result: DemoResult, options: argparse.Namespace) -> None:
    """Write the tallies, and of copies and strangers the share that was flagged."""
    counts = result.as_json()
    totals = {copies: result.total(copies=copies) for copies in (True, False)}
    ratios = {row.kind + ", flagged": row.flagged / row.images for row in totals.values()}
    ratios["all copies, own source first"] = totals[True].found / totals[True].images
    more = {key: counts[key] for key in ("training_images", "kinds")}
    stem = options.volume.name.removesuffix(".gz").removesuffix(".nii")
    loaded = checkpoint.load(options.encoder)
    more |= {"encoder": loaded.fingerprint, "duplicate_above": loaded.thresholds.duplicate}
    write(f"held_out_{stem}", options, {}, ratios, **more)


def _filled(image: Tensor) -> bool:
    return float((image > INSIDE).float().mean()) >= LEAST_INSIDE


def _options() -> argparse.Namespace:
    made = parser(__doc__, {"positions": 40, "copies": 40}, seeded=False)
    default = Path("/usr/share/mricron/templates/ch2.nii.gz")
    made.add_argument("--volume", type=Path, default=default, help=f"NIfTI ({default})")
    out = Path("deepssim-held-out")
    made.add_argument("--out", type=Path, default=out, help=f"folder for the audit ({out})")
    add_encoder(made)
    return made.parse_args()


if __name__ == "__main__":
    main()
