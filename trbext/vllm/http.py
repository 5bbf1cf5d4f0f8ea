"""Reaches a TRB engine that is a server of `trb vllm-serve`, with any number of data-parallel replicas."""

from __future__ import annotations

import re
import secrets
import time
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import EngineFailed, EngineRefused, UsageError
from ..rollout.plain_sampling import PLAIN_COMPLETIONS
from .server.calls import LENGTHS, PROTOCOL, STATE
from .server.connection import Reply, ServerConnection, Unreachable
from .transport import EngineCompletion, Records, RolloutRequest

POLL_SECONDS = 2.0  # between two looks for a server that is starting
MOST_AT_A_TIME = 2048  # requests under way, each of which has a thread that sleeps
CHANGES = ("enable", "student", "transfer")  # calls after which the server has another state
KEYS = 2**20  # rollouts of a draw, at most
BEHIND_PROXY = (502, 503, 504)  # answers of a proxy in whose back the server is not there, or not yet
# Arrays of the records, with the array of their keys; those that are not here have "key".
NOT_OF_KEY = {"teacher_index": "teacher_key", "fault_index": "fault_key"}


class HTTPEngine:
    """The `Engine` of a server, for one client at a time: a draw takes all records that the server holds.

    A call raises if the server has started again, or if another client has changed its weights or settings.
    No request is sent twice. One that was cut off may have drawn tokens, and to draw again the rollouts that took long
    would favor the short ones.

    Args:
        url: Of the server, http://HOST:PORT.
        api_key: Its --api-key; None is that of VLLM_API_KEY in the environment, if there is one.
        wait: Seconds to wait for a server that is starting.

    Raises:
        UsageError: Nothing answers at the URL, or what answers is no TRB server of this protocol.
    """

    def __init__(self, url: str, *, api_key: str | None = None, wait: float = 0.0) -> None:
        self._server = ServerConnection(url, api_key)
        self.url = self._server.url
        self._first_key = secrets.randbits(40) * KEYS  # no other client's records are taken for this one's
        self._state: str | None = None
        deadline = time.monotonic() + wait
        while True:
            try:
                self._facts = self.handshake()
                break
            except Unreachable as error:
                if time.monotonic() >= deadline:
                    waited = f" after {wait:g} seconds" if wait else ""
                    raise UsageError(f"{error}{waited}: start one with trb vllm-serve") from error
                time.sleep(POLL_SECONDS)

    def handshake(self) -> dict[str, Any]:
        """What the server says of itself: versions, models, sizes, settings.

        Raises:
            Unreachable: Nothing answers at the URL but a proxy.
            UsageError: It is no TRB server, or one of another protocol.
        """
        answer, state = self._ask_handshake()
        if self._state is None:
            self._state = state
        return answer

    def _ask_handshake(self) -> tuple[dict[str, Any], str | None]:
        """What the server says of itself, and the name of its state."""
        reply = self._server.send("GET", "/trb/handshake")
        answer = reply.json()
        if reply.status in BEHIND_PROXY:
            raise Unreachable(f"no server answers at {self.url} (a proxy gives status {reply.status})")
        if reply.status == 401:
            raise UsageError(f"the server at {self.url} wants its --api-key: set VLLM_API_KEY")
        if reply.status != 200 or not isinstance(answer, dict) or "trb" not in answer:
            raise UsageError(
                f"the server at {self.url} is no TRB server, its /trb/handshake gave status {reply.status}: start one "
                "with trb vllm-serve"
            )
        if answer["trb"] != PROTOCOL:
            raise UsageError(
                f"the server at {self.url} must speak protocol {PROTOCOL} of trbext, got {answer['trb']}: use the same "
                "trbext on both sides"
            )
        return answer, reply.headers.get(STATE)

    def enable(self, **settings: Any) -> dict[str, Any]:
        """Sets the settings of `WorkerExtension.trb_enable` on every worker of every replica.

        Returns:
            What the workers answered; the server has checked that all gave the same answer.
        """
        first: dict[str, Any] = self._call("enable", settings)[0][0]
        return first

    def generate(self, requests: Sequence[RolloutRequest]) -> list[EngineCompletion]:
        """Decodes all requests. The server shares them among its replicas.

        Raises:
            EngineRefused: The server refuses a request.
            EngineFailed: The server failed, or is gone.
        """
        at_a_time = int(self._facts["replicas"]) * int(self._facts["max_num_seqs"])
        try:
            replies = self._server.send_all(
                "/v1/completions",
                [self._body(request) for request in requests],
                at_a_time=min(at_a_time, MOST_AT_A_TIME),
            )
        except Unreachable as error:
            raise EngineFailed(f"{error}: it has ended since the last call") from error
        if replies and replies[0].status != 200:
            self._raise(replies[0], "answered a rollout")
        return [self._completion(reply, request) for reply, request in zip(replies, requests, strict=True)]

    def set_epsilon(self, epsilon: float) -> None:
        """Sets the budget of requests that name none, nats per token, on every replica."""
        self._call("epsilon", {"epsilon": epsilon})

    def seed(self, seed: int) -> None:
        """Sets the seed from which each replica gets one of its own."""
        self._call("seed", {"seed": seed})

    def counters(self, *, clear: bool = False) -> list[dict[str, Any]]:
        """The counters of each replica."""
        return [workers[0] for workers in self._call("counters", {"clear": clear})]

    def take_records(self) -> list[Records]:
        """The records of each replica since the last call."""
        from safetensors.numpy import load

        reply = self._post("records", {})
        lengths = [int(length) for length in reply.headers[LENGTHS].split(",")]
        ends = [sum(lengths[: at + 1]) for at in range(len(lengths))]
        return [self._own(load(reply.body[end - length : end])) for end, length in zip(ends, lengths, strict=True)]

    def _own(self, records: Records) -> Records:
        """The records of this client's rollouts, by its own keys."""
        keys = {name: records[name].astype(np.int64) - self._first_key for name in ("key", *NOT_OF_KEY.values())}
        own = {name: (key >= 0) & (key < KEYS) for name, key in keys.items()}
        return {
            name: keys.get(name, array)[own[name if name in keys else NOT_OF_KEY.get(name, "key")]]
            for name, array in records.items()
        }

    def preemptions(self) -> int | None:
        """Preemptions in all replicas since the server started; None if it was started with --disable-log-stats."""
        metrics = self._server.send("GET", "/metrics").body.decode()
        counts = re.findall(r"^vllm:num_preemptions_total(?:\{[^}]*\})? (\S+)$", metrics, re.M)
        return int(sum(map(float, counts))) if counts else None

    def running(self) -> int:
        """Requests that the server works on, of any client; 0 if it does not count them."""
        metrics = self._server.send("GET", "/metrics").body.decode()
        counts = re.findall(r"^vllm:num_requests_(?:running|waiting)(?:\{[^}]*\})? (\S+)$", metrics, re.M)
        return int(sum(map(float, counts)))

    def load_student(self, folder: str) -> None:
        """Loads the student's weights from a folder of safetensors into every replica, and empties their caches.

        Args:
            folder: On a disk that the server and its replicas share, under the same path.

        Raises:
            EngineRefused: The server finds no weights there.
            EngineFailed: A replica could not load them, or was not idle.
        """
        self._call("student", {"path": str(Path(folder).resolve())})

    def digest(self) -> list[dict[str, str]]:
        """`WorkerExtension.trb_digest` of each worker of each replica."""
        return [worker for workers in self._call("digest", {}) for worker in workers]

    def random_state(self) -> AbstractContextManager[None]:
        """The caller's random numbers are not the server's."""
        return nullcontext()

    def shut_down(self) -> None:
        """Leaves the server as it is: other clients may come."""

    def transfer(self, step: str, info: dict[str, Any] | None = None) -> None:
        """Takes one step of vLLM's weight transfer (`StudentTransfer`) on every worker. It has not been run."""
        self._call("transfer", {"step": step, **({} if info is None else {"info": info})})

    def _call(self, name: str, arguments: dict[str, Any]) -> list[list[Any]]:
        answers: list[list[Any]] = self._post(name, arguments).json()["answers"]
        return answers

    def _post(self, name: str, arguments: dict[str, Any]) -> Reply:
        try:
            if name in CHANGES:  # the answer has another state, which would hide what happened before
                self._check_state(self._ask_handshake()[1])
            reply = self._server.send("POST", f"/trb/{name}", arguments)
        except Unreachable as error:
            raise EngineFailed(f"{error}: it has ended since the last call") from error
        if name in CHANGES:
            self._state = reply.headers.get(STATE, self._state)
        if reply.status != 200:
            self._raise(reply, f"answered /trb/{name}")
        self._check_state(reply.headers.get(STATE))
        return reply

    def _check_state(self, state: str | None) -> None:
        if state != self._state:
            raise EngineFailed(
                f"the server at {self.url} is not as this client left it: it has started again, or another client has "
                "changed its weights or settings"
            )

    def _raise(self, reply: Reply, what: str) -> None:
        message = f"the server at {self.url} {what} with status {reply.status}: {reply.error()}"
        raise EngineRefused(message) if reply.status in (400, 404, 422) else EngineFailed(message)

    def _completion(self, reply: Reply, request: RolloutRequest) -> EngineCompletion:
        (choice,) = reply.json()["choices"]
        tokens, reason = choice["token_ids"], choice["finish_reason"]
        if reason not in ("stop", "length"):
            raise EngineFailed(f"the server at {self.url} ended a rollout by {reason!r}")
        if reason == "length" and len(tokens) <= request.max_new_tokens:  # the first token was held out
            raise EngineFailed(
                f"the server at {self.url} must draw rollouts of up to {request.max_new_tokens} tokens, and ended one "
                f"after {len(tokens) - 1}: it has a limit of its own"
            )
        return EngineCompletion.of(request, tokens)

    def _body(self, request: RolloutRequest) -> dict[str, Any]:
        """A request of /v1/completions. What the server would otherwise take from a generation config is said here."""
        return {
            "prompt": request.prompt[:-1],
            "max_tokens": request.max_new_tokens + 1,  # and the held-out token
            "temperature": request.temperature,
            **PLAIN_COMPLETIONS,
            "ignore_eos": True,  # vLLM's is the teacher's
            "stop_token_ids": request.stop_token_ids,
            "return_token_ids": True,
            "vllm_xargs": request.extra_args(self._first_key),
        }
