"""Two people that no encoder here was trained on, and copies of their images.

- `colin27`: slices of Colin27 (`ch2.nii.gz`, Debian's `mricron-data`), one real person's T1, on
  three axes, and `colin27-brain`, without the skull (`ch2bet.nii.gz`);
- `cranium`: radiographs of the head CT in `Cranium.inv3` (Debian's `invesalius-examples`), which
  are its projections from 50 directions;
- `mni152`, `inia19`: population averages (of people; of macaques), to develop on, and
  `mni152-projected`, `inia19-projected`, projections of them.

A training set needs more than one person: the others are deformations of the one (`subjects`).
"""

import io
import plistlib
import tarfile
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import torch
from numpy.random import Generator
from numpy.typing import NDArray
from PIL import Image, ImageFilter
from torch import Tensor
from torch.nn import functional

from deepssim_scan.imaging.changes.augment import smooth_field
from deepssim_scan.imaging.warp import resample
from deepssim_scan.training.pseudo_subjects import FILLED, load_volume, mni152, projections, slices

MRICRON = Path("/usr/share/mricron/templates")
CRANIUM = Path("/usr/share/doc/invesalius-examples/examples/Cranium.inv3")
PACKAGES = {MRICRON: "mricron-data", CRANIUM: "invesalius-examples"}
SIDE = 128  # pixels
POSITIONS = 50  # of each subject
BETWEEN_MM, BETWEEN_DEGREES = 3.0, 1.8  # how far off the hardest non-members are
FIRST_SEED = 2_000_000_000  # of deformations; the bundled encoder's are numbered from 0

Grey = NDArray[np.uint8]


@dataclass(frozen=True, slots=True)
class View:
    """Where an image is taken: a slice of an axis at a fraction, or a projection at an angle."""

    axis: int
    position: float


@dataclass(frozen=True, slots=True)
class Person:
    """A volume, how images are taken of it, and from where."""

    name: str
    volume: Tensor
    take: Callable[[Tensor, int, list[float], int, torch.Generator | None], Tensor]
    views: tuple[View, ...]
    distance: tuple[float, ...]  # by axis, what `beside` moves a view

    def images(self, subject: int | None, *, beside: bool = False) -> Grey:
        """Take a subject's images: (views, SIDE, SIDE); None is the person as they are."""
        taken = []
        for axis in sorted({view.axis for view in self.views}):
            person = None
            if subject is not None:
                person = torch.Generator().manual_seed(FIRST_SEED + subject)
            positions = [view.position for view in self.views if view.axis == axis]
            moved = [position + beside * self.distance[axis] for position in positions]
            taken.append(self.take(self.volume, axis, moved, SIDE, person))
        return (torch.cat(taken) * 255).round().to(torch.uint8).numpy()


def person(name: str) -> Person:
    """Load one of PEOPLE."""
    return PEOPLE[name]()


