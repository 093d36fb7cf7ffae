"""Folders in memory: what is read of them, what is refused, and which subjects are held out."""

import shutil
from dataclasses import replace

import numpy as np
import pytest
import torch
from dicom_bytes import PATIENT_ID, dicom
from pictures import TINY_CONVNEXT, in_memory, write
from pictures import drawn as picture

from deepssim_scan.errors import InputError
from deepssim_scan.ingest.config import IngestConfig, RunContext
from deepssim_scan.ingest.config.read_options import ReadOptions
from deepssim_scan.ingest.config.selection import Selection
from deepssim_scan.ingest.listing import list_images
from deepssim_scan.ingest.pipeline import decode_images
from deepssim_scan.progress import Silent
from deepssim_scan.training.config import TrainingConfig
from deepssim_scan.training.dataset import load_dataset

SIDE = 32


def test_a_folder_is_split_without_overlap(corpus, tiny):
    images = in_memory(corpus, tiny, held_out=0.3)
    training, validation = images.training.pixels, images.validation.pixels
    assert training.dtype == validation.dtype == torch.float16
    assert validation.shape == (36, SIDE, SIDE)
    assert training.shape == (120 - 36 - 2 * 2 * 8, SIDE, SIDE)  # 8 beside each end of two runs
    assert images.rejected == 0
    assert len(torch.cat([training, validation]).float().unique(dim=0)) == 88


def test_progress_counts_the_files_that_were_read(corpus, tiny):
    class Counting(Silent):
        def __init__(self):
            self.seen = []

        def __call__(self, stage, done, total, note=""):
            self.seen.append((stage, done, total))

    progress = Counting()
    run = RunContext(workers=0, progress=progress)
    load_dataset(list_images(corpus), tiny, TrainingConfig(), IngestConfig(), run)
    assert progress.seen == [("files read", number, 120) for number in range(1, 121)]


def test_at_least_32_images_are_held_out_and_the_seed_chooses_them(corpus, tiny):
    first, again, other = (
        in_memory(corpus, tiny, held_out=0.01, seed=seed).validation.pixels for seed in (0, 0, 1)
    )
    assert len(first) == 32
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def test_an_image_that_is_held_out_is_not_trained_on_under_another_name(tmp_path, tiny):
    """It would be taken for a non-member that looks like a copy."""
    write(tmp_path, 100, per_folder=100)
    shutil.copytree(tmp_path / "000", tmp_path / "again")
    images = in_memory(tmp_path, tiny)
    trained = images.training.pixels.flatten(1)
    assert len(trained) > 100
    assert not any((trained == held).all(1).any() for held in images.validation.pixels.flatten(1))


def sides(folder, architecture, ingest=IngestConfig(), seed=0):
    """Load a folder, and return for each image, by its record, on which side of the split it is."""
    run = RunContext(workers=0)
    listing = list_images(folder, ingest.selection, run)
    config = TrainingConfig(held_out=0.3, seed=seed)
    dataset = load_dataset(listing, architecture, config, ingest, run)
    found = {}
    for item in decode_images(listing, architecture.standardisation, ingest, run):
        for image in item:
            pixels = torch.from_numpy(image.pixels).half()
            found[image.record] = [
                name
                for name, part in (("training", dataset.training), ("held", dataset.validation))
                if (part.pixels == pixels).flatten(1).all(1).any()
            ]
    assert all(len(each) == 1 for each in found.values())  # no image is lost, and none is on both
    assert dataset.seen == {record.digest for record, each in found.items() if each == ["training"]}
    return {record: each for record, (each,) in found.items()}


def by_subject(found, subject):
    """Return the sides on which the images of each subject are."""
    both = {}
    for record, side in found.items():
        both.setdefault(subject(record), set()).add(side)
    return both


