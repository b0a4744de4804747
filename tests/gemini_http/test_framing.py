from __future__ import annotations

import json

import pytest

from llm_router.gemini_http.framing import array_item, dump, sse_event


def test_an_event_is_one_line_of_data_and_an_empty_line() -> None:
    """Its lines end as those of the API do."""
    assert sse_event(dump({"a": 1})) == b'data: {"a":1}\r\n\r\n'


@pytest.mark.parametrize("count", [1, 2, 3])
def test_items_make_a_json_array(count: int) -> None:
    """The items of a stream together are a JSON array, for any number of items."""
    items = [array_item(dump({"n": n}), n, count - 1) for n in range(count)]
    assert json.loads(b"".join(items)) == [{"n": n} for n in range(count)]
