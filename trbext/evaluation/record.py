"""Keeps the completions of an evaluation in a file from which it continues, whenever and however it was ended.

The first line holds the settings. A line with "completion" follows as soon as a completion is drawn, and another one
with "correct" as soon as it is judged. A line that a kill or a full disk has cut short is removed at the next start.
A judgment has the digest of its verifier: if the verifier has changed, the completion is judged again.
"""

from __future__ import annotations

import fcntl
import json
import os
import time
from collections.abc import Mapping, Set
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from threading import Lock
from typing import Any

from ..errors import errors_of
from .tasks import Completion, Task

Key = tuple[int, int]  # row of the prompt, and sample


@dataclass
class Judged:
    """What is known of one completion; its text stays on disk once it is judged."""

    tokens: int
    finished: bool
    correct: bool | None = None  # None: not judged yet
    answer: str | None = None  # for the majority vote; None: it has no answer
    error: str | None = None  # of the verifier
    text: str | None = None  # None once it is judged without an error


class Session:
    """Begins a stretch of drawing, and counts the tokens of all records that it fills."""

    def __init__(self) -> None:
        self.name, self.start = f"{time.time_ns():x}", time.monotonic()
        self.tokens = 0
        self.lock = Lock()


class Record:
    """The file of one model on one benchmark, or a record in memory only.

    Args:
        path: A .jsonl file; None keeps everything in memory.
        settings: What the completions depend on.
        session: Of all records that one command fills together.
        verifier: A digest of the verifier (`verifier_digest`). Judgments of another one do not count.

    Raises:
        ValueError: The file is of another evaluation or damaged, or another process writes it.
        OSError: It cannot be read or written.
    """

    def __init__(
        self,
        path: Path | None,
        settings: Mapping[str, Any],
        session: Session | None = None,
        verifier: str | None = None,
    ) -> None:
        self.path, self.settings, self._verifier = path, dict(settings), verifier
        self.found: dict[Key, Judged] = {}
        self._drawn: dict[str, tuple[float, int]] = {}
        self._session = session or Session()
        self._file: int | None = None
        if path is not None:
            self._open(path)

    def _open(self, path: Path) -> None:
        _check_is_file(path)
        path.parent.mkdir(parents=True, exist_ok=True)
        self._file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o666)
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            self.close()
            raise ValueError(f"{path} is being written by another evaluation: wait for it, or end it") from error
        try:
            whole = self._read(path)
        except ValueError:
            self.close()
            raise
        os.ftruncate(self._file, whole)
        if whole == 0:
            self._append({"settings": self.settings})

    def _read(self, path: Path) -> int:
        """Reads what is there, and returns how many bytes of it are whole lines."""
        whole = 0
        with path.open("rb") as file:
            for number, line in enumerate(file):
                try:
                    fields = json.loads(line) if line.endswith(b"\n") else None
                    if number == 0 and fields is not None:
                        _check(path, fields, self.settings)
                    elif fields is not None:
                        self._take(fields)
                except (ValueError, KeyError, TypeError) as error:
                    if isinstance(error, OtherEvaluation):
                        raise
                    fields = None
                if fields is None:
                    # Nothing but the header's own beginning may be overwritten.
                    if number == 0 and not b'{"settings": '.startswith(line[:13]):
                        raise OtherEvaluation(path)
                    if file.read(1):  # a kill or a full disk cuts the last line only
                        remedy = "delete that line" if number > 0 else "it has the settings, so name another --output"
                        raise ValueError(f"{path} line {number + 1} cannot be read, and lines follow it: {remedy}")
                    break
                whole += len(line)
        return whole

    def _take(self, fields: dict[str, Any]) -> None:
        key = (int(fields["prompt"]), int(fields["sample"]))
        if "completion" in fields:
            self.found[key] = Judged(int(fields["tokens"]), bool(fields["finished"]), text=str(fields["completion"]))
            if "session_tokens" in fields:  # trbext 0.1 did not write it at first
                self._count(str(fields["session"]), float(fields["seconds"]), int(fields["session_tokens"]))
        else:
            correct = bool(fields["correct"])
            if fields.get("verifier") == self._verifier:
                self._judge(key, correct, fields.get("answer"), fields.get("error"))

    def _judge(self, key: Key, correct: bool, answer: str | None, error: str | None) -> None:
        if key not in self.found:  # somebody deleted the completion, so that it is drawn again
            return
        judged = self.found[key]
        judged.correct, judged.answer, judged.error = correct, answer, error
        if error is None:  # a verifier that raised is asked again by the next session
            judged.text = None

    def has(self, task: Task) -> bool:
        """Whether the completion of a task is there."""
        return (task.prompt, task.sample) in self.found

    def text(self, task: Task) -> str | None:
        """Returns the completion of a task that is not judged yet; None if it is."""
        return self.found[task.prompt, task.sample].text

    def write(self, task: Task, completion: Completion) -> None:
        """Writes a completion. Any thread may call it.

        Raises:
            OSError: It cannot be written. What was written of it is removed at the next start.
        """
        session = self._session
        with session.lock:
            key = task.prompt, task.sample
            if key in self.found:
                return
            seconds = round(time.monotonic() - session.start, 3)
            session.tokens += completion.tokens
            self._append(
                {
                    "prompt": task.prompt,
                    "sample": task.sample,
                    "seed": task.seed,
                    "tokens": completion.tokens,
                    "finished": completion.finished,
                    "session": session.name,
                    "seconds": seconds,
                    "session_tokens": session.tokens,
                    "completion": completion.text,
                }
            )
            self._count(session.name, seconds, session.tokens)
            self.found[key] = Judged(completion.tokens, completion.finished, text=completion.text)

    def judge(self, task: Task, correct: bool, answer: str | None, error: str | None) -> None:
        """Writes the judgment of a completion that is there.

        Args:
            task: Of the completion.
            correct: The judgment.
            answer: What the completion answers, for the majority vote.
            error: Of the verifier, if it raised.

        Raises:
            OSError: It cannot be written.
        """
        judgment: dict[str, Any] = {"prompt": task.prompt, "sample": task.sample, "correct": correct}
        known = {"answer": answer, "error": error, "verifier": self._verifier}
        judgment |= {name: value for name, value in known.items() if value is not None}
        with self._session.lock:
            self._append(judgment)
            self._judge((task.prompt, task.sample), correct, answer, error)

    def _append(self, fields: dict[str, Any]) -> None:
        if self._file is None:
            if self.path is not None:
                raise ValueError(f"{self.path} is closed")
            return
        line = (json.dumps(fields, ensure_ascii=False) + "\n").encode("utf-8", "surrogatepass")
        assert self.path is not None
        with errors_of(self.path):
            while line:
                try:
                    line = line[os.write(self._file, line) :]
                except OSError:
                    self.close()  # nothing may follow half a line
                    raise

    def _count(self, session: str, seconds: float, tokens: int) -> None:
        self._drawn[session] = max(self._drawn.get(session, (0.0, 0)), (seconds, tokens))

    @property
    def drawn(self) -> dict[str, tuple[float, int]]:
        """Of each session, the seconds to its last completion here, and the tokens drawn by then for all records."""
        return dict(self._drawn)

    def close(self) -> None:
        """Closes the file, after which nothing more is written."""
        if self._file is not None:
            opened, self._file = self._file, None
            os.close(opened)