@pytest.mark.parametrize("people", [2, 5, 30])
def test_a_subject_of_a_manifest_is_on_one_side_wherever_its_files_lie(people, tmp_path, tiny):
    """Subjects in three folders: folders alone would not tell; few that are known count as many."""
    write(tmp_path, 90, per_folder=30)
    paths = sorted(path.relative_to(tmp_path).as_posix() for path in tmp_path.rglob("*.png"))
    subjects = {path: f"P{number % people}" for number, path in enumerate(paths)}
    manifest = tmp_path / "subjects.csv"
    rows = ["path,subject", *(f"{path},{subject}" for path, subject in subjects.items())]
    manifest.write_text("\n".join(rows) + "\n")
    found = sides(tmp_path, tiny, IngestConfig(Selection(manifest=manifest)))
    held = by_subject(found, lambda record: subjects[record.path])
    assert len(held) == people
    assert all(len(each) == 1 for each in held.values())
    assert 32 <= list(found.values()).count("held") < 32 + 90 // people


def test_a_subject_of_a_regular_expression_is_on_one_side(tmp_path, tiny):
    """Slices of 25 subjects, interleaved in one folder: runs of files would part them."""
    write(tmp_path / "drawn", 100, per_folder=100)
    for number, path in enumerate(sorted((tmp_path / "drawn").rglob("*.png"))):
        path.rename(tmp_path / f"{number // 25}-sub{number % 25:02d}.png")
    found = sides(tmp_path, tiny, IngestConfig(subject_regex=r"sub\d+"))
    held = by_subject(found, lambda record: record.path[-6:])
    assert len(held) == 25
    assert all(len(each) == 1 for each in held.values())


def test_few_subjects_are_on_one_side_where_not_all_images_have_one(tmp_path, tiny):
    """One stray image made all be split by runs of files, which part subjects."""
    write(tmp_path / "drawn", 100, per_folder=100)
    for number, path in enumerate(sorted((tmp_path / "drawn").rglob("*.png"))):
        name = f"{number // 10}-sub{number % 10}.png" if number else "stray.png"
        path.rename(tmp_path / name)
    found = sides(tmp_path, tiny, IngestConfig(subject_regex=r"sub\d+"))
    held = by_subject(found, lambda record: record.subject)
    assert held.keys() == {"", *(f"sub{number}" for number in range(10))}
    assert all(len(each) == 1 for each in held.values())


@pytest.mark.parametrize("key", [b"", b"a secret of a user's own"])
def test_a_patient_of_dicom_files_is_on_one_side_with_and_without_a_key(key, tmp_path, tiny):
    """Slices of 24 patients, interleaved in one folder, under names that say nothing."""
    for number in range(96):
        patient = f"{PATIENT_ID[:-2]}{number % 24:02d}".encode()
        data = dicom(picture(number, 32)).replace(PATIENT_ID.encode(), patient)
        (tmp_path / f"{number:03d}.dcm").write_bytes(data)
    ingest = IngestConfig(read_options=ReadOptions(subject_key=key))
    found, again, other = (sides(tmp_path, tiny, ingest, seed) for seed in (0, 0, 1))
    held = by_subject(found, lambda record: int(record.path[:3]) % 24)
    assert len(held) == 24
    assert all(len(each) == 1 for each in held.values())
    assert list(again.values()) == list(found.values())  # the hash has no say
    assert list(other.values()) != list(found.values())


def test_folders_are_held_out_whole_where_nothing_else_tells_subjects(tmp_path, tiny):
    write(tmp_path, 80, per_folder=4)  # 20 folders
    found = sides(tmp_path, tiny)
    held = by_subject(found, lambda record: record.path.rpartition("/")[0])
    assert len(held) == 20
    assert all(len(each) == 1 for each in held.values())
    assert list(found.values()).count("held") == 32


