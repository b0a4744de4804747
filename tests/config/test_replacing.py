"""Files that belong together are replaced together, or not at all."""

from __future__ import annotations

import traceback
from pathlib import Path
from typing import Any

import pytest

from llm_router.config.replacing import NewContent, content_of, replace_files
from llm_router.domain.secret import Secret

PASSWORD = "hunter2-hunter2"


def test_files_are_replaced_with_their_permissions(tmp_path: Path) -> None:
    """A private file is its owner's alone; others keep their permissions; a link stays one."""
    secret, plain, real = tmp_path / ".env", tmp_path / "keys.json", tmp_path / "real.json"
    secret.write_text("old")
    secret.chmod(0o644)
    real.write_text("old")
    real.chmod(0o664)
    plain.symlink_to(real)
    fresh = tmp_path / "fresh"
    replace_files(
        NewContent(secret, Secret("a\r\n"), private=True),
        NewContent(plain, Secret("b")),
        NewContent(fresh, Secret("c"), private=True),
    )
    assert secret.read_bytes() == b"a\r\n"
    assert [path.stat().st_mode & 0o777 for path in (secret, real, fresh)] == [0o600, 0o664, 0o600]
    assert (plain.is_symlink(), real.read_text()) == (True, "b")
    assert sorted(tmp_path.iterdir()) == sorted([secret, plain, real, fresh])
    assert content_of(tmp_path / "nothing") is None


@pytest.mark.parametrize("failing", [1, 2])
@pytest.mark.parametrize("error", [KeyboardInterrupt(), OSError("full")])
def test_an_interruption_changes_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, failing: int, error: BaseException
) -> None:
    """Whatever stops it between two files: they are as they were, and no traceback shows what is in them."""
    old, new = tmp_path / "old", tmp_path / "new"
    old.write_bytes(b"before \xff")
    replace, calls = Path.replace, []

    def interrupted(path: Path, target: Path) -> Any:
        calls.append(target)
        if len(calls) == failing:
            raise error
        return replace(path, target)

    monkeypatch.setattr(Path, "replace", interrupted)
    files = (NewContent(new, Secret(PASSWORD), private=True), NewContent(old, Secret(PASSWORD)))
    with pytest.raises(type(error)) as caught:
        replace_files(*files)
    monkeypatch.undo()
    assert (list(tmp_path.iterdir()), old.read_bytes()) == ([old], b"before \xff")
    shown = traceback.TracebackException(
        type(error), error, caught.value.__traceback__, capture_locals=True
    ).format()
    assert PASSWORD not in "".join(shown)
