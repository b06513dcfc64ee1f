"""A bundle that comes from outside: damaged, huge or with paths that lead elsewhere, it is refused before anything."""

from __future__ import annotations

import io
import zipfile

import pytest
from flwr.cli.build import build_fab_from_files

from popmi_core.deployment import bundle_files, code_hash
from popmi_core.deployment.bundle import unpack
from popmi_core.errors import SetupError


def zipped(**files: bytes) -> bytes:
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as file:
        for path, content in files.items():
            file.writestr(path, content)
    return packed.getvalue()


def test_the_hash_is_the_same_at_both_ends_though_flower_packs_between():
    packed, _ = build_fab_from_files(bundle_files())
    assert code_hash(unpack(packed)) == code_hash(bundle_files())


@pytest.mark.parametrize("path", ["/etc/passwd", "../x.py", "a/../../x.py", "a\\x.py", "a/./x.py", "a//x.py"])
def test_a_path_that_is_not_plain_is_refused(path):
    with pytest.raises(SetupError, match="which is not plain"):
        unpack(zipped(**{path: b""}))


def test_a_folders_own_entry_is_no_file():
    assert unpack(zipped(**{"a/": b"", "a/x.py": b"1"})) == {"a/x.py": b"1"}


def test_flowers_manifest_is_no_part_of_the_code():
    assert unpack(zipped(**{".info/CONTENT": b"x", "x.py": b"1"})) == {"x.py": b"1"}


def test_a_bundle_that_unpacks_to_too_much_is_refused_unpacked():
    with pytest.raises(SetupError, match="unpacks to more than"):
        unpack(zipped(**{"x.py": bytes(51_000_000)}))


def test_no_zip_and_a_flipped_byte_are_refused():
    with pytest.raises(SetupError, match="is no zip file"):
        unpack(b"no zip")
    damaged = bytearray(zipped(**{"x.py": bytes(range(256)) * 40}))
    damaged[120] ^= 0xFF
    with pytest.raises(SetupError, match="is no zip file"):
        unpack(bytes(damaged))


@pytest.mark.parametrize(
    "path",
    ["client/__pycache__/app.cpython-311.pyc", "client/fast.so", "client/app", "x.PY", "a\x1b[2Kb.py", "a\u202eb.py"],
)
def test_what_people_cannot_read_is_refused(path):
    with pytest.raises(SetupError, match="expected text files only"):
        unpack(zipped(**{"client/app.py": b"", path: b"\x00"}))


def test_a_licence_is_text():
    assert set(unpack(zipped(**{"LICENSE": b"free", "README.md": b"#"}))) == {"LICENSE", "README.md"}
