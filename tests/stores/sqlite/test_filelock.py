"""Processes take turns at a database file."""

from __future__ import annotations

import threading
import time

import pytest

from llm_router.stores.sqlite import filelock
from llm_router.stores.sqlite.filelock import TurnLock


def soon() -> float:
    return time.monotonic() + 10.0


@pytest.fixture
def locks(path):
    """Two locks on one file, as two processes would have them."""
    both = TurnLock(path), TurnLock(path)
    yield both
    for lock in both:
        lock.close()


def test_only_one_process_has_the_turn(locks):
    """While one has the turn, another waits in vain; afterwards it gets the turn at once."""
    ours, theirs = locks
    with ours.turn(soon()), pytest.raises(TimeoutError, match="kept the turn"), theirs.turn(time.monotonic()):
        raise AssertionError("two had the turn")
    with theirs.turn(time.monotonic()):
        pass


def test_a_process_that_gave_up_is_not_in_the_way(locks):
    """After waiting in vain for a turn, the queue is free."""
    ours, theirs = locks
    with ours.turn(soon()), pytest.raises(TimeoutError), theirs.turn(time.monotonic() + 0.01):
        pass
    with ours.turn(time.monotonic()):
        pass


def test_no_process_has_two_turns_while_another_waits(path, locks):
    """A lock that is released and wanted again at once goes to the process that has waited."""
    ours, theirs = locks
    order = []

    def wait_in_line() -> None:
        with theirs.turn(soon()):
            order.append("theirs")

    with ours.turn(soon()):
        other = threading.Thread(target=wait_in_line)
        other.start()
        _until_taken(path, "-next")
    with ours.turn(soon()):
        order.append("ours")
    other.join()
    assert order == ["theirs", "ours"]


def test_turns_are_first_come_first_served(path):
    """Three processes that wait get their turns in the order in which they came."""
    waiting = {"-next": TurnLock(path), "-second": TurnLock(path), "-third": TurnLock(path)}
    order, threads, holder = [], [], TurnLock(path)

    def wait_in_line(place: str) -> None:
        with waiting[place].turn(soon()):
            order.append(place)

    with holder.turn(soon()):
        for place in waiting:
            threads.append(threading.Thread(target=wait_in_line, args=(place,)))
            threads[-1].start()
            _until_taken(path, place)
    for thread in threads:
        thread.join()
    for lock in (holder, *waiting.values()):
        lock.close()
    assert order == ["-next", "-second", "-third"]


def test_lock_files_are_private_and_stay(path, locks):
    """The lock files are beside the database, readable only for the owner, and stay after closing."""
    with locks[0].turn(soon()):
        pass
    locks[0].close()
    files = sorted(path.parent.iterdir())
    assert [file.name for file in files] == [
        f"state.db-{place}" for place in ("next", "second", "third", "turn")
    ]
    assert {file.stat().st_mode & 0o777 for file in files} == {0o600}


def _until_taken(path, place) -> None:
    with path.with_name(f"state.db{place}").open("r+") as file:
        while filelock._lock(file.fileno()):
            filelock._unlock(file.fileno())
            time.sleep(0.001)
