"""The journal keeps every figure once, whatever happens to the disk and the process."""

from __future__ import annotations

import resource
import signal
import subprocess
import sys
import tempfile
from pathlib import Path

from hypothesis import given, settings
from hypothesis import strategies as st

from sleepfm.training.tracking.journal import Journal


def rows(journal: Journal, start: int = 0, figures: int = 10_000) -> list[tuple[int, dict[str, float]]]:
    return [(row["step"], row["figures"]) for row in journal.read(start, figures)[0] if row["figures"]]


steps = st.lists(st.tuples(st.integers(1, 30), st.sampled_from([("a",), ("a", "b"), ("c",)])), max_size=40)


@settings(max_examples=60, deadline=None)
@given(steps, st.lists(st.integers(0, 40), max_size=3), st.booleans())
def test_every_figure_is_kept_once_a_step_over_any_restarts(written: list, restarts: list[int], cut: bool) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "figures.jsonl"
        journal = Journal(path)
        expected: list[tuple[int, str]] = []
        last: dict[str, int] = {}
        for number, (step, names) in enumerate(written):
            if number in restarts:
                journal.close()
                if cut:
                    with path.open("ab") as file:
                        file.write(b'{"step": 99, "fig')
                journal = Journal(path)
            journal.append(step, number, dict.fromkeys(names, step / 10))
            for name in names:
                if step > last.get(name, 0):
                    expected.append((step, name))
                    last[name] = step
        found = [(step, name) for step, figures in rows(journal) for name in figures]
        assert found == expected
        journal.close()


@settings(max_examples=30, deadline=None)
@given(st.integers(1, 50), st.integers(1, 7))
def test_reading_in_pieces_gives_every_row_in_order(count: int, figures: int) -> None:
    with tempfile.TemporaryDirectory() as folder:
        journal = Journal(Path(folder) / "figures.jsonl")
        for step in range(1, count + 1):
            journal.append(step, step, {"a": step, "b": -step})
        position, seen = 0, []
        while position < journal.size:
            assert journal.left(position) == count - len(seen)
            piece, position = journal.read(position, figures)
            assert 1 <= len(piece) <= max(1, figures // 2)
            seen += [row["step"] for row in piece]
        assert seen == list(range(1, count + 1))
        journal.close()


def test_delivered_rows_are_dropped_and_their_steps_stay_known(tmp_path: Path) -> None:
    journal = Journal(tmp_path / "figures.jsonl", largest=4000)
    step = 0
    while not journal.is_large:
        step += 1
        journal.append(step, step, {"a": step})
    journal.append(step + 1, step, {"a": step + 1})
    delivered = journal.read(0, step)[1]
    journal.drop(delivered)
    assert rows(journal) == [(step + 1, {"a": step + 1.0})]
    journal.close()
    again = Journal(tmp_path / "figures.jsonl", largest=4000)
    again.append(3, 0, {"a": 3.0})
    assert rows(again) == [(step + 1, {"a": step + 1.0})]
    again.close()


def test_a_journal_that_nobody_empties_stays_bounded_and_counts_what_it_refuses(tmp_path: Path) -> None:
    journal = Journal(tmp_path / "figures.jsonl", largest=2000)
    for step in range(1, 101):
        journal.append(step, step, {"a": step})
    assert journal.size <= 2000
    assert len(rows(journal)) + journal.refused == 100
    assert journal.refused > 0
    journal.close()


FULL_DISK = """
import resource, signal, sys
from pathlib import Path
from sleepfm.training.tracking.journal import Journal
journal = Journal(Path(sys.argv[1]))
resource.setrlimit(resource.RLIMIT_FSIZE, (300, resource.RLIM_INFINITY))
for step in range(1, 21):
    journal.append(step, step, {"a": step})
assert journal.waiting and journal.problem, "the disk was not full"
assert journal.size <= 300
resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
journal.sync()
assert not journal.waiting and not journal.problem
journal.close()
"""


def test_rows_wait_in_memory_while_the_disk_is_full(tmp_path: Path) -> None:
    path = tmp_path / "figures.jsonl"
    assert resource.getrlimit(resource.RLIMIT_FSIZE)[1] == resource.RLIM_INFINITY
    done = subprocess.run([sys.executable, "-c", FULL_DISK, str(path)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    journal = Journal(path)
    assert rows(journal) == [(step, {"a": float(step)}) for step in range(1, 21)]
    journal.close()


def test_what_was_appended_outlives_a_kill(tmp_path: Path) -> None:
    code = (
        "import os, signal, sys; from pathlib import Path; from sleepfm.training.tracking.journal import Journal\n"
        "journal = Journal(Path(sys.argv[1]))\n"
        "for step in range(1, 101): journal.append(step, step, {'a': step})\n"
        "os.kill(os.getpid(), signal.SIGKILL)"
    )
    done = subprocess.run([sys.executable, "-c", code, str(tmp_path / "figures.jsonl")])
    assert done.returncode == -signal.SIGKILL
    journal = Journal(tmp_path / "figures.jsonl")
    assert len(rows(journal)) == 100
    journal.close()
