"""Draws the completions of an evaluation from a server of completions (vLLM, SGLang), many at a time."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from queue import SimpleQueue
from threading import Lock, Thread
from typing import Any

from ..errors import EngineFailed, UsageError
from ..teachers.remote.dialects import WRONG_FORM
from ..teachers.remote.http_session import HTTPSession, Role
from ..teachers.remote.served_model import check_tokenizer, served_models
from .server_dialects import completion_dialect
from .tasks import Completion, Task, Write

KEY_VARIABLE = "TRB_ENGINE_API_KEY"
ENGINE = Role("engine", KEY_VARIABLE, "run the same command again when the server is back: it continues")
IN_FLIGHT = 512  # requests under way, each of which has a thread that sleeps
TIMEOUT = 3600.0  # seconds for one completion, which may wait for others in the server


class ServerDecoder:
    """One model of a server.

    A request that was cut off is sent again. It has the same seed, so the tries do not favor short completions.

    Args:
        url: http://HOST:PORT of the server.
        model: The folder or name of the model that is evaluated; the server must have it.
        tokenizer: The model's; the server's must be the same.
        stop: Ids that end a completion.
        in_flight: Requests under way at a time.
        tries: How often a request is sent before the evaluation ends with an error.
        timeout: Seconds to wait for a completion.
        temperature: Of the sampling.
        api_key: None is that of TRB_ENGINE_API_KEY in the environment. It is neither printed nor stored.
        gone: As of `HTTPSession`.
        name: Of the way of decoding.

    Raises:
        UsageError: Nothing answers, the server has another model, refuses the key, or does not tell how it tokenizes.
        VocabularyMismatch: Its tokenizer is another one.
    """

    def __init__(
        self,
        url: str,
        *,
        model: str,
        tokenizer: Any,
        stop: Sequence[int],
        in_flight: int = IN_FLIGHT,
        tries: int = 8,
        timeout: float = TIMEOUT,
        temperature: float = 1.0,
        api_key: str | None = None,
        gone: Callable[[], str | None] = lambda: None,
        name: str = "server",
    ) -> None:
        self.name, self.in_flight = name, in_flight
        self._session = HTTPSession(
            url, api_key=api_key, timeout=timeout, tries=tries, role=ENGINE, connections=in_flight, gone=gone
        )
        self.url = self._session.url
        about = _choose(served_models(self._session), model, self.url)
        self._model = str(about["id"])
        self._longest = int(about.get("max_model_len") or 0)
        self._dialect = completion_dialect(str(about.get("owned_by", "")))
        self._tokenizer, self._stop, self._temperature = tokenizer, tuple(stop), temperature
        check_tokenizer(self._session, self._model, tokenizer, "the model")

    def check_length(self, longest: int) -> None:
        """Checks that the server takes a prompt and its completion of so many tokens together.

        Raises:
            UsageError: It does not.
        """
        if 0 < self._longest < longest:
            raise UsageError(
                f"the engine at {self.url} takes {self._longest} tokens, and a prompt and its completion have "
                f"{longest}: start it with a longer --max-model-len, or shorten max_completion_length"
            )

    def draw(self, tasks: Sequence[Task], missing: Callable[[Task], bool], write: Write) -> Iterator[Task]:
        """See `Decoder`. All missing tasks are sent at once, as far as `in_flight` allows."""
        todo = [task for task in tasks if missing(task)]
        source, lock = iter(todo), Lock()
        done: SimpleQueue[Task | Exception] = SimpleQueue()
        ended = False

        def work() -> None:
            while not ended:
                with lock:
                    task = next(source, None)
                if task is None:
                    return
                try:
                    completion = self._ask(task)
                    if ended:
                        return
                    write(task, completion)
                except Exception as error:
                    done.put(error)
                    return
                done.put(task)

        for _ in range(min(self.in_flight, len(todo))):
            Thread(target=work, daemon=True).start()
        try:
            for _ in todo:
                found = done.get()
                if isinstance(found, Exception):
                    raise found
                yield found
        finally:
            ended = True  # what is under way is left to the server

    def _ask(self, task: Task) -> Completion:
        body = self._dialect.ask(self._model, task, self._stop, self._temperature)
        answer = self._session.answer("POST", self._dialect.path, body)
        try:
            drawn = self._dialect.read(answer)
        except WRONG_FORM as error:
            raise EngineFailed(
                f"the engine at {self.url} answered {self._dialect.path} in another form than "
                f"{type(self._dialect).__name__} has ({type(error).__name__}: {error})"
            ) from error
        if drawn.reason not in ("stop", "length"):
            raise EngineFailed(f"the engine at {self.url} ended a completion by {drawn.reason!r}")
        if drawn.reason == "length" and drawn.tokens < task.max_new_tokens:  # cut off, it would count as wrong
            raise EngineFailed(
                f"the engine at {self.url} must draw completions of up to {task.max_new_tokens} tokens, and ended one "
                f"after {drawn.tokens}: it has a limit of its own, such as max_new_tokens in vLLM's "
                "--override-generation-config"
            )
        text = drawn.text
        if drawn.ids is not None:  # as our own decoder makes it
            text = str(self._tokenizer.decode(drawn.ids, skip_special_tokens=True))
        return Completion(text, drawn.tokens, drawn.reason == "stop")


def _choose(served: dict[str, dict[str, Any]], model: str, url: str) -> dict[str, Any]:
    for about in served.values():
        if any(is_same_model(model, str(about[key])) for key in ("id", "root") if about.get(key)):
            return about
    raise UsageError(f"the engine at {url} must have the model {model}, got {', '.join(served) or 'none'}")


def is_same_model(asked: str, served: str) -> bool:
    """Returns whether a server's name of a model is that of a folder or of a model of the Hub.

    A folder may be mounted elsewhere on the server: then its last two names count, as in run/checkpoint-100.
    """
    if asked == served or (Path(asked).is_dir() and Path(asked).resolve() == Path(served).resolve()):
        return True
    parts = [Path(one).resolve().parts if Path(one).is_dir() else Path(one).parts for one in (asked, served)]
    return len(parts[0]) >= 2 and parts[0][-2:] == parts[1][-2:]
