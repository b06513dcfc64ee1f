"""What lies on both sides of a split, what would leave the site, and the other shapes of data."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import get_args

import numpy as np
from PIL import Image
from small_hospital import CLASSES, Rows, checked, only_reason, write_hospital

from client.site.datacheck import check_data, examine
from client.site.leaving import PARTS, SHORT
from popmi_core.asking import Part
from popmi_core.config import RunConfig
from popmi_core.data import DERMOSCOPY_CLASSES


# Leakage.
def _copy(folder: Path, source: str, *targets: str) -> None:
    for target in targets:
        (folder / "images" / f"{target}.png").write_bytes((folder / "images" / f"{source}.png").read_bytes())


def test_the_same_picture_in_two_splits_is_refused(tmp_path: Path) -> None:
    folder = write_hospital(tmp_path)
    _copy(folder, "anna00", "anna26", "anna36")

    found = examine(str(folder), CLASSES, None, 8)

    assert "fewer than 5 picture(s) lie in more than one split, pixel by pixel the same" in only_reason(found.report)
    assert [(entry.row, entry.file, entry.what) for entry in found.details.entries] == [
        (28, "anna26", "the same pixels as row 2, in another split"),
        (38, "anna36", "the same pixels as row 2, in another split"),
    ]


def test_copies_inside_a_split_are_a_warning_and_so_are_two_classes_for_one(tmp_path: Path) -> None:
    folder = write_hospital(tmp_path)
    _copy(folder, "anna00", "anna01", "anna02")

    report = checked(folder)

    assert report.verdict == "usable"
    assert (report.leakage.same_within, report.leakage.same_across, report.leakage.same_other_class) == (None, 0, None)
    assert report.warnings == (
        "fewer than 5 image(s) are copies, pixel by pixel, of another one in their split.",
        "fewer than 5 picture(s) carry two different classes. One of them is wrong.",
    )


def test_a_patient_in_two_splits_is_refused_with_the_rows(tmp_path: Path) -> None:
    folder = write_hospital(tmp_path, lambda rows: rows[40].update(patient_id="meier00"))

    found = examine(str(folder), CLASSES, None, 8)

    assert "1 lesion(s) or patient(s) lie in more than one split (rows 2, 42)" in only_reason(found.report)
    assert found.report.leakage.torn_groups is None
    assert [entry.file for entry in found.details.entries] == ["anna00", "anna40"]


def test_a_torn_patient_is_told_beside_another_fault_of_the_table(tmp_path: Path) -> None:
    def change(rows: Rows) -> None:
        rows[40].update(patient_id="meier00")
        rows[7].update(image="anna02")

    report = checked(write_hospital(tmp_path, change))

    assert len(report.reasons) == 2
    assert "names 1 image(s) more than once (rows 4, 9)" in report.reasons[0]
    assert report.reasons[1].startswith("fewer than 5 patient(s) or lesion(s) lie in more than one split. Put each")


def test_images_that_nothing_groups_are_a_warning(tmp_path: Path) -> None:
    report = checked(write_hospital(tmp_path, lambda rows: [row.pop("patient_id") for row in rows]))
    assert report.leakage.grouped_by == "nothing"
    assert "Give labels.csv a column patient_id or lesion_id" in report.warnings[0]


def test_images_that_only_some_rows_group_are_a_warning(tmp_path: Path) -> None:
    report = checked(write_hospital(tmp_path, lambda rows: rows[0].update(patient_id="")))

    assert report.leakage.grouped_by == "patient, some rows by nothing"
    assert "Give labels.csv a column patient_id or lesion_id" in report.warnings[0]


# Other shapes.
def test_class_folders_are_checked_as_well(tmp_path: Path) -> None:
    for place, label in enumerate(("mel", "nv")):
        (tmp_path / "klinik" / label).mkdir(parents=True)
        for number in range(20):
            Image.new("RGB", (6, 6), (place * 40, number, 0)).save(
                tmp_path / "klinik" / label / f"anna{number:02d}.png"
            )
    (tmp_path / "klinik" / "nv" / "anna03.png").write_text("no picture")

    found = examine(str(tmp_path / "klinik"), CLASSES, None, 6)

    assert checked(tmp_path / "klinik").verdict == "usable"
    assert found.report.source == "class folders"
    assert sum(told.images or 0 for told in found.report.splits) <= 39
    assert [(entry.row, entry.file) for entry in found.details.entries] == [(24, "nv/anna03.png")]


def test_class_folders_without_a_class_are_told_with_their_rows_and_the_rest_is_counted(tmp_path: Path) -> None:
    folder = tmp_path / "klinik"
    for place, label in enumerate(("mel", "meierfleck", "nv", "annas")):
        (folder / label).mkdir(parents=True)
        for number in range(20):
            Image.new("RGB", (6, 6), (place * 40, number, 0)).save(folder / label / f"{number:02d}.png")
    (folder / "nv" / "03.png").write_text("no picture")
    (folder / "nv" / "04.png").write_bytes((folder / "nv" / "05.png").read_bytes())

    report = checked(folder)
    details = examine(str(folder), CLASSES, None, 8).details

    assert "2 label(s) in 40 row(s) have no class (rows 1, 2, 3, 4, 5, 6, 7, 8 and 32 more)" in report.reasons[0]
    assert (report.labels.unmapped_words, report.labels.unmapped_rows[-1], report.labels.excluded) == (2, 20, 0)
    assert report.splits[0].images == 27  # of 39; the other two splits are small
    assert [entry.reason for entry in report.unread] == ["image cannot be decoded (UnidentifiedImageError)"]
    # The two that are the same lie in one split or in two.
    assert None in (report.leakage.same_within, report.leakage.same_across)
    words = [entry.what for entry in details.entries if entry.what.startswith("word")]
    assert words[0].startswith("word without a class: 'annas' in 20 row(s): rows 1, 2, 3")
    assert words[1].startswith("word without a class: 'meierfleck' in 20 row(s): rows 21, 22, 23")
    mended = check_data(str(folder), CLASSES, {"annas": "exclude", "MEIERFLECK": "bcc"}, 6)
    assert (mended.labels.unmapped_words, mended.labels.excluded) == (0, 20)


def test_a_label_map_of_class_folders_that_cannot_be_used_is_refused(tmp_path: Path) -> None:
    for label in ("mel", "nv"):
        (tmp_path / "klinik" / label).mkdir(parents=True)
        Image.new("RGB", (6, 6)).save(tmp_path / "klinik" / label / "1.png")

    assert "the label map maps 1 word(s) to what is no class of the study" in only_reason(
        check_data(str(tmp_path / "klinik"), CLASSES, {"mel": "benign"}, 8)
    )
    missing = check_data(str(tmp_path / "klinik"), CLASSES, tmp_path / "no.csv", 8)
    assert "the label map cannot be read (FileNotFoundError)" in only_reason(missing)


def _npz(path: Path, **arrays: np.ndarray) -> str:
    rng = np.random.default_rng(0)
    for split, number in (("train", 60), ("val", 18), ("test", 18)):
        arrays[f"{split}_images"] = rng.integers(0, 256, (number, 8, 8), dtype=np.uint8)
        arrays[f"{split}_labels"] = (np.arange(number) % 3).astype(np.uint8)[:, None]
        arrays[f"{split}_site"] = (np.arange(number) % 2).astype(np.uint8)
    np.savez(path, **arrays)
    return str(path)


def test_classes_of_an_npz_file_without_a_class_are_told_with_their_rows_and_the_rest_is_counted(
    tmp_path: Path,
) -> None:
    names = {"class_names": np.array(["mel", "Meierfleck", "nv"]), "site_names": np.array(["west", "east"])}
    place = _npz(tmp_path / "klinik.npz", **names)

    found = examine(place, CLASSES, None, 8)
    part = examine(f"{place}#part=east", CLASSES, None, 8)

    assert "1 label(s) in 32 row(s) have no class (rows 2, 5, 8" in only_reason(found.report)
    assert [told.images for told in found.report.splits] == [40, 12, 12]
    assert found.details.entries[0].what.startswith("word without a class: 'Meierfleck' in 32 row(s): rows 2, 5, 8")
    # East has every second picture: its own places, as its readers count them.
    assert "1 label(s) in 16 row(s) have no class (rows 1, 4, 7" in only_reason(part.report)
    assert [told.images for told in part.report.splits] == [20, 6, 6]
    assert check_data(place, CLASSES, {"meierfleck": "bcc"}, 8).verdict == "usable"
    lost = check_data(f"{place}#part=north", CLASSES, None, 8)
    assert "no part 'north'; its parts are east, west" in only_reason(lost)


def test_an_npz_file_without_names_has_words_only_where_its_places_are_not_the_projects(tmp_path: Path) -> None:
    place = _npz(tmp_path / "klinik.npz")

    assert check_data(place, CLASSES, None, 8).verdict == "usable"
    assert "3 label(s) in 96 row(s) have no class" in check_data(place, ("mel", "nv"), None, 8).reasons[0]


def test_an_npz_file_is_checked_as_well(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    arrays: dict[str, np.ndarray] = {"class_names": np.array(CLASSES)}
    for split, number in (("train", 60), ("val", 15), ("test", 18)):
        arrays[f"{split}_images"] = rng.integers(0, 256, (number, 8, 8), dtype=np.uint8)
        arrays[f"{split}_labels"] = (np.arange(number) % 3).astype(np.uint8)[:, None]
    arrays["test_images"][4] = arrays["train_images"][7]
    np.savez(tmp_path / "klinik.npz", **arrays)

    found = examine(str(tmp_path / "klinik.npz"), CLASSES, None, 8)

    assert [told.classes for told in found.report.splits] == [(20, 20, 20), (5, 5, 5), (6, 6, 6)]
    assert "fewer than 5 picture(s) lie in more than one split" in only_reason(found.report)
    assert found.details.entries[0].what == "the same pixels as row 8, in another split"
    assert found.details.entries[0].row == 80


def test_a_phantom_is_checked_and_says_so() -> None:
    report = check_data("phantom:phantom_slide", DERMOSCOPY_CLASSES, None, 16)

    assert (report.verdict, report.phantom, report.source) == ("usable", True, "phantom")
    assert check_data("phantom:phantom_slide", CLASSES, None, 16).verdict == "refused"
    assert check_data("phantom:nobody", CLASSES, None, 16).verdict == "refused"


# What would leave.
def _leaves(config: RunConfig | None) -> Sequence[str]:
    return check_data("phantom:phantom_slide", DERMOSCOPY_CLASSES, None, 16, config=config).leaves


def test_what_would_leave_is_said_in_words_with_the_runs_own_settings() -> None:
    plain = _leaves(RunConfig(rounds=3))
    own = _leaves(RunConfig(strategy="fedavg", personal={"class_prior": "own", "keep_local": ("norm",)}))
    private = _leaves(RunConfig(privacy={"target_epsilon": 4}))
    unknown = _leaves(None)

    assert plain[1] == "Each of 3 rounds: the tensors of the model trained here (popmi_vit_nano)."
    assert plain[4].startswith("In the rounds that [measure] names, because this run asks for it: how turning ")
    assert plain[5].startswith("In the last round, because this run asks for it: the same figures and histograms of ")
    assert plain[6] == (
        "Not asked for by this run: the number of images of each class, epsilon, control variates, Gram matrices, sums "
        "of activations, how layers were matched, figures of candidates, BatchNorm statistics."
    )
    assert "none of the training images" not in plain[0]
    assert "tensors whose names hold norm stay here" in own[1]
    assert own[4].startswith("Once, because this run asks for it: the number of training images of every class")
    assert "the number of images of each class" not in own[7]
    assert "with noise that keeps epsilon below 4" in private[1]
    assert private[4].startswith("Every round, because this run asks for it: how much of the privacy budget")
    assert private[6] == (
        "Refused here, because the run has a privacy budget: the number of images of each class, Gram matrices, sums "
        "of activations, BatchNorm statistics, figures of training images."
    )
    assert "how many of them are of each class, none of the training images, (fewer than 5" in private[0]
    assert sum(told.startswith("Only if the run asks for it: ") for told in unknown) == len(PARTS)
    assert all(told[-1].startswith("Never: an image") for told in (plain, own, private, unknown))


def test_a_rule_that_chooses_is_said_to_have_candidates_judged_here() -> None:
    (judged,) = [told for told in _leaves(RunConfig(strategy="best-single")) if "candidate" in told]
    assert judged.startswith("Every round, for every candidate that is compared, because this run asks for it: loss, ")


def test_every_part_of_an_answer_has_its_words() -> None:
    assert set(PARTS) == set(SHORT) == set(get_args(Part))
