"""The code that runs at a site, as one bundle: which files it has, and the hash a site approves.

The bundle holds the client and the library it needs, nothing else, so that what a site approves is what will look at
its images. The hash is over the files' contents, not over the zip they travel in: two machines' compressors differ.
"""

from __future__ import annotations

import hashlib
import io
import posixpath
import zipfile
import zlib
from collections.abc import Mapping
from importlib.resources import files
from importlib.resources.abc import Traversable

import tomli_w

from popmi_core import __version__
from popmi_core.errors import SetupError
from popmi_core.protocol import PLAN_KEY

PACKAGES = ("client", "popmi_core")
# What a site's IT runs and approves with does not look at images, and so is no part of what is approved.
LEFT_OUT = ("client/site/", "popmi_core/cli/", "popmi_core/deployment/", "popmi_core/simulation/")
CONFIG_FILE = "pyproject.toml"
PUBLISHER = "popmi"
MANIFEST = ".info/"
READABLE = (".py", ".toml", ".md", ".yaml", ".yml", ".json", ".jsonl")
"""What Flower packs into a bundle, beside a LICENSE."""


def bundle_files() -> dict[str, bytes]:
    """Return the bundle's files by path, as this installation of POPMI has them."""
    found = {CONFIG_FILE: _description()}
    for package in PACKAGES:
        found |= _sources(files(package), package)
    return {path: content for path, content in sorted(found.items()) if not path.startswith(LEFT_OUT)}


def code_hash(content: Mapping[str, bytes]) -> str:
    """Return the sha256 (hex) over the sorted ``path, sha256`` lines of a bundle's files."""
    lines = [f"{path},{hashlib.sha256(content[path]).hexdigest()}" for path in sorted(content)]
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()


def unpack(bundle: bytes) -> dict[str, bytes]:
    """Return the files of a packed bundle by path, without its manifest.

    Raises:
        SetupError: If it is no zip, holds a path that leads out of it or a file people cannot read, or unpacks to more
            than a bundle may.
    """
    limit, found = 50_000_000, dict[str, bytes]()
    try:
        with zipfile.ZipFile(io.BytesIO(bundle)) as file:
            if sum(info.file_size for info in file.infolist()) > limit:
                raise SetupError(f"the bundle unpacks to more than {limit} bytes. Refuse it and ask the operator.")
            for info in file.infolist():
                path = info.filename
                if posixpath.normpath(path) != path.removesuffix("/") or path.startswith(("/", "..")) or "\\" in path:
                    raise SetupError(f"the bundle holds the path {path!r}, which is not plain. Ask the operator.")
                if not info.is_dir() and not path.startswith(MANIFEST):
                    _refuse_unreadable(path)
                    found[path] = file.read(info)
    except (zipfile.BadZipFile, zlib.error, EOFError, RuntimeError, NotImplementedError) as error:
        raise SetupError("the bundle is no zip file: it was damaged on its way. Ask the operator.") from error
    return found


def _refuse_unreadable(path: str) -> None:
    # Who approves a bundle must be able to read it: compiled code beside harmless source would run in its place.
    if not path.isprintable() or not (path.endswith(READABLE) or path.rsplit("/", 1)[-1] == "LICENSE"):
        raise SetupError(
            f"the bundle holds the file {path!a}, expected text files only ({', '.join(READABLE)}, LICENSE). Refuse it "
            "and ask the operator."
        )


def _sources(folder: Traversable, path: str) -> dict[str, bytes]:
    found: dict[str, bytes] = {}
    for item in folder.iterdir():
        if item.is_dir() and item.name != "__pycache__":
            found |= _sources(item, f"{path}/{item.name}")
        elif item.name.endswith(".py"):
            found[f"{path}/{item.name}"] = item.read_bytes()
    return found


def _description() -> bytes:
    described = {
        "build-system": {"requires": ["setuptools"], "build-backend": "setuptools.build_meta"},
        "project": {"name": "popmi", "version": __version__, "description": "POPMI at a site", "license": "Apache-2.0"},
        "tool": {
            "flwr": {
                "app": {
                    "publisher": PUBLISHER,
                    "components": {"serverapp": "server.app:app", "clientapp": "client.app:app"},
                    "config": {PLAN_KEY: ""},
                }
            }
        },
    }
    return tomli_w.dumps(described).encode()
