"""Pairs verified from their files: real images, real stores, and files that changed meanwhile."""

import gzip
from types import SimpleNamespace

import nibabel
import numpy as np
import pytest
import torch
from pictures import TINY
from PIL import Image

from deepssim_scan.encoder import checkpoint
from deepssim_scan.encoder.network import Encoder
from deepssim_scan.encoder.tta import seen
from deepssim_scan.encoder.views import TTA_VIEWS
from deepssim_scan.errors import InputMissing
from deepssim_scan.imaging.names import NAMES
from deepssim_scan.imaging.registration.comparison import Pairs, compare_candidates
from deepssim_scan.imaging.registration.sides import sides
from deepssim_scan.index.rescore import Matches
from deepssim_scan.ingest import pipeline
from deepssim_scan.ingest.config import RunContext
from deepssim_scan.ingest.listing import list_images
from deepssim_scan.ingest.standardise import standardise
from deepssim_scan.matching import evidence
from deepssim_scan.matching.evidence import RULE, Verifier
from deepssim_scan.store import reread
from deepssim_scan.store.embed_listing import Embedder
from deepssim_scan.store.reread import Reader, listing_of
from deepssim_scan.store.store import Store
from deepssim_scan.training.pseudo_subjects import mni152, slices

RUN = RunContext("cpu", workers=0)
QUARTER, INVERTED = TTA_VIEWS.index((1, False)), TTA_VIEWS.index((0, True))


@pytest.fixture(scope="module")
def heads():
    """Ten slices of pseudo-subjects, larger than what is registered."""
    volume = mni152()
    cut = [
        slices(volume, axis, [0.4, 0.6], 160, torch.Generator().manual_seed(seed))
        for seed, axis in enumerate([0, 1, 2, 1, 2])
    ]
    return [Image.fromarray((each * 255).byte().numpy()) for each in torch.cat(cut)]


@pytest.fixture(scope="module")
def loaded(tmp_path_factory):
    path = tmp_path_factory.mktemp("encoder") / "e.safetensors"
    torch.manual_seed(0)
    checkpoint.save(path, Encoder(TINY), {})
    return checkpoint.load(path)


@pytest.fixture
def training(heads, tmp_path, loaded):
    """The store of a folder of ten training images: row n is n.png."""
    (tmp_path / "training").mkdir()
    for number, image in enumerate(heads):
        image.save(tmp_path / "training" / f"{number}.png")
    with stored(tmp_path / "training", tmp_path / "store", loaded) as store:
        yield store


def stored(images, folder, loaded):
    Embedder(loaded, run=RUN).embed(list_images(images), folder)
    return Store.open(folder)


def gathered(store, pixels, matches, images=None):
    """Gather the evidence of images with these pixels; no two training images are of one person."""
    reader = Reader(store, listing_of(store, RUN, images), RULE, RUN)
    return Verifier(reader).gather(there(pixels), matches, matches.rows)


def there(images):
    """Give images, by number, as a block of them is asked for."""
    return lambda part: SimpleNamespace(
        read=lambda: [(n - part.start, images[n]) for n in images if part.start <= n < part.stop]
    )


def standard(image):
    return standardise(np.asarray(image, np.float32), RULE)


def candidates(rows, views=0):
    """Name the candidates of some images, which were all found in one view."""
    rows = np.array(rows)
    scores = np.zeros(rows.shape, np.float32)
    return Matches(rows, scores, np.full(rows.shape, views, np.int8))


def every(count, views=0):
    """Name all ten training images as candidates of so many images."""
    return candidates([range(10)] * count, views)


def test_a_copy_is_found_with_what_was_done_to_it(training, heads):
    flip = Image.Transpose.FLIP_LEFT_RIGHT
    copies = [heads[3].transpose(flip), heads[5].rotate(-6, translate=(10, 5))]
    found = gathered(training, dict(enumerate(map(standard, copies))), every(2))
    assert np.nanargmax(found.ssim, 1).tolist() == [3, 5]
    assert np.nanargmax(found.measures, 1).T.tolist() == [[3, 5]] * len(NAMES)
    assert found.correlation.argmax(1).tolist() == [3, 5]
    assert found.registered.sum(1).tolist() == [3, 3]
    flipped, turned = (0, 3), (1, 5)
    assert (found.flip[flipped], found.flip[turned]) == (1, 0)
    assert found.degrees[flipped] == pytest.approx(0, abs=0.1)
    assert found.measures[flipped].min() > 0.99
    assert found.degrees[turned] == pytest.approx(-6, abs=0.2)
    assert found.scale[turned] == pytest.approx(1, abs=0.005)
    assert found.right[turned] == pytest.approx(10 * 128 / 160, abs=0.3)
    assert found.down[turned] == pytest.approx(5 * 128 / 160, abs=0.3)
    assert found.measures[turned].min() > 0.9
    assert not found.missing.any()


