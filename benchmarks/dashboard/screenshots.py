"""Pictures of every page for the documentation: the real `popmi serve` over a federation that looks like one.

    python benchmarks/dashboard/screenshots.py --out docs/dashboard [NAME ...]

All of it is synthetic and labelled as phantom. Needs chromium and Pillow. Names choose some of the pictures.
"""

from __future__ import annotations

import argparse
import io
import shutil
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pageserver import Pages
from PIL import Image
from playwright.sync_api import Browser, BrowserType, Page, StorageState, sync_playwright

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT / "tests" / "support"))

import believable_federation as federation  # noqa: E402

from server.centre import accounts, open_centre, orders  # noqa: E402
from server.centre.board import write_board  # noqa: E402
from server.centre.people import Doer  # noqa: E402
from server.store import RunWriter  # noqa: E402
from server.store.schema import RECORD_NAME  # noqa: E402

NAME, PASSWORD = "lin", "a long phantom password"
MOST_BYTES = 150_000
LIVE, LIVE_ROUNDS, LIVE_DONE = "melanoma-3", 20, 7
BEGIN = """(at) => {
  const part = at && document.querySelector(at);
  return [part ? part.getBoundingClientRect().top + scrollY - 16 : 0, document.documentElement.scrollHeight];
}"""
WIDE, PHONE = (1280, 860), (390, 844)


@dataclass(frozen=True)
class Shot:
    """One picture: where, how large, in which light and language.

    ``height`` cuts a long page off; ``at`` is a part of the page with which the picture begins, instead of its top.
    ``press`` is a button to be pressed first; ``cut`` keeps the page from hearing of changes.
    """

    name: str
    path: str
    size: tuple[int, int] = WIDE
    dark: bool = False
    language: str = "en"
    height: int = 2000
    signed_in: bool = True
    at: str = ""
    press: str = ""
    cut: bool = False


