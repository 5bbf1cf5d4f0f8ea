"""A call of a TRB server reaches every replica, and one that fails changes nothing that it need not."""

from __future__ import annotations

import asyncio
import json
import math
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from trbext.vllm.completions.endpoints import WeightCalls
from trbext.vllm.server import replicas as replicas_module
from trbext.vllm.server.access import is_allowed, key_digests
from trbext.vllm.server.calls import LENGTHS, STATE, HTTPAnswer, ServerCalls
from trbext.vllm.server.endpoints import TRBEndpoints
from trbext.vllm.server.replicas import Replicas, replica_seed

HANDSHAKE = {"vllm": "0.32.0", "draft_length": 3}


class Engines:
    """A client of vLLM's with core engines that note what they are asked."""

    def __init__(self, replicas: int = 2, *, workers: int = 1) -> None:
        self.vllm_config = SimpleNamespace(parallel_config=SimpleNamespace(data_parallel_size=replicas))
        self.engine_core = self
        self.core_engines = [bytes([rank]) for rank in range(replicas)]
        self.resources = SimpleNamespace(engine_dead=False)
        self.workers = workers
        self.asked: list[tuple[int, str, dict[str, Any]]] = []
        self.answers: dict[str, Callable[[int, int, dict[str, Any]], Any]] = {"trb_enable": lambda *_: HANDSHAKE}
        self.busy: list[set[int]] = []  # the replicas that cannot be reset, by attempt

    async def _call_utility_async(self, method: str, *arguments: Any, engine: bytes) -> Any:
        rank = engine[0]
        if method == "reset_prefix_cache":
            assert arguments == (False, False)
            self.asked.append((rank, method, {}))
            attempt = sum(asked[:2] == (rank, method) for asked in self.asked) - 1
            return attempt >= len(self.busy) or rank not in self.busy[attempt]
        assert method == "collective_rpc"
        name, timeout, positional, named = arguments
        assert (timeout, positional) == (None, ())
        self.asked.append((rank, name, named))
        answer = self.answers.get(name, lambda *_: None)
        return [answer(rank, worker, named) for worker in range(self.workers)]

    def of(self, method: str) -> list[tuple[int, dict[str, Any]]]:
        return [(rank, named) for rank, name, named in self.asked if name == method]


def calls_of(engines: Engines) -> ServerCalls:
    return ServerCalls(Replicas(engines), {"replicas": len(engines.core_engines)}, seed=5, sizes=(40, 30))


def ask(calls: ServerCalls, name: str, body: Any = None) -> HTTPAnswer:
    return asyncio.run(calls.answer(name, b"" if body is None else json.dumps(body).encode()))


def message(answer: HTTPAnswer) -> str:
    return str(json.loads(answer.body)["error"])


def test_every_replica_is_asked_and_all_answers_come_back() -> None:
    engines = Engines(3, workers=2)
    engines.answers["trb_digest"] = lambda rank, worker, _: f"{rank}{worker}"
    answer = ask(calls_of(engines), "digest")
    assert answer.status == 200
    assert json.loads(answer.body) == {"answers": [["00", "01"], ["10", "11"], ["20", "21"]]}


def test_a_budget_reaches_every_replica_and_is_kept_when_the_engines_are_enabled_again() -> None:
    engines = Engines(2)
    calls = calls_of(engines)
    assert ask(calls, "enable", {"width": 9, "stop": 2, "merged": [3]}).status == 200
    for epsilon in (0.25, math.inf):
        assert ask(calls, "epsilon", {"epsilon": epsilon}).status == 200
        assert engines.of("trb_set_epsilon")[-2:] == [(0, {"epsilon": epsilon}), (1, {"epsilon": epsilon})]
        assert json.loads(calls.handshake().body) == {"trb": 2, "replicas": 2, **HANDSHAKE, "epsilon": epsilon}
    assert ask(calls, "enable", {"top_k": 4}).status == 200
    for rank, named in engines.of("trb_enable")[-2:]:
        seed = replica_seed(5, rank, 2)
        assert named == {"width": 9, "stop": 2, "merged": [3], "epsilon": math.inf, "top_k": 4, "seed": seed}


