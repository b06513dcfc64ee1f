"""What the OpenAPI file says of signing in."""

from __future__ import annotations

from typing import Any

from fastapi import FastAPI

_REFUSALS = {
    "401": "Nobody is signed in, or the token is unknown, revoked or over.",
    "403": "The role is too small, or the form was not made by these pages.",
}
_DETAIL = {"type": "object", "properties": {"detail": {"type": "string"}}, "required": ["detail"]}


def describe(app: FastAPI) -> None:
    """Have the application's OpenAPI file tell how one signs in, and what is answered to those who are not let in."""
    plain = app.openapi

    def openapi() -> dict[str, Any]:
        known = app.openapi_schema is not None
        schema = plain()
        if not known:
            _add(schema)
        return schema

    app.openapi = openapi  # type: ignore[method-assign]


def _add(schema: dict[str, Any]) -> None:
    schema.setdefault("components", {})["securitySchemes"] = {
        "token": {
            "type": "http",
            "scheme": "bearer",
            "description": "An API token: My account, API tokens; or `popmi server account token`.",
        },
    }
    for path, methods in schema["paths"].items():
        if not path.startswith("/api/"):
            continue
        for told in methods.values():
            # Pages of simulations have no accounts: then nothing is asked for.
            told["security"] = [{"token": []}, {}]
            for status, text in _REFUSALS.items():
                content = {"application/json": {"schema": _DETAIL}}
                told["responses"].setdefault(status, {"description": text, "content": content})
