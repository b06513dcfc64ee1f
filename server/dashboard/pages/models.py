"""The pages of models: what every run gave, where one comes from, and its files."""

from __future__ import annotations

import base64
from functools import partial
from typing import Annotated

from fastapi import APIRouter, Query, Request
from starlette.responses import FileResponse, JSONResponse, Response

from popmi_core.errors import RunError
from server.dashboard.catalogue import FolderCatalogue, NotFound
from server.dashboard.downloads import disposition, table_in
from server.dashboard.keeping import kept_card, kept_models
from server.dashboard.language import N_
from server.dashboard.modelbook import (
    LINES_A_PAGE,
    ModelLine,
    ModelPage,
    Rounds,
    Shelves,
    chosen_models,
    run_models,
    view_model,
)
from server.dashboard.modelfiles import Shelf, read_json
from server.dashboard.remembered import Remembered
from server.dashboard.rendering import render, render_live

router = APIRouter(include_in_schema=False)
MEDIA = {
    "safetensors": "application/octet-stream",
    "onnx": "application/octet-stream",
    "md": "text/markdown; charset=utf-8",
    "certificate.json": "application/json",
}
COLUMNS = (
    "run", "key", "round", "outcome", "finished", "strategy", "phantom", "best", "newest", "pinned_by", "pin_note",
    "auroc_validation", "auroc_external", "size_bytes", "sha256",
)  # fmt: skip


def shelves(request: Request) -> Shelves:
    """Return where this application's models are looked for."""
    state = request.app.state
    if not hasattr(state, "shelf"):
        beside = state.catalogue.root if isinstance(state.catalogue, FolderCatalogue) else None
        state.shelf = Shelf(getattr(state, "runs_folder", None) or beside)
        state.models_read = Remembered[Rounds]()
    return Shelves(state.catalogue, state.shelf, kept_models(request), partial(kept_card, request), state.models_read)


@router.get("/models")
def models_page(request: Request, run: str | None = None, first: Annotated[int, Query(ge=0)] = 0) -> Response:
    """Every run's best, newest and pinned models, or all models of one run."""
    where = shelves(request)
    if run is None:
        lines, troubles = chosen_models(where)
        shown = ModelPage(lines, len(lines), 0)
    else:
        shown, troubles = run_models(where, run, first=first), ()
    return render_live(
        request,
        "models",
        shown=shown,
        troubles=troubles,
        run=run,
        runs=tuple(dict.fromkeys((line.key, line.run) for line in shown.lines)),
        page=LINES_A_PAGE,
        files_known=where.shelf.runs is not None,
    )


@router.get("/models.{form}")
def models_file(request: Request, form: str, run: str | None = None) -> Response:
    """The same table as a file; of one run, all its models."""
    where = shelves(request)
    lines = chosen_models(where)[0] if run is None else run_models(where, run, last=1_000_000).lines
    return table_in(form, "models", COLUMNS, (_cells(line) for line in lines))


@router.get("/models/{key}/{server_round}")
def model_page(request: Request, key: str, server_round: int) -> Response:
    """One model."""
    where = shelves(request)
    view = view_model(where, key, server_round)
    certificate = view.files.get("certificate.json")
    return render_live(
        request,
        "model",
        view=view,
        certificate=None if certificate is None else read_json(certificate.path),
        files_known=where.shelf.runs is not None,
    )


@router.get("/models/{key}/{server_round}/card.json")
def card_json(request: Request, key: str, server_round: int) -> Response:
    """The model's card as it was written."""
    view = view_model(shelves(request), key, server_round)
    if view.card is None:
        raise NotFound(f"card of {key} round {server_round}")
    told = view.card.model_dump(mode="json", by_alias=True)
    headers = {"Content-Disposition": disposition(f"{view.run.name}-round-{server_round:03d}-card.json")}
    return JSONResponse(told, headers=headers)


@router.get("/models/{key}/{server_round}/model.{kind}")
def model_file(request: Request, key: str, server_round: int, kind: str) -> Response:
    """A model's file; a safetensors file only if it is the one that the record tells of."""
    where = shelves(request)
    view = view_model(where, key, server_round)
    found = next((file for name, file in view.files.items() if name == kind), None)
    if found is None:
        raise NotFound(f"model.{kind} of {key} round {server_round}")
    try:
        digest = where.shelf.digest(found)
    except OSError as error:
        raise RunError(f"{found.path.name} of run {view.run.name} cannot be read: {error.strerror}.") from error
    if kind == "safetensors" and view.line.sha256 is not None and digest != view.line.sha256:
        return _damaged(request, view.line, digest)
    name = f"{view.run.name}-round-{server_round:03d}.{kind}"
    headers = {
        "Content-Disposition": disposition(name),
        "ETag": f'"{digest}"',
        "X-Content-SHA256": digest,
        "Repr-Digest": f"sha-256=:{base64.b64encode(bytes.fromhex(digest)).decode('ascii')}:",
    }
    return FileResponse(found.path, media_type=MEDIA[kind], headers=headers)


def _damaged(request: Request, line: ModelLine, digest: str) -> Response:
    text = N_(
        "The file's sha256 is %(got)s, expected %(expected)s as the record of round %(round)s says: the file was "
        "damaged or replaced, so it is not handed out. Put it back from a backup."
    )
    return render(
        request,
        "message.html",
        status=409,
        title=N_("This is not the model that was recorded"),
        text=text,
        values={"got": digest, "expected": line.sha256, "round": line.server_round},
    )


def _cells(line: ModelLine) -> tuple[object, ...]:
    return (
        line.run, line.key, line.server_round, line.outcome, line.finished, line.strategy, line.phantom, line.best,
        line.newest, line.kept.pinned_by, line.kept.pin_note,
        None if line.validation is None else line.validation.value,
        None if line.external is None else line.external.value,
        line.size, line.sha256,
    )  # fmt: skip