def test_an_answer_names_a_state_that_changes_with_weights_and_settings_only(weights: dict[str, str]) -> None:
    engines = Engines(2)
    calls = calls_of(engines)
    states = [calls.handshake().headers[STATE]]
    settings = {"width": 9, "stop": 2, "merged": [3], "top_k": 4}
    changes: list[tuple[str, dict[str, Any]]] = [
        ("enable", settings),
        ("student", weights),
        ("student", weights),
        ("transfer", {"step": "start"}),
        ("enable", {"top_k": 0}),
    ]
    for name, body in changes:
        assert ask(calls, name, body).status == 200
        states.append(calls.handshake().headers[STATE])
        for other, nothing in (("epsilon", {"epsilon": 1}), ("seed", {"seed": 1}), ("digest", {}), ("enable", {})):
            assert ask(calls, other, nothing).headers[STATE] == states[-1]
    engines.answers["trb_load_student"] = lambda *_: 1 / 0
    failed = ask(calls, "student", weights)
    assert failed.status == 500
    assert failed.headers[STATE] == calls.handshake().headers[STATE]
    states.append(failed.headers[STATE])
    engines.answers["trb_enable"] = lambda rank, *_: 1 / rank  # the second replica has new settings, the first one not
    assert ask(calls, "enable", {"top_k": 3}).status == 500
    states.append(calls.handshake().headers[STATE])
    assert len(set(states)) == len(states)
    assert calls_of(engines).handshake().headers[STATE] not in states


def test_no_two_replicas_have_the_same_random_numbers_at_any_time() -> None:
    engines = Engines(3)
    calls = calls_of(engines)
    for name, body in (("enable", {}), ("enable", {}), ("seed", {"seed": 5}), ("seed", {"seed": 6}), ("enable", {})):
        assert ask(calls, name, body).status == 200
    seeds = [named["seed"] for _, named in engines.of("trb_seed")]
    assert len(set(seeds)) == len(seeds) == 15
    assert all(0 <= seed < 2**63 for seed in seeds)
    assert ask(calls, "seed", {"seed": 5}).status == 200
    assert [named["seed"] for _, named in engines.of("trb_seed")[-3:]] == seeds[6:9]


def test_settings_that_are_refused_leave_the_seeds_as_they_are() -> None:
    engines, untouched = Engines(2), Engines(2)
    calls, expected = calls_of(engines), calls_of(untouched)
    assert ask(calls, "enable", {"seed": 7, "top_k": 31}).status == 400
    for of in (calls, expected):
        assert ask(of, "enable", {}).status == 200
    assert engines.asked == untouched.asked


def test_workers_that_differ_are_an_error() -> None:
    engines = Engines(2)
    engines.answers["trb_enable"] = lambda rank, *_: {"vllm": f"0.3{rank}"}
    answer = ask(calls_of(engines), "enable", {})
    assert answer.status == 500
    assert "all workers of a server must give the same handshake" in message(answer)


def test_records_are_those_of_the_first_worker_of_each_replica() -> None:
    engines = Engines(2, workers=2)
    engines.answers["trb_take_records"] = lambda rank, worker, _: None if worker else b"ab" * (rank + 1)
    answer = ask(calls_of(engines), "records")
    assert (answer.body, answer.headers[LENGTHS]) == (b"ababab", "2,4")


def test_an_error_names_the_replicas_that_failed() -> None:
    def load(rank: int, worker: int, named: dict[str, Any]) -> int:
        if rank:
            raise RuntimeError("no space")
        return 3

    engines = Engines(3)
    engines.answers["trb_digest"] = load
    answer = ask(calls_of(engines), "digest")
    assert answer.status == 500
    assert message(answer) == "trb_digest failed in 2 of 3 replicas: replica 1: no space; replica 2: no space"


@pytest.fixture
def weights(tmp_path: Path) -> dict[str, str]:
    (tmp_path / "model.safetensors").touch()
    return {"path": str(tmp_path)}


def test_caches_are_emptied_before_and_after_a_load(weights: dict[str, str]) -> None:
    engines = Engines(2)
    assert ask(calls_of(engines), "student", weights).status == 200
    order = [(rank, name) for rank, name, _ in engines.asked]
    reset = [(0, "reset_prefix_cache"), (1, "reset_prefix_cache")]
    assert order == [*reset, (0, "trb_load_student"), (1, "trb_load_student"), *reset]
    assert engines.of("trb_load_student") == [(0, weights), (1, weights)]


