"""Every site, joined of what the keeper told and of what the records hold; no HTML here."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

from popmi_core.errors import RunError
from server.dashboard.catalogue import Catalogue, NotFound
from server.dashboard.language import N_
from server.dashboard.remembered import Remembered
from server.store import RunReader, RunSummary
from server.store.looks import SiteDigest, site_digests

REGISTERED = (N_("invited"), N_("enrolled"), N_("revoked"))
"""How a site stands in the server's registry."""
Tone = Literal["good", "warn", "bad", "idle"]
APPROVAL = "waiting for approval"
"""How a site's answer begins that has not approved the run's code."""


@dataclass(frozen=True)
class SiteKept:
    """What the keeper told of a site; None is unknown. Times are seconds since 1970 UTC, ``clock_skew`` is in seconds.

    ``state`` is invited, enrolled or revoked; ``excluded`` says why it is left out of rounds for now.
    ``told`` is when the keeper told all this where it has been silent since, else None.
    """

    state: str
    since: float | None = None
    fingerprint: str | None = None
    online: bool | None = None
    last_seen: float | None = None
    clock_skew: float | None = None
    excluded: str | None = None
    excluded_by: str | None = None
    excluded_since: float | None = None
    note: str = ""
    told: float | None = None


@dataclass(frozen=True)
class Code:
    """The code that a run was started with: its hash, and since when (seconds since 1970 UTC; None: not known)."""

    hash: str
    since: float | None = None


@dataclass(frozen=True)
class SiteInRun:
    """One site in one run. ``code_hash`` is of the code the run was started with, None where nobody told.

    ``code_since`` is when it was first started with that code. Times are seconds since 1970 UTC.
    """

    key: str
    run: str
    created: float
    phantom: bool
    digest: SiteDigest
    version: str | None = None
    epsilon_limit: float | None = None
    skipped_rows: int | None = None
    split_sizes: Mapping[str, int] | None = None
    code_hash: str | None = None
    code_since: float | None = None

    @property
    def epsilon(self) -> float | None:
        """Privacy budget spent when the newest round of this run was trained."""
        return self.digest.epsilon

    @property
    def silent(self) -> bool:
        """Whether the record holds nothing of this site but its name."""
        return self.digest.rounds_all == 0 and self.digest.last_round == 0

    @property
    def approved(self) -> bool:
        """Whether the site has answered well in a round that ended under the very code of ``code_hash``."""
        answered, since = self.digest.last_ok, self.code_since
        return self.code_hash is not None and None not in (answered, since) and (answered or 0.0) > (since or 0.0)

    @property
    def refused(self) -> bool:
        """Whether the site waits until somebody there approves the run's code."""
        return APPROVAL in (self.digest.reason or "")


@dataclass(frozen=True)
class SiteLine:
    """One site; ``runs`` newest first. ``word`` and ``tone`` (good, warn, bad, idle) say how it is, ``detail`` why."""

    name: str
    kept: SiteKept | None
    runs: tuple[SiteInRun, ...]
    word: str
    tone: Tone
    detail: str

    @property
    def newest(self) -> SiteInRun | None:
        """The newest run it was in."""
        return self.runs[0] if self.runs else None

    @property
    def version(self) -> str | None:
        """The POPMI version it told of when it joined last."""
        return next((item.version for item in self.runs if item.version), None)


@dataclass(frozen=True)
class SiteList:
    """All sites by name; ``troubles`` are records that could not be read."""

    lines: tuple[SiteLine, ...]
    troubles: tuple[str, ...]

    def find(self, name: str) -> SiteLine:
        """Return one site.

        Raises:
            NotFound: If nobody knows it.
        """
        for line in self.lines:
            if line.name == name:
                return line
        raise NotFound(name)


