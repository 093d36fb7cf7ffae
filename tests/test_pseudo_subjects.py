"""Pseudo-subjects: the same person on every axis, and slices where they say they are."""

import sys

import nibabel
import numpy as np
import pytest
import scipy.ndimage
import torch

from deepssim_scan.errors import DependencyMissing
from deepssim_scan.training import pseudo_subjects as subjects
from deepssim_scan.training.pseudo_subjects import load_volume, mni152, projections, slices

AXES = (0, 1, 2)


def person(seed=0):
    return torch.Generator().manual_seed(seed)


@pytest.fixture(scope="module")
def volume():
    """A head of sorts: smooth, of three different sides, nought at its border."""
    shape = (20, 26, 22)
    noise = np.random.default_rng(5).standard_normal(shape)
    places = np.meshgrid(*(np.linspace(-1, 1, side) for side in shape), indexing="ij")
    inside = np.sqrt(sum(place**2 for place in places)) < 0.8
    values = scipy.ndimage.gaussian_filter(inside * (1 + noise), 1)
    return torch.tensor((values - values.min()) / np.ptp(values), dtype=torch.float32)


def reference_slices(volume, axis, positions, side):
    """The slices by scipy: four points a pixel, each read by trilinear interpolation."""
    fine = 2 * side
    shape = np.array(volume.shape)
    across = ((np.arange(fine) + 0.5) / fine - 0.5) * shape.max()  # voxels from the middle
    column_axis, row_axis = (other for other in AXES if other != axis)
    found = []
    for position in positions:
        where = np.empty((3, fine, fine))
        where[column_axis] = across[None, :] + shape[column_axis] / 2 - 0.5
        where[row_axis] = -across[:, None] + shape[row_axis] / 2 - 0.5
        where[axis] = position * shape[axis] - 0.5
        read = scipy.ndimage.map_coordinates(volume.numpy(), where, order=1, mode="grid-constant")
        found.append(read.reshape(side, 2, side, 2).mean((1, 3)))
    return np.stack(found)


@pytest.mark.parametrize("axis", AXES)
@pytest.mark.parametrize("side", [16, 31])
def test_without_a_subject_slices_equal_scipys(volume, axis, side):
    positions = [0.0, 0.3, 0.5, 0.77, 1.0]
    found = slices(volume, axis, positions, side, None)
    expected = reference_slices(volume, axis, positions, side)
    assert found.shape == (5, side, side)
    np.testing.assert_allclose(found.numpy(), expected, rtol=0, atol=1e-5)
    assert expected.std() > 0.1


@pytest.mark.parametrize(
    ("axis", "block"),
    [
        (0, np.s_[:, 16:, 16:]),  # sagittal: anterior to the right, superior on top
        (1, np.s_[16:, :, 16:]),  # coronal: right to the right, superior on top
        (2, np.s_[16:, 16:, :]),  # axial: right to the right, anterior on top
    ],
)
def test_orientation(axis, block):
    volume = torch.zeros(24, 24, 24)
    volume[block] = 1
    (image,) = slices(volume, axis, [0.5], 24, None)
    top_right = torch.zeros(24, 24, dtype=torch.bool)
    top_right[:8, 16:] = True
    assert image[top_right].mean() > 0.9
    assert image[~top_right].mean() < 0.02


@pytest.mark.parametrize("axis", AXES)
def test_positions_are_fractions_of_the_axis(axis):
    ramp = torch.arange(40.0).reshape([-1 if other == axis else 1 for other in AXES])
    images = slices(ramp.expand(40, 40, 40), axis, [0.125, 0.5, 0.8], 20, None)
    expected = torch.tensor([0.125, 0.5, 0.8]) * 40 - 0.5
    torch.testing.assert_close(images[:, 10, 10], expected)


@pytest.mark.parametrize("axis", AXES)
def test_a_subject_is_reproducible_and_like_no_other(volume, axis):
    first = slices(volume, axis, [0.4, 0.6], 24, person(1))
    assert torch.equal(first, slices(volume, axis, [0.4, 0.6], 24, person(1)))
    other = slices(volume, axis, [0.4, 0.6], 24, person(2))
    nobody = slices(volume, axis, [0.4, 0.6], 24, None)
    assert (first - other).abs().mean() > 0.01
    assert (first - nobody).abs().mean() > 0.01
    assert first.min() == 0
    assert first.max() == 1


