"""Every page by axe, in light, dark and on a phone; no page scrolls sideways there."""

from __future__ import annotations

from typing import Any

import pytest

from server.centre import open_centre
from server.centre.orders import place

axe = pytest.importorskip("axe_playwright_python.sync_playwright", reason="needs axe-playwright-python (popmi[dev])")
pytestmark = pytest.mark.browser
PHONE = {"width": 390, "height": 844}
MODES = {
    "light": {"color_scheme": "light"},
    "dark": {"color_scheme": "dark"},
    "phone": {"viewport": PHONE, "color_scheme": "light"},
    "Chinese": {"locale": "zh-TW", "color_scheme": "light"},
}
PLACES = (
    "/", "/runs/melanoma-2", "/runs/melanoma-2?split=test", "/runs/melanoma-2/attendance", "/runs/melanoma-2/rounds/4",
    "/compare?run=melanoma-1&run=melanoma-2", "/compare", "/sites", "/sites/msk", "/sites/oslo", "/models",
    "/models?run=melanoma-2", "/models/melanoma-2/12", "/models/melanoma-2/4", "/audit", "/audit?event=site.revoked",
    "/act", "/act/start", "/act/stop", "/act/resume", "/act/confirm", "/act/invite", "/act/exclude?site=msk",
    "/act/include?site=vidir_molemax", "/act/revoke?site=msk", "/act/pin?run=melanoma-2&round=12",
    "/act/onnx?run=melanoma-2&round=11", "/act/orders/1",
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


@pytest.fixture
def ordered(federation: Any) -> Any:
    """The federation, with one act that waits for its keeper."""
    engine = open_centre(federation.centre)
    place(engine, "exclude", {"site": "msk", "reason": "new scanner"}, who="operator", via="page")
    engine.dispose()
    return federation


@pytest.mark.parametrize("mode", MODES)
def test_no_page_has_a_fault_that_axe_knows(ordered: Any, mode: str) -> None:
    federation, options = ordered, MODES[mode]
    width = options.get("viewport", {}).get("width")
    found = {}
    page = federation.open("/", role="admin", refusals=(400, 404), **options)
    for where in PLACES:
        page.goto(federation.pages.url + where)
        found[where] = faults(page, width)
    page = federation.browse(f"{federation.pages.url}/login", refusals=(401, 404), **options)
    for where in OUTSIDE:
        page.goto(federation.pages.url + where)
        found[where] = faults(page, width)
    page.locator("#name").fill("viewer")
    page.locator("#password").fill("these are not the words")
    page.locator("form.stack button").click()
    page.wait_for_selector("#wrong")
    found["/login, refused"] = faults(page, width)
    listed = [f"{where}: {line}" for where, told in found.items() for line in told]
    assert not listed, "\n".join(listed)


def test_a_refusal_has_no_fault_either(federation: Any) -> None:
    page = federation.open("/accounts", refusals=(403,))
    assert faults(page, None) == []
