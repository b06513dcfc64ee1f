"""When a data set is refused, and what a person should know of one that is not."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from client.site.datareport import Leakage, TagCount, Unread
from popmi_core.limits import tell_number


def find_reasons(problems: Sequence[str], leakage: Leakage, tags: Sequence[TagCount]) -> tuple[str, ...]:
    """Return why a data set must not be used, each with its way out; empty where nothing stands against it."""
    reasons = list(problems)
    if leakage.torn_groups != 0 and not any("more than one split" in problem for problem in problems):
        reasons.append(
            f"{tell_number(leakage.torn_groups)} patient(s) or lesion(s) lie in more than one split. Put each into one "
            "split, or leave the column 'split' out and POPMI splits by patient or lesion."
        )
    if leakage.same_across != 0:
        reasons.append(
            f"{tell_number(leakage.same_across)} picture(s) lie in more than one split, pixel by pixel the same, which "
            "would flatter every result. Remove the copies, or give their rows the same patient_id and no split."
        )
    refusing = [tag for tag in tags if tag.refuses]
    if refusing:
        told = ", ".join(f"{tag.name} in {tell_number(tag.files)} file(s)" for tag in refusing)
        reasons.append(
            f"DICOM files tell who the patients are: {told}. De-identify them (DICOM PS3.15, Basic Application Level "
            "Confidentiality Profile; for burned-in text also its Clean Pixel Data option) and check the copies. POPMI "
            "checks, it does not anonymise."
        )
    return tuple(reasons)


def find_warnings(
    unread: Sequence[Unread], leakage: Leakage, tags: Sequence[TagCount], notes: Mapping[str, int | None]
) -> tuple[str, ...]:
    """Return what a person should look at although the data set may be used."""
    warnings = []
    if unread:
        numbers = [entry.files for entry in unread]
        # A sum over all reasons would give a small one away.
        told = "Some" if None in numbers else str(sum(count or 0 for count in numbers))
        warnings.append(f"{told} file(s) or row(s) cannot be used and are left out; --names lists them.")
    if leakage.same_within != 0:
        number = tell_number(leakage.same_within)
        warnings.append(f"{number} image(s) are copies, pixel by pixel, of another one in their split.")
    if leakage.same_other_class != 0:
        number = tell_number(leakage.same_other_class)
        warnings.append(f"{number} picture(s) carry two different classes. One of them is wrong.")
    if "nothing" in leakage.grouped_by:
        warnings.append(
            "Nothing says which images show the same patient or lesion, so one may lie on both sides of a split. Give "
            "labels.csv a column patient_id or lesion_id."
        )
    warnings += [
        f"{tell_number(count)} picture(s) carry a camera's note (EXIF): {kind}. POPMI uses pixels only, but such files "
        "should not be handed on."
        for kind, count in notes.items()
    ]
    if any(tag.kind == "taken for a pseudonym" for tag in tags):
        warnings.append(
            "DICOM files say that identity was removed (PatientIdentityRemoved = YES); what is filled all the same is "
            "taken for a pseudonym. Make sure that it is one."
        )
    if any(not tag.refuses and tag.kind != "taken for a pseudonym" for tag in tags):
        warnings.append("DICOM files hold dates, descriptions or device numbers. POPMI uses pixels only.")
    return tuple(warnings)
