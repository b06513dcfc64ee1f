"""``/api/v1`` of sites, models and the audit log."""

from __future__ import annotations

from typing import Annotated, Any
from urllib.parse import quote

from fastapi import APIRouter, HTTPException, Path, Query, Request

from server.centre.trail import count_trail, trail
from server.dashboard.answered import (
    AuditAnswer,
    AuditPage,
    ChainAnswer,
    FigureAnswer,
    ModelAnswer,
    ModelDetail,
    ModelsAnswer,
    PartAnswer,
    Problem,
    SiteAnswer,
    SiteRunAnswer,
    SitesAnswer,
)
from server.dashboard.modelbook import ModelLine, ModelView, chosen_models, run_models, view_model
from server.dashboard.pages.audit import Search, centre_of, verified
from server.dashboard.pages.models import shelves
from server.dashboard.pages.sites import all_sites
from server.dashboard.sitebook import SiteInRun, SiteLine

UNKNOWN: dict[int | str, dict[str, Any]] = {404: {"model": Problem, "description": "there is none of this name"}}
UNREAD: dict[int | str, dict[str, Any]] = {503: {"model": Problem, "description": "a record or the centre is away"}}
WRONG: dict[int | str, dict[str, Any]] = {400: {"model": Problem, "description": "a day is none"}}

_SILENT = "the keeper is silent: what it told is as old as told says, and nobody can say which sites are online now"

router = APIRouter(prefix="/api/v1", tags=["federation"])


@router.get("/sites", responses=UNREAD)
def sites(request: Request) -> SitesAnswer:
    """Every site, joined of the keeper's registry and the runs' records."""
    found, told, _ = all_sites(request)
    trouble = [*found.troubles, *([told.away] if told.away else []), *([_SILENT] if told.stale else [])]
    return SitesAnswer(sites=[_site(line) for line in found.lines], told=told.time, trouble=trouble)


@router.get("/sites/{name:path}", responses=UNKNOWN | UNREAD)
def site(request: Request, name: str) -> SiteAnswer:
    """One site with every run it took part in."""
    found, _, _ = all_sites(request)
    return _site(found.find(name))


@router.get("/models", responses=UNKNOWN | UNREAD)
def models(
    request: Request,
    run: Annotated[str | None, Query(description="a run's key: all its models; else the best of every run")] = None,
    first: Annotated[int, Query(ge=0, le=1_000_000)] = 0,
    last: Annotated[int, Query(ge=1, le=1_000)] = 100,
) -> ModelsAnswer:
    """Every run's best, newest and pinned models, or one run's models from place ``first`` on."""
    where = shelves(request)
    if run is None:
        lines, trouble = chosen_models(where)
        return ModelsAnswer(models=[ModelAnswer(**_model(line)) for line in lines], trouble=list(trouble))
    shown = run_models(where, run, first=first, last=last)
    return ModelsAnswer(models=[ModelAnswer(**_model(line)) for line in shown.lines], trouble=[])


@router.get("/models/{key}/{server_round}", responses=UNKNOWN | UNREAD)
def model(request: Request, key: str, server_round: Annotated[int, Path(ge=1, le=1_000_000)]) -> ModelDetail:
    """One round's model: lineage, card, verdict, figures, and where its files can be fetched."""
    return _detail(view_model(shelves(request), key, server_round))


@router.get("/audit", responses=WRONG | UNKNOWN | UNREAD)
def audit(
    request: Request,
    search: Annotated[Search, Query()],
) -> AuditPage:
    """Lines of the audit log, newest first; 404 where the pages have no server behind them."""
    centre = centre_of(request)
    if centre is None:
        raise HTTPException(404, "these pages have no server behind them, so there is no audit log here")
    try:
        wanted = search.filter()
    except ValueError as error:
        raise HTTPException(400, "a day is written like 2026-11-30") from error
    lines = trail(centre, wanted, before=search.before, limit=search.limit + 1)
    shown, chain = lines[: search.limit], verified(request, centre)
    return AuditPage(
        lines=[AuditAnswer(**vars(line)) for line in shown],
        found=count_trail(centre, wanted),
        older=shown[-1].number if len(lines) > len(shown) else None,
        chain=ChainAnswer(
            whole=not chain.trouble, lines=chain.lines, head=chain.head, verified=chain.at, trouble=chain.trouble
        ),
    )


def _site(line: SiteLine) -> SiteAnswer:
    kept = line.kept
    return SiteAnswer(
        name=line.name,
        state=line.word,
        tone=line.tone,
        detail=line.detail,
        registered=kept.state if kept else None,
        online=kept.online if kept else None,
        last_seen=kept.last_seen if kept else None,
        clock_skew=kept.clock_skew if kept else None,
        excluded=kept.excluded if kept else None,
        fingerprint=kept.fingerprint if kept else None,
        version=line.version,
        runs=[_site_run(item) for item in line.runs],
    )


def _site_run(item: SiteInRun) -> SiteRunAnswer:
    digest = item.digest
    return SiteRunAnswer(
        key=item.key,
        run=item.run,
        begun=item.created,
        rounds_ok=digest.rounds_ok,
        rounds_all=digest.rounds_all,
        last_round=digest.last_round,
        outcome=digest.outcome,
        reason=digest.reason,
        num_examples=digest.num_examples,
        epsilon=digest.epsilon,
        epsilon_limit=item.epsilon_limit,
        version=item.version,
        skipped_rows=item.skipped_rows,
        code_hash=item.code_hash,
    )


def _model(line: ModelLine) -> dict[str, Any]:
    return {
        "key": line.key,
        "run": line.run,
        "round": line.server_round,
        "outcome": line.outcome,
        "finished": line.finished,
        "strategy": line.strategy,
        "phantom": line.phantom,
        "best": line.best,
        "newest": line.newest,
        "pinned_by": line.kept.pinned_by,
        "pin_note": line.kept.pin_note,
        "auroc_validation": None if line.validation is None else line.validation.value,
        "auroc_external": None if line.external is None else line.external.value,
        "size": line.size,
        "sha256": line.sha256,
    }


def _detail(view: ModelView) -> ModelDetail:
    address = f"/models/{quote(view.key, safe='', errors='surrogateescape')}/{view.line.server_round}/model."
    return ModelDetail(
        **_model(view.line),
        parent=view.lineage.parent,
        sites=[PartAnswer(**vars(item)) for item in view.lineage.contributions],
        chosen=view.lineage.chosen,
        rules=dict(view.lineage.rules),
        equivariance=view.verdict,
        card=view.card,
        figures=[
            FigureAnswer(
                name=row.name, split=row.split, scope=row.scope, value=row.value, lower=row.lower, upper=row.upper
            )
            for row in view.figures
        ],
        files={kind: f"{address}{kind}" for kind in view.files},
    )
