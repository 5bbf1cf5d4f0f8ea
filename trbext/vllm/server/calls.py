"""Answers the calls of a TRB server, /trb/..., by asking every replica."""

from __future__ import annotations

import asyncio
import hashlib
import json
import secrets
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from ..sampler.vocabulary import Vocabulary
from .replicas import ReplicaBusy, Replicas, replica_seed

PROTOCOL = 2  # of the calls; a client refuses a server of another one
LENGTHS = "trb-lengths"  # header of `records`: bytes of each replica's records, in the order of the body
STATE = "trb-state"  # header of all answers: names the weights and the settings that the law depends on
TRANSFER_STEPS = {
    "init": "init_weight_transfer_engine",
    "start": "start_draft_weight_update",
    "update": "update_weights",
    "finish": "finish_weight_update",
}


@dataclass(frozen=True)
class HTTPAnswer:
    """An HTTP answer."""

    status: int
    body: bytes
    media_type: str = "application/json"
    headers: dict[str, str] = field(default_factory=dict)


class ServerCalls:
    """The calls of one server. Those that change something run one after the other.

    Args:
        replicas: Of the server.
        facts: What the handshake says of the server besides what the workers answer.
        seed: Of the random numbers, until a client sets another one.
        sizes: The vocabularies of both models; empty if they are not known, and ids are checked by the workers only.
    """

    def __init__(
        self, replicas: Replicas, facts: Mapping[str, Any], *, seed: int = 0, sizes: Sequence[int] = ()
    ) -> None:
        self._replicas, self._facts, self._sizes = replicas, dict(facts), tuple(sizes)
        self._settings: dict[str, Any] = {}
        self._handshake: dict[str, Any] = {}
        self._seed, self._turn = seed, 0
        self._started, self._changes = secrets.token_hex(8), 0  # _changes: of what `self._settings` does not tell
        self._half_loaded = False  # some replicas may have the student's new weights, and others the old ones
        self._lock = asyncio.Lock()
        self._calls: dict[str, Callable[[dict[str, Any]], Any]] = {
            "enable": self.enable,
            "epsilon": self._epsilon,
            "seed": self._set_seed,
            "counters": self._counters,
            "records": self._records,
            "student": self._student,
            "transfer": self._transfer,
            "digest": self._digest,
        }

    async def answer(self, name: str, body: bytes) -> HTTPAnswer:
        """Answers POST /trb/`name`.

        Args:
            name: Of the call.
            body: A JSON object, or nothing.

        Returns:
            Status 200; 400 for a body that is wrong, 404 for another name, 409 if requests are running that have to end
            first, 500 if an engine failed. An error is a JSON object with the key "error".
        """
        if name not in self._calls:
            return _error(404, f"/trb/{name} is no call of a TRB server, which has {', '.join(self._calls)}")
        try:
            arguments = json.loads(body) if body else {}
        except ValueError as error:
            return _error(400, f"the body of /trb/{name} must be JSON: {error}")
        if not isinstance(arguments, dict):
            return _error(400, f"the body of /trb/{name} must be a JSON object, got {type(arguments).__name__}")
        try:
            async with self._lock:
                answer = await self._calls[name](arguments)
        except ValueError as error:
            answer = _error(400, str(error))
        except ReplicaBusy as error:
            answer = _error(409, str(error))
        except Exception as error:  # of the engine, which may live on: its client decides
            answer = _error(500, f"{error or type(error).__name__}")
        return self._stamped(
            answer if isinstance(answer, HTTPAnswer) else HTTPAnswer(200, json.dumps({"answers": answer}).encode())
        )

    def handshake(self) -> HTTPAnswer:
        """Answers GET /trb/handshake."""
        return self._stamped(HTTPAnswer(200, json.dumps({"trb": PROTOCOL, **self._facts, **self._handshake}).encode()))

    def _stamped(self, answer: HTTPAnswer) -> HTTPAnswer:
        """Adds what changes if the server starts again, or if anyone changes its weights or settings."""
        settings = {name: value for name, value in self._settings.items() if name != "epsilon"}
        state = json.dumps([self._started, self._changes, settings], sort_keys=True)
        return replace(answer, headers={**answer.headers, STATE: hashlib.sha256(state.encode()).hexdigest()[:16]})

    async def enable(self, arguments: Mapping[str, Any]) -> list[list[Any]]:
        """Calls `trb_enable` on every worker. A setting that is not given keeps its last value.

        Raises:
            ValueError: A setting is wrong.
            RuntimeError: A worker cannot be enabled, or two workers differ.
        """
        _check_fields("enable", arguments, _SETTINGS)
        settings = {**self._settings, **{name: value for name, value in arguments.items() if name != "seed"}}
        if self._sizes:
            vocabulary = Vocabulary(
                settings.get("width", 0), settings.get("stop", 0), tuple(settings.get("merged", ()))
            )
            vocabulary.check(self._sizes, settings.get("top_k", 0))
        self._seed, self._turn = (arguments["seed"], 0) if "seed" in arguments else (self._seed, self._turn + 1)
        try:
            answers = await self._replicas.call("trb_enable", [{**settings, **own} for own in self._seeds()])
            await self._replicas.call("trb_seed", self._seeds())
            workers = [worker for replica in answers for worker in replica]
            if any(worker != workers[0] for worker in workers):
                raise RuntimeError(f"all workers of a server must give the same handshake, got {answers}")
        except Exception:
            self._changes += 1  # some workers may have the new settings
            raise
        self._settings = settings
        self._handshake = {**workers[0], "epsilon": settings.get("epsilon", 0.0)}
        return answers

    def _seeds(self) -> list[dict[str, int]]:
        return [{"seed": replica_seed(self._seed, rank, self._turn)} for rank in range(len(self._replicas))]

    async def _epsilon(self, arguments: Mapping[str, Any]) -> list[list[Any]]:
        _check_fields("epsilon", arguments, {"epsilon": _SETTINGS["epsilon"]}, needed=("epsilon",))
        answers = await self._replicas.call("trb_set_epsilon", arguments)
        self._settings["epsilon"] = self._handshake["epsilon"] = arguments["epsilon"]
        return answers

    async def _set_seed(self, arguments: Mapping[str, Any]) -> list[list[Any]]:
        _check_fields("seed", arguments, {"seed": _SETTINGS["seed"]}, needed=("seed",))
        self._seed, self._turn = arguments["seed"], 0
        return await self._replicas.call("trb_seed", self._seeds())

    async def _counters(self, arguments: Mapping[str, Any]) -> list[list[Any]]:
        _check_fields("counters", arguments, {"clear": _FLAG})
        return await self._replicas.call("trb_counters", arguments)

    async def _records(self, arguments: Mapping[str, Any]) -> HTTPAnswer:
        _check_fields("records", arguments, {})
        if self._half_loaded:
            raise RuntimeError("the last load of the student's weights failed: load them again before a draw")
        answers = await self._replicas.call("trb_take_records")
        # All workers of a replica have the same records, and only the first one gives them.
        parts = [next(part for part in workers if part is not None) for workers in answers]
        lengths = ",".join(str(len(part)) for part in parts)
        return HTTPAnswer(200, b"".join(parts), "application/octet-stream", {LENGTHS: lengths})

    async def _student(self, arguments: Mapping[str, Any]) -> list[list[Any]]:
        _check_fields("student", arguments, {"path": _TEXT}, needed=("path",))
        path = arguments["path"]
        if not Path(path).is_absolute() or not any(Path(path).glob("*.safetensors")):
            raise ValueError(
                "path must be an absolute one of a folder with *.safetensors files, on a disk that the server and all "
                f"its replicas share, got {path!r}"
            )
        await self._replicas.reset_prefix_cache()  # fails before a weight is changed if requests are running
        self._changes, self._half_loaded = self._changes + 1, True
        answers = await self._replicas.call("trb_load_student", arguments)
        await self._replicas.reset_prefix_cache()
        self._half_loaded = False
        return answers

    async def _transfer(self, arguments: Mapping[str, Any]) -> list[list[Any]]:
        """One step of vLLM's weight transfer, into the draft model. It has not been run: it needs NCCL, and a GPU."""
        _check_fields("transfer", arguments, {"step": _STEP, "info": _OBJECT}, needed=("step",))
        step, info = arguments["step"], arguments.get("info", {})
        named = {"init": {"init_info": info}, "update": {"update_info": info}}.get(step, {})
        if step == "start":
            await self._replicas.reset_prefix_cache()
            self._changes, self._half_loaded = self._changes + 1, True
        answers = await self._replicas.call(TRANSFER_STEPS[step], named)
        if step == "finish":
            await self._replicas.reset_prefix_cache()
            self._half_loaded = False
        return answers

    async def _digest(self, arguments: Mapping[str, Any]) -> list[list[Any]]:
        _check_fields("digest", arguments, {})
        return await self._replicas.call("trb_digest")


