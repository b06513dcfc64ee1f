"""Checks of this machine: room, memory, GPU, versions, key, data, approval."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import shutil
import stat
from collections.abc import Iterator
from pathlib import Path

from client.site.approval import Approvals
from client.site.enrol import public_half
from client.site.findings import Finding, failed, ok, warning
from client.site.home import SiteConfig, SiteHome
from popmi_core import __version__
from popmi_core.data.shape import shape_of
from popmi_core.data.spec import SiteSpec
from popmi_core.deployment import fingerprint
from popmi_core.errors import PopmiError, SetupError

FLWR = "1.41.0"
SEVERAL = {
    "prepared": "several sites: name one of them",
    "raw": "raw downloads: prepare them",
    "sites": "several sites",
}
LITTLE_DISK, LITTLE_MEMORY = 2e9, 4e9


def check_machine(home: SiteHome, config: SiteConfig, popmi_of_kit: str) -> Iterator[Finding]:
    """Check this machine and this site's folder, without the network."""
    yield folder_rights(home)
    yield disk_room(home.folder)
    yield memory_left(Path("/proc/meminfo"))
    yield _gpu()
    yield from versions(popmi_of_kit)
    yield key_rights(home)
    yield data_is_there(config)
    yield approved_code(home)


def folder_rights(home: SiteHome) -> Finding:
    """Check that this user can write all of the site's folder; a service that runs as another user must be asked so."""
    places = (home.folder, home.state, home.processes, home.bundles, home.audit.path)
    closed = [path.name for path in places if path.exists() and not os.access(path, os.R_OK | os.W_OK)]
    if closed:
        return failed(
            "site folder",
            f"this user may not write {', '.join(closed)} in {home.folder}",
            f"Give the folder to the user the service has: chown -R USER {home.folder}. Run the doctor as that user.",
        )
    return ok("site folder", f"{home.folder} can be written")


def disk_room(folder: Path) -> Finding:
    """Check the room left where the site's folder lies."""
    free = shutil.disk_usage(folder).free
    told = f"{free / 1e9:.1f} GB free"
    if free < LITTLE_DISK:
        return failed(
            "disk", f"{told} at {folder}, expected {LITTLE_DISK / 1e9:.0f} GB", "Free room or move the folder."
        )
    return ok("disk", told)


def memory_left(meminfo: Path) -> Finding:
    """Check the memory left, by the kernel's own account (``/proc/meminfo``)."""
    try:
        fields = dict(line.split(":", 1) for line in meminfo.read_text().splitlines() if ":" in line)
        free = int(fields["MemAvailable"].split()[0]) * 1024
    except (OSError, KeyError, ValueError):
        return warning("memory", "this system does not tell", f"Make sure that {LITTLE_MEMORY / 1e9:.0f} GB are free.")
    told = f"{free / 1e9:.1f} GB free"
    if free < LITTLE_MEMORY:
        return warning("memory", f"{told}, expected {LITTLE_MEMORY / 1e9:.0f} GB", "End other programs, or add memory.")
    return ok("memory", told)


def versions(popmi_of_kit: str) -> Iterator[Finding]:
    """Check POPMI against the kit, Flower against what POPMI was built on, and tell Python and torch."""
    if popmi_of_kit == __version__:
        yield ok("POPMI", __version__)
    else:
        yield failed(
            "POPMI",
            f"{__version__} here, the kit is of {popmi_of_kit}",
            f'Install the kit\'s version: pip install "popmi[site]=={popmi_of_kit}".',
        )
    flwr = installed("flwr")
    if flwr == FLWR:
        yield ok("flwr", flwr)
    else:
        yield failed("flwr", f"{flwr or 'not installed'}, expected {FLWR}", 'pip install "popmi[site]" brings it.')
    yield ok("Python", platform.python_version())
    torch = installed("torch")
    yield ok("torch", torch) if torch else failed("torch", "not installed", 'pip install "popmi[site]" brings it.')


def installed(package: str) -> str | None:
    """Return a package's version, None where it is not installed; nothing is imported."""
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def key_rights(home: SiteHome) -> Finding:
    """Check that there is a key and only its owner can read it."""
    try:
        told = home.key.stat()
    except OSError as error:
        return failed("key", f"{home.key}: {error.strerror}", "Run `popmi site enrol KIT`.")
    mode = stat.S_IMODE(told.st_mode)
    if mode & 0o077:
        return failed("key", f"others can read it (mode {mode:04o}, expected 0600)", f"chmod 600 {home.key}")
    if told.st_uid != os.geteuid():
        return warning("key", "it belongs to another user than you are", "Run the doctor as the user the service has.")
    try:
        return ok("key", f"mode {mode:04o}, fingerprint {fingerprint(public_half(home))}")
    except (OSError, SetupError) as error:
        return failed("key", str(error), "Restore it from a backup, or run `popmi site enrol KIT --new-key`.")


def data_is_there(config: SiteConfig) -> Finding:
    """Check that the data set can be found and is of a shape POPMI reads; `popmi site check-data` reads all of it."""
    spec = SiteSpec.parse(config.data)
    if spec.phantom is not None:
        return warning("data", f"the phantom {spec.phantom}: no real images", "Name the real data with enrol --data.")
    path = spec.path or Path()
    problem = _unreadable(path)
    try:
        shape = None if problem else shape_of(path)
    except OSError as error:
        shape, problem = None, f"a folder or file inside cannot be read ({error.strerror})"
    if shape is None or shape in SEVERAL:
        return failed(
            "data",
            problem or (f"it holds {SEVERAL[shape]}" if shape else "it is there, but of no shape POPMI knows"),
            "Correct 'data' in site.toml, or the folder's rights; docs/data.md shows the shapes. Then `popmi site "
            "check-data`.",
        )
    words = spec.label_map or config.label_map
    if words is not None and (problem := _unreadable(Path(words))):
        return failed("data", f"label map: {problem}", "Correct 'label_map' in site.toml, or the file's rights.")
    return ok("data", "found; `popmi site check-data` reads all of it")


def approved_code(home: SiteHome) -> Finding:
    """Check that some code is approved, and that none waits unseen."""
    try:
        approvals = Approvals(home)
        approved, waiting = approvals.approved(), approvals.waiting()
    except PopmiError as error:
        return failed("approved code", str(error), "Restore the file, or approve again.")
    if waiting:
        return warning("approved code", f"{waiting[0][:12]} waits for approval", "`popmi site approve` shows and asks.")
    if not approved:
        return warning("approved code", "none yet", "`popmi site approve --installed`, or wait for the server's code.")
    return ok("approved code", ", ".join(item.code[:12] for item in approved[-3:]))


def _unreadable(path: Path) -> str:
    if not path.exists():
        return "there is nothing at the path of site.toml"
    if not os.access(path, os.R_OK | (os.X_OK if path.is_dir() else 0)):
        return "this user may not read it"
    return ""


def _gpu() -> Finding:
    try:
        import torch
    except ImportError as error:
        return failed("GPU", f"torch does not load ({type(error).__name__})", 'Install "popmi[site]" anew.')
    if not torch.cuda.is_available():
        return ok("GPU", f"none; {os.cpu_count()} processor cores do the work")
    return ok("GPU", f"{torch.cuda.get_device_name(0)}; not used, this version trains on the processor")