def test_a_volume_is_one_subject_and_its_blank_slices_are_no_rejections(tmp_path, tiny):
    for number in range(22):
        slices = [np.zeros((32, 32)), *(picture(4 * number + each, 32) for each in range(4))]
        np.save(tmp_path / f"{number:02d}.npy", np.stack(slices).astype(np.uint8))
    dataset = in_memory(tmp_path, tiny, held_out=0.3)
    assert dataset.rejected == 0
    assert len(dataset.training) + len(dataset.validation) == 88
    slices = IngestConfig(read_options=ReadOptions(slices="1:5"))
    held = by_subject(sides(tmp_path, tiny, slices), lambda record: record.path)
    assert len(held) == 22
    assert all(len(each) == 1 for each in held.values())


def test_no_more_than_max_images_are_read(corpus, tiny):
    images = in_memory(corpus, tiny, max_images=70)
    assert len(images.training.pixels) == 70 - 32 - 2 * 2 * 1
    assert len(images.validation.pixels) == 32
    other = in_memory(corpus, tiny, seed=1, max_images=70)
    assert not torch.equal(images.training.pixels[:30], other.training.pixels[:30])


def test_no_more_than_max_images_of_volumes_are_kept_from_all_over(tmp_path, tiny):
    """All slices of as many volumes were kept, which may be more than a machine holds."""
    volumes = [[picture(10 * number + each, 32) for each in range(10)] for number in range(70)]
    for number, slices in enumerate(volumes):
        np.save(tmp_path / f"{number:02d}.npy", np.stack(slices))
    images, again, other = (in_memory(tmp_path, tiny, max_images=80, seed=n) for n in (0, 0, 1))
    assert len(images.training) + len(images.validation) == 80
    assert torch.equal(images.training.pixels, again.training.pixels)
    assert not torch.equal(images.training.pixels[:30], other.training.pixels[:30])
    found = list_images(tmp_path)
    everything = decode_images(found, tiny.standardisation, IngestConfig(), RunContext(workers=0))
    number = {
        torch.from_numpy(image.pixels).half().numpy().tobytes(): at
        for at, volume in enumerate(everything)
        for image in volume
    }
    parts = images.training.pixels, images.validation.pixels
    of = [[number[each.numpy().tobytes()] for each in part] for part in parts]
    assert not set(of[0]) & set(of[1])
    assert of == [sorted(part) for part in of]
    assert len({*of[0], *of[1]}) > 35


def test_rejected_images_are_counted(tmp_path, tiny):
    write(tmp_path, 70, per_folder=70)
    (tmp_path / "000" / "0003.png").write_bytes(b"no image")
    images = in_memory(tmp_path, tiny, held_out=0.3)
    assert images.rejected == 1
    assert len(images.training.pixels) == 69 - 32 - 2 * 2 * 1
    assert len(images.validation.pixels) == 32


def test_fewer_than_64_images_are_refused(tmp_path, tiny):
    write(tmp_path, 64, per_folder=64)
    in_memory(tmp_path, tiny, held_out=0.3)
    (tmp_path / "000" / "0003.png").unlink()
    with pytest.raises(InputError, match="63 readable images; training needs 64"):
        in_memory(tmp_path, tiny, held_out=0.3)


def test_several_sizes_are_refused_where_they_stay(tmp_path, tiny):
    write(tmp_path / "a", 60, per_folder=60)
    write(tmp_path / "b", 10, per_folder=10, side=40)
    in_memory(tmp_path, tiny, held_out=0.3)
    with pytest.raises(InputError, match="images of several sizes"):
        in_memory(tmp_path, TINY_CONVNEXT)


def test_images_too_small_for_the_architecture_are_refused(tmp_path):
    write(tmp_path, 64, per_folder=64, side=8)
    in_memory(tmp_path, TINY_CONVNEXT)
    deeper = replace(TINY_CONVNEXT, depths=(1,) * 3, widths=(8,) * 3)
    with pytest.raises(InputError, match="images of 8 pixels a side; this architecture needs 16"):
        in_memory(tmp_path, deeper)


def test_holding_nearly_all_out_is_refused(tmp_path, tiny):
    write(tmp_path, 70, per_folder=70)
    with pytest.raises(InputError, match="of 70 images 63 are held out and 7 are left"):
        in_memory(tmp_path, tiny, held_out=0.9)