def check_record(path: Path, settings: Mapping[str, Any], unknown: Set[str] = frozenset()) -> None:
    """Checks that the header of a file, if there is one, is that of an evaluation.

    Args:
        path: The file. What else `Record` refuses or cuts off is left to it.
        settings: What the completions depend on.
        unknown: Names of settings that are not looked at.

    Raises:
        OtherEvaluation: (a ValueError) it is of another evaluation.
        ValueError: It is a folder or a device.
        OSError: It cannot be read.
    """
    _check_is_file(path)
    if not path.exists():
        return
    with path.open("rb") as file, suppress(json.JSONDecodeError, UnicodeDecodeError):
        _check(path, json.loads(file.readline()), settings, unknown)


def _check_is_file(path: Path) -> None:
    if path.exists() and not path.is_file():
        raise ValueError(f"--output {path} must be a file, got a folder or a device")


def _check(path: Path, fields: Any, settings: Mapping[str, Any], unknown: Set[str] = frozenset()) -> None:
    before = fields.get("settings") if isinstance(fields, dict) else None
    if not isinstance(before, dict):
        raise OtherEvaluation(path)
    now = json.loads(json.dumps(dict(settings)))
    for name in (*now, *before):
        if name not in unknown and before.get(name) != now.get(name):
            raise OtherEvaluation(path, f"{name} was {_short(before.get(name))}, and is {_short(now.get(name))}")


class OtherEvaluation(ValueError):
    """A file holds something else than this evaluation."""

    def __init__(self, path: Path, difference: str = "") -> None:
        why = f" ({difference})" if difference else ""
        super().__init__(f"{path} exists and is not of this evaluation; name another --output{why}")


def _short(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
