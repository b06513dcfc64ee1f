"""Every page by axe, in light, dark and on a phone; no page scrolls sideways there."""

from __future__ import annotations

from typing import Any

import pytest

axe = pytest.importorskip("axe_playwright_python.sync_playwright", reason="needs axe-playwright-python (popmi[dev])")
pytestmark = pytest.mark.browser
PHONE = {"width": 390, "height": 844}
MODES = {
    "light": {"color_scheme": "light"},
    "dark": {"color_scheme": "dark"},
    "phone": {"viewport": PHONE, "color_scheme": "light"},
}
PLACES = (
    "/", "/runs/melanoma-2", "/runs/melanoma-2?split=test", "/sites", "/sites/msk", "/sites/oslo", "/models",
    "/models?run=melanoma-2", "/models/melanoma-2/12", "/models/melanoma-2/4", "/audit", "/audit?event=site.revoked",
    "/account", "/accounts", "/accounts/viewer", "/nowhere", "/runs/nowhere",
)  # fmt: skip
OUTSIDE = ("/first?key=spent", "/password?key=spent", "/login")


def faults(page: Any, width: int | None) -> list[str]:
    """Return what axe finds on a page whose folded parts are all open, and whether it scrolls sideways."""
    page.evaluate("for (const part of document.querySelectorAll('details')) part.open = true")
    found = axe.Axe().run(page).response["violations"]
    told = [f"{item['id']}: {node['target']} {node['html'][:160]}" for item in found for node in item["nodes"]]
    wide = page.evaluate("document.documentElement.scrollWidth")
    return told + ([f"scrolls sideways: {wide} px"] if width is not None and wide > width else [])


@pytest.mark.parametrize("mode", MODES)
def test_no_page_has_a_fault_that_axe_knows(federation: Any, mode: str) -> None:
    options = MODES[mode]
    width = options.get("viewport", {}).get("width")
    found = {}
    page = federation.open("/", role="admin", refusals=(404,), **options)
    for place in PLACES:
        page.goto(federation.pages.url + place)
        found[place] = faults(page, width)
    page = federation.browse(f"{federation.pages.url}/login", refusals=(401, 404), **options)
    for place in OUTSIDE:
        page.goto(federation.pages.url + place)
        found[place] = faults(page, width)
    federation.sign_in(page, "viewer", "these are not the words")
    found["/login, refused"] = faults(page, width)
    listed = [f"{place}: {line}" for place, told in found.items() for line in told]
    assert not listed, "\n".join(listed)


def test_a_refusal_has_no_fault_either(federation: Any) -> None:
    page = federation.open("/accounts", refusals=(403,))
    assert faults(page, None) == []
