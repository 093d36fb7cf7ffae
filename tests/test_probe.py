"""Images looked for as a query does, against a brute force through every stage."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from pictures import TINY, drawn
from PIL import Image

from deepssim_scan.encoder import checkpoint
from deepssim_scan.encoder.network import Encoder, embed
from deepssim_scan.encoder.tta import embed_tta, seen
from deepssim_scan.imaging.registration.comparison import Pairs, compare_candidates
from deepssim_scan.imaging.registration.sides import sides
from deepssim_scan.index.build import build
from deepssim_scan.index.search import TrainingIndex
from deepssim_scan.ingest.config import RunContext
from deepssim_scan.ingest.listing import list_images
from deepssim_scan.ingest.standardise import standardise
from deepssim_scan.matching.candidates import Shown
from deepssim_scan.matching.evidence import RULE, Verifier
from deepssim_scan.matching.probe import Probe
from deepssim_scan.matching.views import Views
from deepssim_scan.store.embed_listing import Embedder
from deepssim_scan.store.reread import Reader, listing_of
from deepssim_scan.store.store import Store

COUNT, FOUND = 24, 6
RUN = RunContext("cpu", workers=0)
SIZES = {"of another size": TINY, "as they are": replace(TINY, standardisation=RULE)}


@pytest.fixture(scope="module", params=SIZES.values(), ids=SIZES)
def probe(request, tmp_path_factory):
    """Of 24 images of 8 subjects; the images are registered at 128 pixels a side."""
    root = tmp_path_factory.mktemp("probe")
    (root / "images").mkdir()
    for number in range(COUNT):
        Image.fromarray(drawn(number, 128)).save(root / "images" / f"{number:02d}.png")
    torch.manual_seed(0)
    checkpoint.save(root / "encoder", Encoder(request.param), {})
    embedder = Embedder(checkpoint.load(root / "encoder"), run=RUN)
    listing = list_images(root / "images")
    embedder.embed(listing, root / "store")
    with Store.open(root / "store") as store:
        build(store, root / "index")
        shown = Shown(TrainingIndex.open(root / "index", store), np.arange(COUNT) // 3)
        reader = Reader(store, listing_of(store, RUN), RULE, RUN)
        yield Probe(embedder, shown, Verifier(reader), FOUND, Views())


def standard(numbers, rule):
    grey = [drawn(int(number), 128).astype(np.float32) for number in numbers]
    return [standardise(image, rule) for image in grey]


def compared(image, views, rows):
    """What is found of an image in some views, and the training image beside it in each."""
    same = torch.from_numpy(standardise(image, RULE))[None]
    viewed = torch.cat([seen(same, view) for view in views])
    training = torch.from_numpy(np.stack(standard(rows, RULE)))
    each = np.arange(len(rows))
    return compare_candidates(viewed, sides(training), Pairs(each, each, 0 * each, rows // 3))


def test_what_is_found_is_that_of_a_brute_force(probe):
    """Candidates are of three subjects at least; two images are looked for without their own."""
    encoder = probe.embedder.loaded.encoder
    rule = encoder.architecture.standardisation
    sources = [2, 11, 20]
    images = [np.rot90(image).copy() for image in standard(sources, rule)]
    left_out = [np.arange(0, 3), np.arange(9, 12), np.empty(0, np.int64)]
    part = probe.look_for(images, left_out)
    gallery = embed(encoder, torch.from_numpy(np.stack(standard(range(COUNT), rule))))
    views = embed_tta(encoder, torch.from_numpy(np.stack(images)))
    scores = torch.einsum("qvd,nd->qvn", views, gallery).numpy()
    assert part.candidates.rows.shape == (3, FOUND)
    assert part.candidates.rows[2, 0] == 20
    for query, each in enumerate(scores):
        rows = part.candidates.rows[query]
        assert not set(rows) & set(left_out[query])
        np.testing.assert_allclose(part.candidates.scores[query], each.max(0)[rows], atol=1e-5)
        assert (np.diff(part.candidates.scores[query]) <= 0).all()
        taken = np.bincount(rows // 3).max()
        assert taken <= FOUND - 3
        for column, row in enumerate(rows):
            view = part.candidates.views[query, column]
            assert each[view, row] == pytest.approx(each[:, row].max(), abs=1e-5)
        wanted = compared(images[query], part.candidates.views[query], rows)
        correlation, measures = part.evidence.correlation[query], part.evidence.measures[query]
        np.testing.assert_allclose(correlation, wanted.correlation, atol=1e-3)
        np.testing.assert_allclose(measures, wanted.measures, atol=2e-3)
    own = part.candidates.rows == np.array(sources)[:, None]
    assert own.sum(1).tolist() == [0, 0, 1]
    sharp = encoder.architecture.standardisation == RULE  # else a small image is enlarged
    assert part.evidence.measures[own].min() > (0.95 if sharp else 0.6)
