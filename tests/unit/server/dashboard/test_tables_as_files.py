"""Every table of a page is a file as well, CSV and JSON, with the same lines (server/dashboard/pages/files.py)."""

from __future__ import annotations

import csv
import io
import json
import re

import pytest

from server.centre import accounts
from server.centre.orders import place
from server.centre.people import Doer

BY = Doer("lin", "page")
PAGES = ("/", "/sites", "/models", "/act", "/sites/msk", "/accounts")


def two_ways(client, path):
    """Return a table's rows as both files tell them, every value as text."""
    as_csv, as_json = client.get(f"{path[0]}.csv{path[1]}"), client.get(f"{path[0]}.json{path[1]}")
    assert as_csv.status_code == as_json.status_code == 200, (path, as_csv.text[:200])
    assert "attachment" in as_csv.headers["content-disposition"]
    assert as_json.headers["content-type"] == "application/json"
    rows = json.loads(as_json.text)
    return list(csv.DictReader(io.StringIO(as_csv.text))), [
        {name: "" if value is None else str(value) for name, value in row.items()} for row in rows
    ]


def test_every_file_that_a_page_links_tells_the_same_in_both_forms(open_pages, federation):
    place(federation.centre, "stop", {"run": "melanoma-3"}, who="lin", via="page")
    accounts.add(federation.centre, "wang", "viewer", None, BY)
    seen = set()
    with open_pages("admin") as client:
        keys = [row["key"] for row in json.loads(client.get("/runs.json").text)]
        compare = "/compare?" + "&".join(f"run={key}" for key in keys[:2])
        for page in (*PAGES, compare, f"/runs/{keys[0]}"):
            for base, query in re.findall(r'href="([^"]*?)\.csv([^"]*)" download', client.get(page).text):
                path = (base, query.replace("&amp;", "&"))
                if base == "/audit" or base.endswith("/details"):
                    continue
                in_csv, in_json = two_ways(client, path)
                assert len(in_csv) == len(in_json)
                seen.add(base)
    expected = {
        "/runs",
        "/sites",
        "/models",
        "/act/orders",
        "/accounts",
        "/tokens",
        "/compare/figures",
        "/compare/settings",
    }
    assert expected <= seen


@pytest.mark.parametrize("path", ["/runs", "/act/orders", "/accounts", "/sites", "/models"])
def test_both_forms_hold_the_same_values(open_pages, federation, path):
    place(federation.centre, "exclude", {"site": "msk", "reason": "=1+1"}, who="lin", via="page")
    accounts.add(federation.centre, "wang", "viewer", None, BY)
    with open_pages("admin") as client:
        in_csv, in_json = two_ways(client, (path, ""))
    assert in_csv
    assert in_csv == in_json


def test_a_text_that_begins_like_a_formula_is_quoted_for_spreadsheets_only(open_pages, federation):
    accounts.add(federation.centre, "wang", "viewer", None, BY)
    place(federation.centre, "stop", {"run": "melanoma-3"}, who="=cmd()", via="page")
    with open_pages("operator") as client:
        in_csv, in_json = two_ways(client, ("/act/orders", ""))
    assert in_csv[0]["who"] == "'=cmd()"
    assert in_json[0]["who"] == "=cmd()"


def test_accounts_and_tokens_are_for_admins(open_pages):
    with open_pages("operator") as client:
        for name in ("accounts.csv", "accounts.json", "tokens.csv", "tokens.json"):
            assert client.get(f"/{name}").status_code == 403


def test_an_account_s_file_holds_no_secret(open_pages, federation):
    accounts.add(federation.centre, "wang", "viewer", None, BY)
    with open_pages("admin") as client:
        rows = json.loads(client.get("/accounts.json").text)
    assert [row["name"] for row in rows] == ["wang"]
    assert set(rows[0]) == {"name", "role", "created", "disabled", "invited"}


def test_another_form_is_not_there(open_pages):
    with open_pages() as client:
        for path in ("/runs.xml", "/sites.xlsx", "/models.txt", "/act/orders.pdf"):
            assert client.get(path).status_code == 404


def test_the_list_s_filter_counts_for_its_file(open_pages):
    with open_pages() as client:
        names = [row["run"] for row in json.loads(client.get("/runs.json").text)]
        one = json.loads(client.get(f"/runs.json?q={names[0]}").text)
    assert len(names) > 1
    assert [row["run"] for row in one] == [names[0]]


def test_without_a_centre_there_are_no_orders(open_pages):
    with open_pages(centre=False) as client:
        assert client.get("/act/orders.csv").status_code == 404
        assert client.get("/runs.csv").status_code == 200
