"""Records of a message's content are found without holding on to them (popmi_core/records.py)."""

from __future__ import annotations

import numpy as np
import pytest
from flwr.app import Array, ArrayRecord, ConfigRecord, RecordDict
from held import Watched, no_search_for_garbage

from popmi_core.records import array_record, array_records, config_record


def content() -> RecordDict:
    tensors = {name: ArrayRecord({"w": Array(np.ones(3, np.float32))}) for name in ("model", "grams")}
    return RecordDict({"report": ConfigRecord({"json": "{}"}), **tensors})


def test_the_records_of_tensors_come_in_their_order_and_are_the_very_same():
    made = content()
    assert list(array_records(made)) == ["model", "grams"]
    assert array_records(made)["grams"] is made["grams"]


def test_a_record_is_found_by_its_name_and_its_kind():
    made = content()
    assert array_record(made, "model") is made["model"]
    assert config_record(made, "report") is made["report"]
    assert array_record(made, "report") is None
    assert config_record(made, "model") is None
    assert array_record(made, "more") is None
    assert config_record(made, "more") is None


@pytest.mark.parametrize(
    "look",
    [array_records, lambda made: array_record(made, "model"), lambda made: config_record(made, "report")],
    ids=["all tensors", "one record of tensors", "one of texts"],
)
def test_a_content_that_was_looked_into_goes_with_its_last_holder(look):
    made = content()
    watched = Watched(made)
    with no_search_for_garbage():
        found = look(made)
        assert watched.held() == ["report", "model", "grams"]
        del made, found
        assert watched.held() == []
