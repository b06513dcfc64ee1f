"""``/api/v1`` of sites, models and the audit log says what the pages say, in described fields."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any

import pytest
from fastapi.testclient import TestClient

Visit = Callable[..., AbstractContextManager[TestClient]]


def test_sites_are_joined_of_registry_and_records(federation: Any, visiting: Visit) -> None:
    with visiting(federation.runs, federation.centre) as client:
        told = client.get("/api/v1/sites").json()
        one = client.get("/api/v1/sites/vidir_molemax").json()
    assert [item["name"] for item in told["sites"]][:2] == ["genova", "msk"]
    assert told["told"] is not None
    assert told["trouble"] == []
    assert one["state"] == "excluded"
    assert one["excluded"] == "new scanner, labels are being checked"
    assert [item["run"] for item in one["runs"]] == ["melanoma-2", "melanoma-1"]
    assert one["runs"][0]["epsilon_limit"] == 3.0
    assert one in told["sites"]


def test_without_a_keeper_what_only_it_knows_is_null(federation: Any, visiting: Visit) -> None:
    with visiting(federation.runs) as client:
        told = client.get("/api/v1/sites").json()
    assert told["told"] is None
    assert all(item["online"] is None and item["registered"] is None for item in told["sites"])


def test_models_come_chosen_or_by_run(federation: Any, visiting: Visit) -> None:
    with visiting(federation.runs, federation.centre) as client:
        chosen = client.get("/api/v1/models").json()["models"]
        some = client.get("/api/v1/models", params={"run": "melanoma-1", "first": 2, "last": 3}).json()["models"]
    assert {(item["run"], item["round"]) for item in chosen} >= {("melanoma-2", 12), ("melanoma-2", 11)}
    assert [item["round"] for item in some] == [6, 5, 4]


def test_one_model_tells_all_that_its_page_shows(federation: Any, visiting: Visit) -> None:
    with visiting(federation.runs, federation.centre) as client:
        told = client.get("/api/v1/models/melanoma-2/12").json()
        file = client.get(told["files"]["safetensors"])
    assert told["parent"] == 11
    assert sum(item["share"] for item in told["sites"]) == pytest.approx(1.0)
    assert told["equivariance"]["holds"] is True
    assert told["card"]["phantom"] is True
    assert {"external", "global"} <= {item["scope"] for item in told["figures"]}
    assert file.headers["x-content-sha256"] == told["sha256"]


def test_the_log_is_paged_and_its_chain_told(federation: Any, visiting: Visit) -> None:
    with visiting(federation.runs, federation.centre) as client:
        first = client.get("/api/v1/audit", params={"limit": 20}).json()
        second = client.get("/api/v1/audit", params={"limit": 20, "before": first["older"]}).json()
    assert first["found"] == 21
    assert first["chain"]["whole"] is True
    assert [item["number"] for item in second["lines"]] == [1]
    assert second["older"] is None


@pytest.mark.parametrize(
    ("address", "status"),
    [
        # The day after the last one is none.
        ("/api/v1/audit?until=9999-12-31", 400),
        ("/api/v1/sites/nobody", 404),
        ("/api/v1/models?run=nothing", 404),
        ("/api/v1/models/melanoma-2/99", 404),
        ("/api/v1/models/melanoma-2/0", 422),
        ("/api/v1/models?first=-1", 422),
        ("/api/v1/audit?since=yesterday", 400),
        ("/api/v1/audit?before=0", 422),
        ("/api/v1/audit?text=%00", 422),
    ],
)
def test_wrong_questions_are_refused_as_described(federation: Any, visiting: Visit, address: str, status: int) -> None:
    with visiting(federation.runs, federation.centre) as client:
        answer = client.get(address)
    assert answer.status_code == status
    assert "detail" in answer.json()
