"""Tests the file of an evaluation: whatever ends the process that writes it, it continues, and nothing comes twice."""

from __future__ import annotations

import errno
import json
import os
import random
import signal
import time
from pathlib import Path
from typing import Any

import pytest

from trbext.evaluation import record as module
from trbext.evaluation.record import Record
from trbext.evaluation.tasks import Completion, Task, completion_seed, tasks_of

SETTINGS = {"model": "M", "seed": 3, "template": {"a": [1]}}
TASKS = tasks_of("B", ["one", "two", "three"], [[5], [6, 7], [8]], samples=20, seed=3, max_new_tokens=9)


def completion(task: Task) -> Completion:
    return Completion(f"ü {task.seed}\n\u2028", task.seed % 9, task.seed % 2 == 0)


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_bytes().splitlines()]


def fill(path: Path, pause: float = 0.0) -> None:
    record = Record(path, SETTINGS)
    for task in TASKS:
        if not record.has(task):
            record.write(task, completion(task))
            time.sleep(pause)
        if record.text(task) is not None:
            assert record.text(task) == completion(task).text
            record.judge(task, task.seed % 3 == 0, None if task.seed % 3 == 0 else "7", None)
    record.close()


def assert_whole(path: Path) -> None:
    header, *rest = lines(path)
    assert header == {"settings": SETTINGS}
    keys = [(task.prompt, task.sample) for task in TASKS]
    for field in ("completion", "correct"):
        assert sorted((line["prompt"], line["sample"]) for line in rest if field in line) == keys
    assert {line["completion"] for line in rest if "completion" in line} == {completion(task).text for task in TASKS}


def test_twenty_kills_lose_nothing_and_write_nothing_twice(tmp_path: Path) -> None:
    path, rng = tmp_path / "b.jsonl", random.Random(0)
    killed = 0
    for _ in range(20):
        child = os.fork()
        if child == 0:
            fill(path, pause=0.0005)
            os._exit(0)
        time.sleep(rng.uniform(0, 0.01))
        os.kill(child, signal.SIGKILL)
        killed += os.WIFSIGNALED(os.waitpid(child, 0)[1])
    assert killed > 5
    fill(path)
    assert_whole(path)


@pytest.mark.parametrize("room", [5, 300, 1000])
def test_a_full_disk_ends_it_and_the_next_start_continues(
    room: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, left = tmp_path / "b.jsonl", [room]

    def write(file: int, content: bytes) -> int:
        if left[0] == 0:
            raise OSError(errno.ENOSPC, "No space left on device")
        written = os.write(file, content[: left[0]])
        left[0] -= written
        return written

    with monkeypatch.context() as full:
        full.setattr(module, "os", type("os", (), {**vars(os), "write": staticmethod(write)}))
        with pytest.raises(OSError, match="No space left") as refused:
            fill(path)
    assert refused.value.filename == str(path)
    assert path.stat().st_size == room
    fill(path)
    assert_whole(path)


def test_a_record_of_other_settings_is_refused_and_says_what_differs(tmp_path: Path) -> None:
    path = tmp_path / "b.jsonl"
    Record(path, SETTINGS).close()
    with pytest.raises(ValueError, match=r"not of this evaluation; name another --output \(seed was 3, and is 4\)"):
        Record(path, SETTINGS | {"seed": 4})
    for content in (b"anything else\n", b'{"prompt": "?"}\n', b'{"sett', b"\n"):
        other = tmp_path / "other"
        other.write_bytes(content)
        if content == b'{"sett':  # what a kill left of a header
            Record(other, SETTINGS).close()
            continue
        with pytest.raises(ValueError, match="is not of this evaluation"):
            Record(other, SETTINGS)
        assert other.read_bytes() == content


def test_a_judgment_of_a_verifier_that_raised_is_not_final(tmp_path: Path) -> None:
    record = Record(tmp_path / "r.jsonl", SETTINGS)
    record.write(TASKS[0], completion(TASKS[0]))
    record.judge(TASKS[0], False, None, "ConnectionError: the sandbox is gone")
    record.close()
    again = Record(tmp_path / "r.jsonl", SETTINGS)
    assert again.text(TASKS[0]) == completion(TASKS[0]).text
    again.judge(TASKS[0], True, None, None)
    again.close()
    last = Record(tmp_path / "r.jsonl", SETTINGS)
    assert last.text(TASKS[0]) is None
    assert last.found[0, 0].correct
    assert last.found[0, 0].error is None
    last.close()


def test_a_line_in_the_middle_that_cannot_be_read_loses_nothing(tmp_path: Path) -> None:
    path = tmp_path / "r.jsonl"
    fill(path)
    whole = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(b"".join([*whole[:5], b'{"prompt": 0, "sa\n', *whole[5:]]))
    before = path.read_bytes()
    with pytest.raises(ValueError, match=r"r\.jsonl line 6 cannot be read, and lines follow it: delete that line"):
        Record(path, SETTINGS)
    assert path.read_bytes() == before
    drawn_again = whole[1]
    assert b'"completion"' in drawn_again
    path.write_bytes(b"".join(line for line in whole if line != drawn_again))  # its judgment is still there
    record = Record(path, SETTINGS)
    assert len(record.found) == len(TASKS) - 1
    record.close()


def test_one_evaluation_at_a_time_writes_a_record(tmp_path: Path) -> None:
    record = Record(tmp_path / "b.jsonl", SETTINGS)
    with pytest.raises(ValueError, match="is being written by another evaluation"):
        Record(tmp_path / "b.jsonl", SETTINGS)
    record.close()
    Record(tmp_path / "b.jsonl", SETTINGS).close()


def test_each_completion_has_a_seed_of_its_own_that_nothing_else_decides() -> None:
    assert len({task.seed for task in TASKS}) == len(TASKS)
    assert all(0 <= task.seed < 2**53 for task in TASKS)
    more = tasks_of("B", ["one", "two", "three", "four"], [[5], [6], [8], [9]], samples=30, seed=3, max_new_tokens=4)
    seeds = {(task.prompt, task.sample): task.seed for task in more}
    assert all(seeds[task.prompt, task.sample] == task.seed for task in TASKS)
    assert completion_seed(3, "one", 0, 0) != completion_seed(4, "one", 0, 0) != completion_seed(3, "one", 1, 0)