def test_nobody_draws_from_a_student_that_only_some_replicas_have(weights: dict[str, str]) -> None:
    engines = Engines(2)
    engines.answers |= {"trb_take_records": lambda *_: b"", "trb_load_student": lambda rank, *_: 1 / rank}
    calls = calls_of(engines)
    assert ask(calls, "records").status == 200
    assert ask(calls, "student", weights).status == 500
    answer = ask(calls, "records")
    assert (answer.status, message(answer)) == (
        500,
        "the last load of the student's weights failed: load them again before a draw",
    )
    engines.answers["trb_load_student"] = lambda *_: 3
    for name, body in (("student", weights), ("transfer", {"step": "start"}), ("transfer", {"step": "finish"})):
        assert ask(calls, name, body).status == 200
        assert ask(calls, "records").status == (500 if body == {"step": "start"} else 200)


def test_a_replica_that_is_at_work_keeps_its_weights(weights: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(replicas_module, "RESET_PAUSE", 0.0)
    engines = Engines(2)
    engines.busy = [{1}] * replicas_module.RESET_ATTEMPTS
    answer = ask(calls_of(engines), "student", weights)
    assert answer.status == 409
    assert message(answer).endswith("because requests are running in replica 1")
    assert engines.of("trb_load_student") == []


def test_a_cache_that_is_in_use_for_a_moment_is_reset_later(
    weights: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(replicas_module, "RESET_PAUSE", 0.0)
    engines = Engines(2)
    engines.busy = [{0, 1}, {1}]
    assert ask(calls_of(engines), "student", weights).status == 200
    assert len(engines.of("reset_prefix_cache")) == 2 * 4


def test_a_call_to_an_engine_that_has_died_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(replicas_module, "DEATH_WATCH", 0.01)
    engines = Engines(1)

    async def never(*_: Any, **__: Any) -> None:
        engines.resources.engine_dead = True
        await asyncio.Event().wait()

    monkeypatch.setattr(engines, "_call_utility_async", never)
    answer = ask(calls_of(engines), "digest")
    assert answer.status == 500
    assert "an engine core has died" in message(answer)


@pytest.mark.parametrize(
    ("name", "body", "status", "part"),
    [
        ("epsilon", {"epsilon": -1}, 400, "epsilon of /trb/epsilon must be a KL budget in nats per token, at least 0"),
        ("epsilon", {"epsilon": math.nan}, 400, "at least 0, got nan"),
        ("epsilon", {"epsilon": True}, 400, "got True"),
        ("epsilon", {}, 400, "/trb/epsilon needs epsilon"),
        ("epsilon", [1], 400, "must be a JSON object, got list"),
        ("seed", {"seed": -1}, 400, "a whole number of at least 0, got -1"),
        ("enable", {"widht": 3}, 400, "/trb/enable takes width, stop, merged, epsilon, seed, top_k, got 'widht'"),
        ("enable", {"merged": [1, "a"]}, 400, "a list of token ids"),
        ("enable", {"width": 31}, 400, "width must be at most 30, which both models have, got 31"),
        ("enable", {"stop": 30}, 400, "stop must be of the 30 ids that both models have, got 30"),
        ("enable", {"width": 20, "merged": [3, 20]}, 400, "merged must be of the 20 ids that both models have, got 20"),
        ("enable", {"top_k": 31}, 400, "top_k must be at most the 30 tokens that both models have, got 31"),
        ("counters", {"clear": 1}, 400, "clear of /trb/counters must be true or false"),
        ("records", {"key": 1}, 400, "/trb/records takes nothing"),
        ("student", {"path": "model"}, 400, "path must be an absolute one"),
        ("student", {"path": "/no/such/folder"}, 400, "of a folder with *.safetensors files"),
        ("transfer", {"step": "stop"}, 400, "one of init, start, update, finish"),
        ("sleep", {}, 404, "/trb/sleep is no call of a TRB server"),
    ],
)
def test_a_wrong_call_is_refused_by_what_is_wrong_before_an_engine_is_asked(
    name: str, body: Any, status: int, part: str
) -> None:
    engines = Engines(2)
    answer = ask(calls_of(engines), name, body)
    assert answer.status == status
    assert part in message(answer)
    assert engines.asked == []


def test_a_body_that_is_no_json_is_refused() -> None:
    answer = asyncio.run(calls_of(Engines()).answer("epsilon", b"{"))
    assert answer.status == 400
    assert "must be JSON" in message(answer)


def test_a_transfer_goes_into_the_draft_model_and_empties_the_caches() -> None:
    engines = Engines(2)
    calls = calls_of(engines)
    for step, info in (("init", {"world_size": 3}), ("start", None), ("update", {"names": []}), ("finish", None)):
        assert ask(calls, "transfer", {"step": step, **({} if info is None else {"info": info})}).status == 200
    assert [(name, named) for rank, name, named in engines.asked if rank == 1] == [
        ("init_weight_transfer_engine", {"init_info": {"world_size": 3}}),
        ("reset_prefix_cache", {}),
        ("start_draft_weight_update", {}),
        ("update_weights", {"update_info": {"names": []}}),
        ("finish_weight_update", {}),
        ("reset_prefix_cache", {}),
    ]


def test_replicas_behind_another_api_server_and_unknown_clients_are_refused() -> None:
    engines = Engines(2)
    engines.core_engines = engines.core_engines[:1]
    with pytest.raises(RuntimeError, match="must reach all 2 data-parallel replicas, and this API server has 1"):
        Replicas(engines)
    with pytest.raises(RuntimeError, match="no core_engines"):
        Replicas(SimpleNamespace(engine_core=SimpleNamespace()))


def test_the_calls_are_guarded_by_the_keys_of_the_server(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VLLM_API_KEY", "of the environment")

    def allowed(keys: list[str], header: str | None) -> bool:
        request = SimpleNamespace(headers={} if header is None else {"authorization": header})
        return is_allowed(request, key_digests(SimpleNamespace(api_key=keys)))

    assert allowed([], "Bearer of the environment")
    assert allowed(["a", "b"], "Bearer b")
    for header in (None, "Bearer c", "Basic b", "b", "Bearer of the environment"):
        assert not allowed(["a", "b"], header)
    assert not allowed([], None)
    monkeypatch.delenv("VLLM_API_KEY")
    assert allowed([], None)


def weigh(engines: Engines, name: str, body: Any = None) -> tuple[int, dict[str, Any]]:
    calls = WeightCalls(Replicas(engines))
    return asyncio.run(calls.answer(name, b"" if body is None else json.dumps(body).encode()))


def test_a_checkpoint_is_loaded_into_every_replica_between_two_resets_of_the_caches() -> None:
    engines = Engines(2, workers=2)
    engines.answers["trb_digest"] = lambda rank, worker, _: f"of worker {worker}"
    status, answer = weigh(engines, "weights", {"path": "/c"})
    assert (status, len(answer["digest"])) == (200, 64)
    order = ["reset_prefix_cache", "trb_load", "reset_prefix_cache", "trb_digest"]
    assert [name for rank, name, _ in engines.asked if rank == 1] == order
    assert engines.of("trb_load") == [(0, {"path": "/c"}), (1, {"path": "/c"})]
    assert weigh(engines, "digest") == (200, answer)


def test_weights_that_cannot_be_loaded_or_differ_are_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(replicas_module, "RESET_PAUSE", 0.0)
    for body in ({}, {"path": 3}, {"path": "/c", "more": 1}, [1]):
        assert weigh(Engines(), "weights", body)[0] == 400
    assert weigh(Engines(), "enable")[0] == 404
    busy = Engines()
    busy.busy = [{1}] * replicas_module.RESET_ATTEMPTS
    assert weigh(busy, "weights", {"path": "/c"})[0] == 409
    assert busy.of("trb_load") == []
    refusing = Engines()
    refusing.answers["trb_load"] = lambda rank, *_: "3 weights are missing" if rank else None
    status, answer = weigh(refusing, "weights", {"path": "/c"})
    assert (status, answer["error"]) == (400, "trb_load failed in 1 workers, for /c: 3 weights are missing")
    unlike = Engines()
    unlike.answers["trb_digest"] = lambda rank, worker, _: str(rank)
    status, answer = weigh(unlike, "digest")
    assert (status, answer["error"]) == (500, "all replicas must have the same weights, got the digests [['0'], ['1']]")


def test_a_server_without_an_engine_is_left_alone() -> None:
    asyncio.run(TRBEndpoints().init_state(None, SimpleNamespace(), SimpleNamespace()))
