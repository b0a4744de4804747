"""What is added to keys.json and ``.env`` leaves everything else as it is, to the byte."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence

import pytest

from llm_router.config.editing import new_keyfile, with_entries, with_variable
from llm_router.domain.secret import Secret
from llm_router.errors import ConfigError

NEW = {"key_id": "new", "model_name": "m", "tags": {"workload": "light"}}
OLD = {"key_id": "k", "note": "é, ] and }", "models": [{"model_name": "m"}], "x": None}
LONG = {**OLD, "key_id": "k" * 120}


def _check_addition(
    indent: int | str | None, keys: Sequence[Mapping[str, object]], after: Mapping[str, object], end: str
) -> None:
    whole = {"_comment": {"keys": ["not these"]}, "keys": keys, **after}
    text = "\ufeff" + json.dumps(whole, indent=indent, ensure_ascii=False).replace("\n", end) + end
    new = with_entries(text, [NEW, NEW])
    assert json.loads(new.removeprefix("\ufeff")) == {**whole, "keys": [*keys, NEW, NEW]}
    kept = len(new) - len(text)
    place = next(place for place in range(len(new)) if new[place] != text[place])
    assert new[place + kept :] == text[place:]
    if indent in (1, 2, 4, "\t"):
        assert new.replace(end, "\n").removeprefix("\ufeff") == (
            json.dumps({**whole, "keys": [*keys, NEW, NEW]}, indent=indent, ensure_ascii=False) + "\n"
        )


@pytest.mark.parametrize("indent", [None, 0, 1, 2, 4, "\t"])
def test_entries_are_added_at_the_end(indent: int | str | None) -> None:
    """The text before and behind the new entries stays; they are indented as the others are."""
    for keys in ([OLD], [OLD, LONG], [OLD, OLD, OLD]):
        for after in ({}, {"workloads": ["a"], "keys2": []}):
            for end in ("\n", "\r\n"):
                _check_addition(indent, keys, after, end)


def test_the_first_entries() -> None:
    """A list without entries gets its first ones, and so does a file that is not there yet."""
    assert json.loads(with_entries('{"keys": [ ]}', [NEW])) == {"keys": [NEW]}
    text = new_keyfile([NEW, NEW])
    assert json.loads(text) == {"keys": [NEW, NEW]}
    assert [line[:5] for line in text.splitlines()[2:4]] == ["    {", "    {"]
    long = {"key_id": "k" * 60, "model_name": "m" * 60, "tags": {"workload": "light"}}
    assert new_keyfile([long]).count("\n") == 6
    assert json.loads(new_keyfile([long])) == {"keys": [long]}


@pytest.mark.parametrize("text", ["[]", "{}", '{"a": 1}', '{"keys": 5}', '{"keys": [', ""])
def test_a_file_without_a_list_of_keys_is_refused(text: str) -> None:
    """Whatever else it is."""
    with pytest.raises(ConfigError, match="no list of keys"):
        with_entries(text, [NEW])


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", "K=v\n"),
        ("# comment", "# comment\nK=v\n"),
        ("export A='1' # one\n\nB=2\n", "export A='1' # one\n\nB=2\nK=v\n"),
        ("A=1\r\nB=2", "A=1\r\nB=2\r\nK=v\r\n"),
        ("A=1\nK=\nB=2\n", "A=1\nK=v\nB=2\n"),
        ("\n# mine\nK=<your key>\nB=2", "\n# mine\nK=v\nB=2"),
        ("KK=1\nK", "KK=1\nK=v\n"),
        ('A="1\n2"\n', 'A="1\n2"\nK=v\n'),
        ("\ufeffA=1\n", "\ufeffA=1\nK=v\n"),
    ],
)
def test_a_variable_is_added(text: str, expected: str) -> None:
    """Lines, comments, quotation marks and ends of lines stay; a gap that waits for the value is filled."""
    assert with_variable(Secret(text), "K", Secret("v"), ".env").reveal() == expected


def test_a_variable_that_would_not_be_read_is_refused() -> None:
    """As behind a quotation mark that only the new line closes; no text of the file is in the message."""
    with pytest.raises(ConfigError) as caught:
        with_variable(Secret('A="1\n'), "K", Secret('val"ue'), ".env")
    words = ".env: a line in it cannot be read: look at its quotation marks, then try again"
    assert str(caught.value) == words
    assert with_variable(Secret('A="1\n'), "K", Secret("v"), ".env").reveal() == 'A="1\nK=v\n'