def _sliced(name: str, load: Callable[[], Tensor], millimetres: float = 1.0) -> Person:
    volume = load()
    counts = [POSITIONS // 3 + (axis < POSITIONS % 3) for axis in range(3)]
    views = tuple(
        View(axis, position)
        for axis, (span, count) in enumerate(zip(FILLED.values(), counts, strict=True))
        for position in np.linspace(*span, count).tolist()
    )
    distance = tuple(BETWEEN_MM / (length * millimetres) for length in volume.shape)
    return Person(name, volume, partial(slices, shell=False), views, distance)


def _projected(name: str, load: Callable[[], Tensor]) -> Person:
    angles = np.arange(POSITIONS) * (180 / POSITIONS)
    views = tuple(View(0, float(angle)) for angle in angles)
    return Person(name, load(), _radiographs, views, (BETWEEN_DEGREES,))


def _radiographs(
    volume: Tensor, axis: int, angles: list[float], side: int, subject: torch.Generator | None
) -> Tensor:
    return projections(volume, angles, side, subject, shell=False)


def _mricron(name: str) -> Tensor:
    return load_volume(_there(MRICRON / name))


def _cranium() -> Tensor:
    """Read the CT: attenuation relative to water's, axes right, anterior, superior, isotropic."""
    with tarfile.open(_there(CRANIUM)) as tar:
        parts = {Path(member.name).name: member for member in tar.getmembers()}
        plan = plistlib.loads(tar.extractfile(parts["main.plist"]).read())
        raw = tar.extractfile(parts[plan["matrix"]["filename"]]).read()
    numbers = np.frombuffer(raw, plan["matrix"]["dtype"]).reshape(plan["matrix"]["shape"])
    attenuation = torch.from_numpy(numbers.astype(np.float32) / 1000 + 1).clamp(0, 3)
    attenuation = attenuation.permute(2, 1, 0)  # from slice, row, column
    width, depth, height = plan["spacing"]
    scale = (width / width, depth / width, height / width)
    size = [round(n * s) for n, s in zip(attenuation.shape, scale, strict=True)]
    return functional.interpolate(attenuation[None, None], size, mode="trilinear")[0, 0] / 3


def _there(path: Path) -> Path:
    if not path.is_file():
        package = next(name for root, name in PACKAGES.items() if path.is_relative_to(root))
        raise SystemExit(f"{path}: no such file. On Debian, `apt-get install {package}`.")
    return path


PEOPLE: dict[str, Callable[[], Person]] = {
    "colin27": partial(_sliced, "colin27", partial(_mricron, "ch2.nii.gz")),
    "colin27-brain": partial(_sliced, "colin27-brain", partial(_mricron, "ch2bet.nii.gz")),
    "cranium": partial(_projected, "cranium", _cranium),
    "mni152": partial(_sliced, "mni152", mni152),
    "inia19": partial(_sliced, "inia19", partial(_mricron, "inia19-t1-brain.nii.gz"), 0.5),
    "mni152-projected": partial(_projected, "mni152-projected", mni152),
    "inia19-projected": partial(
        _projected, "inia19-projected", partial(_mricron, "inia19-t1-brain.nii.gz")
    ),
}

Change = Callable[[Image.Image, Generator], Image.Image]


TURNS = {"rotation 3°": 3.0, "rotation 5°": -5.0, "rotation 10°": 10.0}
"""Degrees, counter-clockwise."""


def _turn(degrees: float) -> Change:
    return lambda image, _: image.rotate(degrees, Image.Resampling.BICUBIC)


def _gamma(exponent: float) -> Change:
    table = [round(255 * (grey / 255) ** exponent) for grey in range(256)]
    return lambda image, _: image.point(table)


def _noise(image: Image.Image, rng: Generator) -> Image.Image:
    noisy = np.asarray(image) + rng.normal(0, 0.05 * 255, image.size[::-1])
    return Image.fromarray(np.clip(noisy, 0, 255).round().astype(np.uint8))


def _jpeg(quality: int) -> Change:
    def change(image: Image.Image, _: Generator) -> Image.Image:
        encoded = io.BytesIO()
        image.save(encoded, "JPEG", quality=quality)
        return Image.open(encoded).convert("L")

    return change


def _half(image: Image.Image, _: Generator) -> Image.Image:
    small = image.resize([side // 2 for side in image.size], Image.Resampling.BILINEAR)
    return small.resize(image.size, Image.Resampling.BICUBIC)


def _shift(image: Image.Image, rng: Generator) -> Image.Image:
    """Shift by 4 % of the side, in any direction; what comes in is black."""
    angle, distance = rng.uniform(0, 2 * np.pi), 0.04 * image.width
    by = (1, 0, distance * np.cos(angle), 0, 1, distance * np.sin(angle))
    return image.transform(image.size, Image.Transform.AFFINE, by, Image.Resampling.BICUBIC)


def _warp(image: Image.Image, rng: Generator) -> Image.Image:
    """Move pixels along a smooth random field, by one pixel of 128 an axis (root mean square)."""
    generator = torch.Generator().manual_seed(int(rng.integers(1 << 31)))
    pixels = torch.from_numpy(np.asarray(image, np.float32))[None]
    field = smooth_field(1, 2, 6, pixels.shape[1:], generator)
    field *= 2 / SIDE / field.square().mean().sqrt()
    moved = resample(pixels, torch.eye(2)[None], field)[0]
    return Image.fromarray(moved.round().clamp(0, 255).to(torch.uint8).numpy())


COPIES: dict[str, Change] = {
    "identity": lambda image, _: image,
    "horizontal flip": lambda image, _: image.transpose(Image.Transpose.FLIP_LEFT_RIGHT),
    "vertical flip": lambda image, _: image.transpose(Image.Transpose.FLIP_TOP_BOTTOM),
    **{kind: _turn(degrees) for kind, degrees in TURNS.items()},
    "gamma 0.5": _gamma(0.5),
    "gamma 1.5": _gamma(1.5),
    "noise 5 %": _noise,
    "blur 1 pixel": lambda image, _: image.filter(ImageFilter.GaussianBlur(1)),
    "JPEG quality 60": _jpeg(60),
    "JPEG quality 30": _jpeg(30),
    "half the size and back": _half,
    "shift 4 %": _shift,
    "smooth warp, 1 pixel": _warp,
}


def _affine(image: Image.Image, matrix: tuple[float, ...]) -> Image.Image:
    return image.transform(image.size, Image.Transform.AFFINE, matrix, Image.Resampling.BICUBIC)


def _quarter_turn(image: Image.Image, rng: Generator) -> Image.Image:
    turns = Image.Transpose.ROTATE_90, Image.Transpose.ROTATE_270
    return image.transpose(turns[rng.integers(2)])


def _scale(image: Image.Image, rng: Generator) -> Image.Image:
    """Enlarge or shrink about the centre by 4 to 12 %; what comes in is black."""
    grow = 1 / (1 + rng.choice([-1, 1]) * rng.uniform(0.04, 0.12))
    width, height = image.size
    return _affine(image, (grow, 0, width / 2 * (1 - grow), 0, grow, height / 2 * (1 - grow)))


def _far_shift(image: Image.Image, rng: Generator) -> Image.Image:
    """Shift by 8 % of the side, in any direction; what comes in is black."""
    angle, distance = rng.uniform(0, 2 * np.pi), 0.08 * image.width
    return _affine(image, (1, 0, distance * np.cos(angle), 0, 1, distance * np.sin(angle)))


FURTHER: dict[str, Change] = {
    "quarter turn": _quarter_turn,
    "scale within 12 %": _scale,
    "inverted greys": lambda image, _: image.point([255 - grey for grey in range(256)]),
    "shift 8 %": _far_shift,
}
"""Ways of which no encoder is trained to be invariant to all."""


def changed(image: Grey, kind: str, rng: Generator) -> Grey:
    """Return a copy of an image (H, W), changed in one of the ways of COPIES or FURTHER."""
    return np.asarray((COPIES | FURTHER)[kind](Image.fromarray(image), rng))