def _error(status: int, message: str) -> HTTPAnswer:
    return HTTPAnswer(status, json.dumps({"error": message}).encode())


Rule = tuple[Callable[[Any], bool], str]


def _whole(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0


_WHOLE: Rule = (_whole, "a whole number of at least 0")
_FLAG: Rule = (lambda value: isinstance(value, bool), "true or false")
_TEXT: Rule = (lambda value: isinstance(value, str), "a text")
_OBJECT: Rule = (lambda value: isinstance(value, dict), "a JSON object")
_STEP: Rule = (lambda value: value in list(TRANSFER_STEPS), f"one of {', '.join(TRANSFER_STEPS)}")
_SETTINGS: dict[str, Rule] = {
    "width": _WHOLE,
    "stop": _WHOLE,
    "merged": (lambda value: isinstance(value, list) and all(map(_whole, value)), "a list of token ids"),
    "epsilon": (
        lambda value: isinstance(value, int | float) and not isinstance(value, bool) and value >= 0,
        "a KL budget in nats per token, at least 0",
    ),
    "seed": _WHOLE,
    "top_k": _WHOLE,
}


def _check_fields(
    call: str, arguments: Mapping[str, Any], rules: Mapping[str, Rule], needed: tuple[str, ...] = ()
) -> None:
    """Checks the body of a call.

    Raises:
        ValueError: A field is unknown, missing or wrong.
    """
    for name, value in arguments.items():
        if name not in rules:
            raise ValueError(f"/trb/{call} takes {', '.join(rules) or 'nothing'}, got {name!r}")
        holds, requirement = rules[name]
        if not holds(value):
            raise ValueError(f"{name} of /trb/{call} must be {requirement}, got {value!r}")
    for name in needed:
        if name not in arguments:
            raise ValueError(f"/trb/{call} needs {name}")
