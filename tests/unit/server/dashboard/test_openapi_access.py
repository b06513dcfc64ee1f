"""The OpenAPI file says how one signs in."""

from __future__ import annotations

from fastapi import FastAPI
from fastapi.testclient import TestClient
from signing_in import sign_in


def test_every_call_of_the_api_names_the_token_and_the_refusals(app: FastAPI, browser: TestClient) -> None:
    sign_in(browser, "vera")
    told = browser.get("/api/v1/openapi.json").json()
    assert told["components"]["securitySchemes"]["token"]["scheme"] == "bearer"
    calls = [call for path, methods in told["paths"].items() if path.startswith("/api/") for call in methods.values()]
    assert calls
    for call in calls:
        assert {"token": []} in call["security"]
        assert {"401", "403"} <= call["responses"].keys()
    assert "security" not in told["paths"]["/healthz"]["get"]
    # Asked again it is the same, not longer.
    assert browser.get("/api/v1/openapi.json").json() == told