def test_all_slices_of_a_subject_are_of_one_person(volume, monkeypatch):
    """Sagittal and coronal slices agree where they cross, whatever else is cut with them."""
    monkeypatch.setattr(subjects, "_appearance", lambda images, subject, shell: images)
    monkeypatch.setattr(subjects, "_OVERSAMPLING", 1)
    cube, side = volume[:20, :20, :20], 12
    positions = [(place + 0.5) / side for place in range(side)]
    sagittal = slices(cube, 0, positions, side, person(3))
    coronal = slices(cube, 1, positions, side, person(3))
    axial = slices(cube, 2, positions, side, person(3))
    # Rows of the first two run from superior, so their first row is the last axial slice.
    torch.testing.assert_close(sagittal.permute(0, 2, 1), coronal.permute(2, 0, 1))
    torch.testing.assert_close(axial.flip(1).permute(2, 1, 0), sagittal.permute(0, 2, 1).flip(2))
    torch.testing.assert_close(slices(cube, 1, positions[4:5], side, person(3))[0], coronal[4])
    moved = (coronal - slices(cube, 1, positions, side, None)).abs().mean()
    assert moved > 0.01


def test_some_subjects_have_a_shell_and_some_do_not():
    ball = torch.linspace(-1, 1, 40).square()
    ball = ((ball[:, None, None] + ball[:, None] + ball).sqrt() < 0.5).float()
    bodies = [(slices(ball, 2, [0.5], 40, person(seed)) > 0.15).sum() for seed in range(24)]
    plain = (ball[20] > 0.15).sum()
    wide = [bool(body > 1.6 * plain) for body in bodies]
    assert 4 < sum(wide) < 20


@pytest.mark.parametrize("kind", [np.int16, np.float32])
def test_a_volume_is_turned_to_right_anterior_superior(tmp_path, kind):
    values = np.random.default_rng(0).integers(0, 1000, (5, 6, 7)).astype(kind)
    affine = np.diag([2.0, 2, 2, 1])
    turned = np.zeros((4, 4))  # the axes on disk: inferior, left, anterior
    turned[2, 0], turned[0, 1], turned[1, 2], turned[3, 3] = -2, -2, 2, 1
    nibabel.save(nibabel.Nifti1Image(values, affine), tmp_path / "plain.nii.gz")
    stored = np.ascontiguousarray(values[::-1, :, ::-1].transpose(2, 0, 1))
    nibabel.save(nibabel.Nifti1Image(stored, turned), tmp_path / "turned.nii.gz")
    expected = torch.tensor((values - values.min()) / np.ptp(values), dtype=torch.float32)
    for name in ("plain.nii.gz", "turned.nii.gz"):
        found = load_volume(tmp_path / name)
        assert found.dtype == torch.float32
        torch.testing.assert_close(found, expected)


def test_mni152_is_a_head():
    volume = mni152()
    assert volume.shape == (197, 233, 189)
    assert volume.min() == 0
    assert volume.max() == 1
    (axial,) = slices(volume, 2, [0.5], 32, None)
    assert axial[12:20, 12:20].mean() > 0.3
    assert axial[:, 0].max() == 0
    assert abs(axial - axial.flip(1)).mean() < 0.05  # left and right are alike
    assert abs(axial - axial.flip(0)).mean() > 0.05


def test_without_nilearn_the_extra_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "nilearn.datasets", None)
    with pytest.raises(DependencyMissing, match=r"nilearn.*\[cpu,demo\]"):
        mni152()


def test_projections_without_a_subject_are_means_along_scipys_rays(volume):
    """Around the third axis: rotated by scipy, then averaged along the second."""
    cube = volume[:20, :20, :20]
    angles = [0.0, 90.0, 30.0]
    images = projections(cube, angles, 20, None)
    assert images.shape == (3, 20, 20)
    for angle, image in zip(angles, images.numpy(), strict=True):
        turned = scipy.ndimage.rotate(
            cube.numpy(), -angle, axes=(0, 1), reshape=False, order=1, mode="constant"
        )
        wanted = turned.mean(1).T[::-1]
        wanted = (wanted - wanted.min()) / (wanted.max() - wanted.min())
        inner = np.s_[:, 4:-4]
        assert np.corrcoef(image[inner].ravel(), wanted[inner].ravel())[0, 1] > 0.97


def test_projections_see_superior_at_the_top_and_a_shell_only_when_asked(volume):
    tall = torch.zeros(16, 16, 16)
    tall[:, :, 12:] = 1
    image = projections(tall, [40.0], 16, None)[0]
    assert image[:4].mean() > 0.5
    assert image[6:].max() < 0.1
    plain = projections(volume, [0.0, 50.0], 24, person(1), shell=False)
    torch.testing.assert_close(plain, projections(volume, [0.0, 50.0], 24, person(1), shell=False))
    assert (
        plain - projections(volume, [0.0, 50.0], 24, person(2), shell=False)
    ).abs().mean() > 0.01