def test_a_copy_is_registered_in_the_view_in_which_it_was_found(training, heads):
    copies = [
        heads[4].transpose(Image.Transpose.ROTATE_270),
        Image.fromarray(255 - np.asarray(heads[6])),
    ]
    views = np.array([[QUARTER], [INVERTED]])
    pixels = dict(enumerate(map(standard, copies)))
    for view, high in ((views, True), (0, False)):
        found = gathered(training, pixels, candidates([[4], [6]], view))
        assert ((found.measures > 0.98).all(-1) == high).all()


@pytest.mark.parametrize("block", [1, 4, 64])
def test_evidence_is_that_of_each_image_alone(block, training, heads, monkeypatch):
    """Of candidates in any order, of which some are those of several images, in any blocks."""
    monkeypatch.setattr(evidence, "CHUNK", block)
    rng = np.random.default_rng(0)
    pixels = [standard(image.rotate(4)) for image in heads[:6]]
    rows = np.stack([rng.permutation(10)[:5] for _ in pixels])
    views = rng.integers(0, len(TTA_VIEWS), rows.shape).astype(np.int8)
    matches = Matches(rows, rng.random(rows.shape).astype(np.float32), views)
    known = {number: image for number, image in enumerate(pixels) if number != 4}
    found = gathered(training, known, matches)
    assert found.missing.all(1).tolist() == [number == 4 for number in range(6)]
    for query in known:
        view = [seen(torch.from_numpy(pixels[query])[None], each)[0] for each in views[query]]
        sources = np.stack([standard(heads[row]) for row in rows[query]])
        each = np.arange(5)
        pairs = Pairs(each, each, np.zeros(5, int), rows[query])
        wanted = compare_candidates(torch.stack(view), sides(torch.from_numpy(sources)), pairs)
        assert found.flip[query].tolist() == wanted.flip.tolist()
        np.testing.assert_allclose(found.correlation[query], wanted.correlation, atol=1e-4)
        np.testing.assert_allclose(found.measures[query], wanted.measures, atol=1e-3)
        moved = np.stack([found.right[query], found.down[query]], 1)
        np.testing.assert_allclose(moved, wanted.shift, atol=0.02)
        for name in ("degrees", "scale", "gamma", "foreground"):
            value = getattr(found, name)[query]
            np.testing.assert_allclose(value, getattr(wanted, name), atol=0.02)


def test_each_training_image_that_is_a_candidate_is_read_once(training, heads, monkeypatch):
    asked, exact = [], Reader.wanted
    monkeypatch.setattr(
        Reader, "wanted", lambda self, rows: asked.append(rows) or exact(self, rows)
    )
    decoded = []
    monkeypatch.setattr(
        reread, "decoded", lambda task: decoded.extend(task.items) or pipeline.decoded(task)
    )
    pixels = {number: standard(image) for number, image in enumerate(heads[:3])}
    matches = candidates([[5, 2], [2, 5], [9, 2]])
    assert not gathered(training, pixels, matches).missing.any()
    assert asked == [[2, 5, 9]]
    assert [item.path for item in decoded] == ["2.png", "5.png", "9.png"]


def test_a_training_image_that_is_gone_or_another_now_has_no_evidence(training, heads):
    folder = training.folder.parent / "training"
    (folder / "3.png").unlink()
    Image.effect_noise((160, 160), 40).save(folder / "5.png")
    (folder / "7.png").write_bytes(b"no image any more")
    pixels = {number: standard(heads[number]) for number in range(3)}
    found = gathered(training, pixels, every(3))
    assert found.missing.tolist() == [[row in (3, 5, 7) for row in range(10)]] * 3
    assert (np.isnan(found.measures).all(-1) == ~found.registered).all()
    assert ((found.flip == -1) == ~found.registered).all()
    assert not (found.missing & found.registered).any()


def test_a_training_folder_that_moved_can_be_named(training, heads):
    folder = training.folder.parent
    (folder / "training").rename(folder / "moved")
    for images in (None, folder / "nowhere"):
        with pytest.raises(InputMissing):
            gathered(training, {}, every(1), images)
    found = gathered(training, {0: standard(heads[3])}, every(1), folder / "moved")
    assert not found.missing.any()
    assert found.ssim[0, 3] > 0.99


def test_slices_of_a_volume_are_verified_one_by_one(heads, tmp_path, loaded):
    stack = np.stack([np.asarray(image).T for image in heads], 2)
    image = nibabel.Nifti1Image(stack, np.eye(4))
    (tmp_path / "volumes").mkdir()
    with gzip.open(tmp_path / "volumes" / "scan.nii.gz", "wb") as file:
        file.write(image.to_bytes())
    with stored(tmp_path / "volumes", tmp_path / "store", loaded) as store:
        names = [record.name for record in store.records_at(list(range(10)))]
        found = gathered(store, {0: standard(heads[3])}, every(1))
    assert not found.missing.any()
    assert names[int(np.nanargmax(found.ssim))] == "scan.nii.gz#axis=2,slice=3"
    best = np.sort(found.ssim[found.registered])
    assert best[-2] < 0.99 < best[-1]
