"""What other parts say in English is said in the reader's language, and in English as it was (heard.py)."""

from __future__ import annotations

import pytest

from server.dashboard.heard import heard
from server.dashboard.language import translations

SENTENCES = [
    "withdrawn by anna",
    "audit log, line 3: is missing here. It was taken out of the database.",
    "audit log: 3 lines are here, expected 4. Some were taken out.",
    "audit log, line 3: was changed after it was written. Ask who did.",
    "Input should be greater than or equal to 1",
    "Input should be 'opm', 'fedavg' or 'fedprox'",
    "Extra inputs are not permitted",
]


@pytest.mark.parametrize("text", SENTENCES)
def test_a_known_sentence_is_said_in_chinese_and_unchanged_in_english(text: str) -> None:
    assert str(heard(text)) == text
    chinese = heard(text).speak(translations("zh-Hant").gettext)
    assert chinese != text
    assert not chinese.isascii()


@pytest.mark.parametrize("text", ["", "100 % of %(what)s", "withdrawn by\nnobody", "anna said: withdrawn by eve"])
def test_any_other_text_stays_as_it_was_said(text: str) -> None:
    assert str(heard(text)) == text
    assert heard(text).speak(translations("zh-Hant").gettext) == text


def test_a_form_tells_in_chinese_what_is_wrong(operator) -> None:
    form = {"rounds": "0", "toml": "rounds = 3", "sites": ["msk"]}
    page = operator.post("/act/start?language=zh-Hant", data=form).text
    assert "請填在上方欄位，並從此處刪除" in page
    page = operator.post("/act/start?language=zh-Hant", data=form | {"toml": "[local]\nnothing = 1"}).text
    assert "local.nothing: 不允許此項" in page
    assert "輸入應大於或等於 1" in page
