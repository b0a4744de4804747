from __future__ import annotations

import pytest

from llm_router.gemini_http.credentials import Place, read_credentials


@pytest.mark.parametrize(
    ("headers", "query", "found"),
    [
        ([(b"host", b"x")], "alt=sse", []),
        ([(b"x-goog-api-key", b"k1")], "", [(Place.HEADER, "k1")]),
        ([], "alt=sse&key=a%2Bb", [(Place.QUERY, "a+b")]),
        ([(b"authorization", b"Bearer t")], "", [(Place.BEARER, "t")]),
        ([(b"authorization", b"bearer  t ")], "monkey=1", [(Place.BEARER, "t")]),
        ([(b"authorization", b"Basic abc")], "", [(Place.BEARER, "")]),
        ([(b"x-goog-api-key", b"")], "key=", [(Place.HEADER, ""), (Place.QUERY, "")]),
        (
            [(b"authorization", b"Bearer t"), (b"x-goog-api-key", b"k1")],
            "key=k2&key=k3",
            [(Place.BEARER, "t"), (Place.HEADER, "k1"), (Place.QUERY, "k2"), (Place.QUERY, "k3")],
        ),
    ],
)
def test_every_credential_is_found(
    headers: list[tuple[bytes, bytes]], query: str, found: list[tuple[Place, str]]
) -> None:
    """A credential is found in each place where an SDK sends it, and no two count as one."""
    assert [(one.place, one.value) for one in read_credentials(headers, query)] == found


def test_a_credential_is_not_shown() -> None:
    """The representation says where the credential was, not what it is."""
    [credential] = read_credentials([(b"x-goog-api-key", b"AIza-secret")], "")
    assert "secret" not in repr(credential)