class SiteBook:
    """Reads the sites of every run, and a run again only when it has changed.

    Args:
        catalogue: Where the runs are.
    """

    def __init__(self, catalogue: Catalogue) -> None:
        self._catalogue = catalogue
        self._read = Remembered[tuple[SiteInRun, ...]]()

    def sites(self, kept: Mapping[str, SiteKept], codes: Mapping[str, Code]) -> SiteList:
        """Return all sites.

        Args:
            kept: What the keeper told, by site.
            codes: The code that a run was started with, by run.
        """
        runs: dict[str, list[SiteInRun]] = {name: [] for name in kept}
        troubles = []
        for key in self._catalogue.names():
            try:
                for name, item in self._run(key):
                    code = codes.get(item.run)
                    told = replace(item, code_hash=code.hash, code_since=code.since) if code else item
                    runs.setdefault(name, []).append(told)
            except RunError as error:
                troubles.append(f"{key}: {error}")
            except NotFound:
                continue
        lines = []
        for name in sorted(runs):
            mine = tuple(sorted(runs[name], key=lambda item: -item.created))
            lines.append(SiteLine(name, kept.get(name), mine, *judge_site(kept.get(name), mine)))
        return SiteList(tuple(lines), tuple(troubles))

    def _run(self, key: str) -> list[tuple[str, SiteInRun]]:
        reader, run_id = self._catalogue.open(key)
        run = reader.run(run_id)
        return [(item.digest.site, item) for item in self._read.get(key, run, lambda: _read(key, reader, run))]


def judge_site(kept: SiteKept | None, runs: Sequence[SiteInRun]) -> tuple[str, Tone, str]:
    """Return how a site is: a word, its tone and the detail; never better than the worst that is known."""
    newest = runs[0] if runs else None
    if kept is not None:
        standing = _standing(kept)
        if standing is not None:
            return standing
    if newest is not None and newest.refused:
        return N_("waiting for approval"), "warn", newest.digest.reason or ""
    if newest is not None and newest.digest.outcome != "ok":
        tone: Tone = "bad" if newest.digest.outcome in ("failed", "quarantined") else "warn"
        return newest.digest.outcome, tone, newest.digest.reason or ""
    if kept is None and newest is not None and newest.silent:
        return N_("has not answered yet"), "idle", ""
    if kept is not None and kept.online is False:
        return N_("not online"), "warn", kept.note
    if kept is not None and kept.told is not None:
        return N_("not known"), "idle", N_("the keeper is silent, so nobody can say whether it is online")
    if kept is not None and kept.online is None:
        return N_("not known"), "idle", kept.note or N_("the SuperLink did not say whether it is online")
    if kept is not None:
        return N_("online"), "warn" if kept.note else "good", kept.note
    return N_("well when it last answered"), "good", ""


def _standing(kept: SiteKept) -> tuple[str, Tone, str] | None:
    if kept.state == "revoked":
        return N_("revoked"), "idle", kept.note
    if kept.excluded is not None:
        return N_("excluded"), "warn", kept.excluded
    if kept.state == "invited":
        return N_("waiting for its enrolment"), "idle", N_("its kit was made, its key has not been confirmed")
    return None


def _read(key: str, reader: RunReader, run: RunSummary) -> tuple[SiteInRun, ...]:
    joined = {row.scope: row.value for row in reader.details(run.id, kind="joined")}
    limit = (run.config.get("privacy") or {}).get("target_epsilon")
    found = {item.site: item for item in site_digests(reader, run.id)}
    # A site that was described but never answered has no row yet.
    for name in (*run.sites, *joined):
        found.setdefault(name, SiteDigest(name, 0, 0, 0, "ok", None, None, None))
    return tuple(
        SiteInRun(
            key=key,
            run=run.name,
            created=run.created,
            phantom=run.phantom,
            digest=digest,
            version=_text(joined.get(name, {}).get("popmi")),
            epsilon_limit=joined.get(name, {}).get("epsilon_limit") or limit,
            skipped_rows=joined.get(name, {}).get("skipped_rows"),
            split_sizes=joined.get(name, {}).get("split_sizes"),
        )
        for name, digest in sorted(found.items())
    )


def _text(value: Any) -> str | None:
    return None if value is None else str(value)