SHOTS = (
    Shot("login", "/login", height=620, signed_in=False),
    Shot("runs", "/"),
    Shot("run", f"/runs/{LIVE}", height=2600),
    Shot("run_participation", f"/runs/{LIVE}", height=1700, at="#participation"),
    Shot("run_round", "/runs/melanoma-2", height=2400, at="#matching"),
    Shot("run_calibration", "/runs/melanoma-2", height=1300, at="#calibration"),
    Shot("run_dark", f"/runs/{LIVE}", dark=True, height=1500),
    Shot("run_phone", f"/runs/{LIVE}", size=PHONE, height=1900),
    Shot("run_chinese", f"/runs/{LIVE}", language="zh-Hant", height=1500),
    Shot("compare", "/compare?run=melanoma-1&run=melanoma-2"),
    Shot("sites", "/sites"),
    Shot("site", "/sites/rosendahl", height=1500),
    Shot("models", "/models"),
    Shot("model", "/models/melanoma-2/12"),
    Shot("audit", "/audit", height=1300),
    Shot("act", "/act", height=1500),
    Shot("start", "/act/start", height=1700),
    Shot("exclude", "/act/exclude?site=vidir_modern", height=900),
    Shot("start_confirm", "/act/start", height=900, press="Check, and see what will happen"),
    Shot("stop", f"/act/stop?run={LIVE}", height=700),
    Shot("resume", "/act/resume", height=700),
    Shot("include", "/act/include?site=vidir_molemax", height=700),
    Shot("revoke", "/act/revoke?site=rosendahl", height=800),
    Shot("invite", "/act/invite", height=700),
    Shot("confirm", "/act/confirm", height=700),
    Shot("pin", "/act/pin?run=melanoma-2&round=12", height=700),
    Shot("onnx", "/act/onnx?run=melanoma-2&round=12", height=700),
    Shot("order", "/act/orders/4", height=700),
    Shot("account", "/account", height=1200),
    Shot("accounts", "/accounts", height=1000),
    Shot("one_account", "/accounts/okafor", height=1200),
    Shot("not_found", "/runs/nothing", height=500),
    Shot("lost", "/sites", height=500, cut=True),
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", help="some of the pictures; default all")
    parser.add_argument("--out", type=Path, required=True, help="folder of the pictures")
    given = parser.parse_args()
    wanted = [shot for shot in SHOTS if not given.names or shot.name in given.names]
    given.out.mkdir(parents=True, exist_ok=True)
    chromium = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if chromium is None:
        raise SystemExit("pictures need chromium: apt-get install chromium")
    # Its name stands in every header.
    folder = Path(tempfile.gettempdir()) / "popmi-server"
    folder.mkdir()
    try:
        with served(folder) as url, sync_playwright() as engine:
            shoot(engine.chromium, url, given.out, wanted, chromium)
    finally:
        shutil.rmtree(folder)


def shoot(kind: BrowserType, url: str, out: Path, wanted: Sequence[Shot], program: str) -> None:
    """Take the pictures, signed in once."""
    browser = kind.launch(executable_path=program, args=["--no-sandbox", "--disable-dev-shm-usage"])
    with browser.new_context() as context:
        sign_in(context.new_page(), url)
        known = context.storage_state()
        for shot in wanted:
            path = out / f"{shot.name}.png"
            path.write_bytes(small(take(browser, url, shot, known)))
            sys.stdout.write(f"{path}  {path.stat().st_size // 1000} kB\n")
    browser.close()


@contextmanager
def served(folder: Path) -> Iterator[str]:
    """Write the federation, keep its run and its keeper alive, and serve its pages; give their address."""
    now = time.time()
    runs, database = federation.build(folder, now)
    centre = open_centre(database)
    people(centre)
    ended = threading.Event()
    home = runs / LIVE
    home.mkdir()
    with RunWriter(home / RECORD_NAME, heartbeat=1.0) as writer:
        federation.begin_run(writer, LIVE, LIVE_ROUNDS)
        waiting = {(number, "vienna_dias"): ("failed", federation.APPROVAL) for number in range(1, LIVE_DONE + 1)}
        trouble = {**federation.believable.TROUBLE, **waiting}
        for number in range(1, LIVE_DONE + 1):
            federation.add_model_round(writer, home, number, LIVE_ROUNDS, trouble=trouble)
        keeper = threading.Thread(target=tell, args=(centre, runs, now, ended))
        keeper.start()
        pages = Pages(folder, None)
        try:
            pages.start()
            pages.wait_for("/healthz")
            yield pages.url
        finally:
            pages.stop()
            ended.set()
            keeper.join()
            centre.dispose()


def people(centre: Any) -> None:
    """Make accounts, and orders of which one waits."""
    terminal = Doer("root", "terminal")
    for name, role in ((NAME, "admin"), ("okafor", "operator"), ("reader", "viewer")):
        accounts.add(centre, name, role, PASSWORD, terminal)
    federation.write_orders(centre, time.time())
    assert orders.history(centre)


def tell(centre: Any, runs: Path, now: float, ended: threading.Event) -> None:
    """Tell as a keeper does, so that the pages do not say it is silent."""
    while not ended.is_set():
        told = {
            "status": federation.status(), "sites": federation.sites(time.time()),
            "models": federation.models(runs, now), "plan": federation.plan(),
        }  # fmt: skip
        for key, value in told.items():
            write_board(centre, key, value)
        ended.wait(5.0)


def take(browser: Browser, url: str, shot: Shot, known: StorageState) -> bytes:
    """Return one picture as PNG."""
    width, height = shot.size
    context = browser.new_context(
        viewport={"width": width, "height": height},
        color_scheme="dark" if shot.dark else "light",
        locale="zh-TW" if shot.language == "zh-Hant" else "en-GB",
        device_scale_factor=1,
        storage_state=known if shot.signed_in else None,
    )
    page = context.new_page()
    if shot.cut:
        context.route("**/changes*", lambda route: route.abort())
    page.goto(f"{url}{shot.path}")
    if page.locator("[data-changes]").count():
        page.wait_for_selector(f'#link[data-state="{"lost" if shot.cut else "live"}"]')
    if shot.press:
        page.get_by_role("button", name=shot.press).click()
    with suppress(Exception):
        page.wait_for_load_state("networkidle", timeout=3000)
    page.wait_for_timeout(700)
    top, whole = page.evaluate(BEGIN, shot.at)
    clip = {"x": 0, "y": top, "width": width, "height": min(whole - top, shot.height)}
    picture = page.screenshot(full_page=True, clip=clip)
    context.close()
    return picture


def sign_in(page: Page, url: str) -> None:
    """Sign in as a person does."""
    page.goto(f"{url}/login")
    page.fill("#name", NAME)
    page.fill("#password", PASSWORD)
    page.locator("form[action='/login'] button").click()
    page.wait_for_url(lambda address: "/login" not in address)


def small(picture: bytes) -> bytes:
    """Return the picture with a palette, and with fewer colours where it would be too large."""
    image = Image.open(io.BytesIO(picture)).convert("RGB")
    payload = b""
    for colours in (128, 64, 32, 16):
        out = io.BytesIO()
        image.quantize(colours, method=Image.Quantize.MEDIANCUT, dither=Image.Dither.NONE).save(
            out, "PNG", optimize=True
        )
        payload = out.getvalue()
        if len(payload) < MOST_BYTES:
            break
    return payload


if __name__ == "__main__":
    main()
