"""The client of a TRB server asks for rollouts as it must, and says in one line what is wrong with a server."""

from __future__ import annotations

import math
import resource
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.numpy import save

from python_tests.vllm.server.fake_server import BREAK, HANDSHAKE, FakeServer, fake_server
from trbext.errors import EngineFailed, EngineRefused, UsageError
from trbext.teachers.remote.http_session import HTTPSession
from trbext.vllm import http as http_module
from trbext.vllm.client import EngineRollouts
from trbext.vllm.http import KEYS, HTTPEngine
from trbext.vllm.transport import EngineCompletion, RolloutRequest
from trbext.vocab import Alignment


@pytest.fixture
def server() -> Iterator[FakeServer]:
    with fake_server() as fake:
        yield fake


def request(key: int, prompt: list[int] | None = None, **changes: Any) -> RolloutRequest:
    given: dict[str, Any] = {"max_new_tokens": 3, "temperature": 0.7, "stop": 2, "epsilon": 0.25, **changes}
    return RolloutRequest(prompt=[5, 6, 7] if prompt is None else prompt, key=key, **given)


def completed(body: dict[str, Any], reason: str = "stop", tokens: int = 1) -> tuple[int, Any]:
    held_out = body["vllm_xargs"]["trb_held_out"]
    return 200, {"choices": [{"token_ids": [held_out, *[key_of(body)] * tokens], "finish_reason": reason}]}


def key_of(body: dict[str, Any]) -> int:
    """The key of a request, without what makes it the client's own."""
    return int(body["vllm_xargs"]["trb_key"] % KEYS)


def test_a_rollout_is_asked_for_with_all_that_a_generation_config_could_change(server: FakeServer) -> None:
    server.answers["/v1/completions"] = completed
    assert HTTPEngine(server.url).generate(
        [request(9, stop=9, epsilon=math.inf), request(8, stop=8, epsilon=None)]
    ) == [
        EngineCompletion([7, 9], True),
        EngineCompletion([7, 8], True),
    ]
    bodies = {key_of(body): body for body in server.of("/v1/completions")}
    keys = {key: body["vllm_xargs"].pop("trb_key") for key, body in bodies.items()}
    assert keys[9] - 9 == keys[8] - 8
    assert bodies[9] == {
        "prompt": [5, 6],
        "max_tokens": 4,
        "temperature": 0.7,
        "top_p": 1.0,
        "top_k": 0,
        "min_p": 0.0,
        "repetition_penalty": 1.0,
        "presence_penalty": 0.0,
        "frequency_penalty": 0.0,
        "ignore_eos": True,
        "stop_token_ids": [9],
        "return_token_ids": True,
        "vllm_xargs": {"trb_held_out": 7, "trb_epsilon": math.inf},
    }
    assert bodies[8]["vllm_xargs"] == {"trb_held_out": 7}


def test_a_rollout_of_a_prompt_that_ends_with_the_stop_token_is_cut_here(server: FakeServer) -> None:
    server.answers["/v1/completions"] = lambda body: completed(body, "length", 3)
    completions = HTTPEngine(server.url).generate([request(2, prompt=[5, 2])])  # the answer is of the key only
    assert completions == [EngineCompletion([2, 2], True)]
    assert server.of("/v1/completions")[0]["stop_token_ids"] == []


def test_a_draw_of_numpy_s_numbers_is_the_one_of_python_s(server: FakeServer) -> None:
    """JSON knows Python's numbers only."""
    records = save(
        {name: np.zeros(0, np.int64) for name in ("key", "teacher_key", "teacher_index", "fault_key", "fault_index")}
    )
    server.answers |= {
        "/trb/enable": (200, {"answers": [[{"draft_length": 1, "max_model_len": 64}]]}),
        "/trb/counters": (200, {"answers": [[{}]]}),
        "/trb/seed": (200, {"answers": []}),
        "/trb/records": (200, records, {"trb-lengths": str(len(records))}),
        "/metrics": (200, b""),
        "/v1/completions": (400, {"error": {"message": "this far", "code": 400}}),
    }
    rollouts = EngineRollouts(HTTPEngine(server.url), Alignment(9, (np.int64(2),), ()), pad_token_id=0)
    for prompts in (np.array([[5, 6, 7]]), [np.array([5, 6, 7])], torch.tensor([[5, 6, 7]]), [[5, 6, 7]]):
        with pytest.raises(EngineRefused, match="this far"):
            rollouts.draw(
                prompts,
                epsilon=np.float32(0.5),
                max_new_tokens=np.int64(6),
                temperature=np.float32(0.5),
                seed=np.int64(3),
            )
    bodies = server.of("/v1/completions")
    assert [(body["prompt"], body["max_tokens"], body["temperature"]) for body in bodies] == [([5, 6], 7, 0.5)] * 4
    assert server.of("/trb/seed") == [{"seed": 3}] * 4


def test_as_many_rollouts_as_the_replicas_decode_are_under_way_and_answers_keep_their_order(server: FakeServer) -> None:
    barrier = threading.Barrier(8)  # 2 replicas of 4 sequences: fewer at a time would never meet, and time out

    def answer(body: dict[str, Any]) -> tuple[int, Any]:
        barrier.wait(30)
        return completed(body, "length", 3)

    server.answers["/v1/completions"] = answer
    completions = HTTPEngine(server.url).generate([request(key, stop=16) for key in range(16)])
    assert completions == [EngineCompletion([7, key, key, key], False) for key in range(16)]


def test_settings_and_weights_reach_the_server(
    server: FakeServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    server.answers |= {
        "/trb/enable": (200, {"answers": [[{"draft_length": 3}], [{"draft_length": 3}]]}),
        "/trb/counters": (200, {"answers": [[{"tokens": 1}, {"tokens": 1}], [{"tokens": 2}, {"tokens": 2}]]}),
        "/trb/digest": (200, {"answers": [[{"student": "a"}], [{"student": "b"}]]}),
        **{f"/trb/{name}": (200, {"answers": []}) for name in ("epsilon", "seed", "student", "transfer")},
    }
    engine = HTTPEngine(server.url + "/")
    assert engine.enable(width=9, stop=2) == {"draft_length": 3}
    assert engine.counters(clear=True) == [{"tokens": 1}, {"tokens": 2}]
    assert engine.digest() == [{"student": "a"}, {"student": "b"}]
    engine.set_epsilon(math.inf)
    engine.seed(4)
    engine.load_student("model")
    engine.transfer("start")
    assert server.asked[1:] == [
        ("/trb/handshake", None),  # before each change: nobody else may have made one
        ("/trb/enable", {"width": 9, "stop": 2}),
        ("/trb/counters", {"clear": True}),
        ("/trb/digest", {}),
        ("/trb/epsilon", {"epsilon": math.inf}),
        ("/trb/seed", {"seed": 4}),
        ("/trb/handshake", None),
        ("/trb/student", {"path": str(tmp_path / "model")}),
        ("/trb/handshake", None),
        ("/trb/transfer", {"step": "start"}),
    ]


def test_the_records_of_each_replica_come_apart_and_another_clients_are_left_out(server: FakeServer) -> None:
    server.answers["/v1/completions"] = completed
    engine = HTTPEngine(server.url)
    engine.generate([request(0)])
    first = server.of("/v1/completions")[0]["vllm_xargs"]["trb_key"]
    others = {"teacher_key": [], "teacher_index": [], "fault_key": [], "fault_index": []}
    records = [
        {"key": [first, 5, first + 2], "beta": [0.1, 0.2, 0.3], "teacher_log_prob": [1.0, 2.0, 3.0], **others},
        {
            "key": [first - 1, first + KEYS],
            "beta": [0.0, 0.0],
            "teacher_log_prob": [0.0, 0.0],
            "teacher_key": [first + 1, 7],
            "teacher_index": [4, 5],
            "fault_key": [first + 3, first + KEYS],
            "fault_index": [6, 7],
        },
    ]
    parts = [save({name: np.array(values) for name, values in record.items()}) for record in records]
    server.answers["/trb/records"] = (200, b"".join(parts), {"trb-lengths": ",".join(str(len(part)) for part in parts)})
    found = [{name: array.tolist() for name, array in record.items()} for record in engine.take_records()]
    assert found == [
        {"key": [0, 2], "beta": [0.1, 0.3], "teacher_log_prob": [1.0, 3.0], **others},
        {
            "key": [],
            "beta": [],
            "teacher_log_prob": [],
            "teacher_key": [1],
            "teacher_index": [4],
            "fault_key": [3],
            "fault_index": [6],
        },
    ]


def test_a_server_that_was_changed_by_others_is_not_drawn_from(server: FakeServer) -> None:
    def answer(state: str) -> tuple[int, Any, dict[str, str]]:
        return 200, {**HANDSHAKE, "answers": [[{}], [{}]]}, {"trb-state": state}

    def becomes(state: str) -> None:
        server.answers |= {f"/trb/{name}": answer(state) for name in ("handshake", "counters")}

    becomes("a")
    engine = HTTPEngine(server.url)
    engine.counters()
    changes = {
        "enable": engine.enable,
        "student": lambda: engine.load_student("x"),
        "transfer": lambda: engine.transfer("init"),
    }
    for name, change in changes.items():  # this client's own
        server.answers[f"/trb/{name}"] = answer(name)
        change()
        becomes(name)
        engine.counters()
    server.answers["/trb/student"] = (500, {"error": "no space"}, {"trb-state": "failed"})
    with pytest.raises(EngineFailed, match="no space"):
        engine.load_student("x")
    becomes("failed")
    engine.counters()
    becomes("another's")
    engine.handshake()  # which tells of the server, and does not make its state this client's
    asked = len(server.asked)
    for call in (engine.counters, *changes.values()):
        with pytest.raises(
            EngineFailed, match="it has started again, or another client has changed its weights or settings"
        ):
            call()
    assert {path for path, _ in server.asked[asked:]} == {"/trb/counters", "/trb/handshake"}  # nothing was changed


def test_metrics_of_all_replicas_are_added(server: FakeServer) -> None:
    engine = HTTPEngine(server.url)
    lines = [
        "# HELP vllm:num_preemptions_total Preemptions",
        'vllm:num_preemptions_total{engine="0",model_name="m"} 3.0',
        'vllm:num_preemptions_total{engine="1",model_name="m"} 4.0',
        'vllm:num_preemptions_created{engine="0",model_name="m"} 1.7e+09',
        'vllm:num_requests_running{engine="0",model_name="m"} 2.0',
        'vllm:num_requests_waiting{engine="1",model_name="m"} 1.0',
        'vllm:num_requests_waiting_by_reason{engine="1",model_name="m",reason="capacity"} 1.0',
    ]
    server.answers["/metrics"] = (200, "\n".join(lines).encode())
    assert (engine.preemptions(), engine.running()) == (7, 3)
    server.answers["/metrics"] = (200, b"# no engine is measured")
    assert (engine.preemptions(), engine.running()) == (None, 0)


@pytest.mark.parametrize(
    ("answer", "line"),
    [
        ((404, b"<html>"), "is no TRB server, its /trb/handshake gave status 404: start one with trb vllm-serve"),
        ((200, b"<html>"), "is no TRB server, its /trb/handshake gave status 200"),
        ((200, {"model": "m"}), "is no TRB server"),
        ((200, {**HANDSHAKE, "trb": 0}), "must speak protocol 2 of trbext, got 0: use the same trbext on both sides"),
        ((401, {"error": "Unauthorized"}), "wants its --api-key: set VLLM_API_KEY"),
    ],
)
def test_what_is_no_server_of_ours_is_said_in_one_line(server: FakeServer, answer: Any, line: str) -> None:
    server.answers["/trb/handshake"] = answer
    with pytest.raises(UsageError) as error:
        HTTPEngine(server.url)
    assert str(error.value).startswith(f"the server at {server.url} ")
    assert line in str(error.value)
    assert "\n" not in str(error.value)


def test_a_server_that_is_not_there_is_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    with fake_server() as gone:
        url = gone.url
    with pytest.raises(UsageError, match=rf"no server answers at {url} .*: start one with trb vllm-serve"):
        HTTPEngine(url)
    looks = []
    real = HTTPEngine.handshake

    def handshake(engine: HTTPEngine) -> dict[str, Any]:
        looks.append(1)
        return real(engine) if len(looks) < 3 else HANDSHAKE

    monkeypatch.setattr(HTTPEngine, "handshake", handshake)
    monkeypatch.setattr(http_module, "POLL_SECONDS", 0.0)
    HTTPEngine(url, wait=60)
    assert len(looks) == 3


def test_a_server_behind_a_proxy_is_waited_for(server: FakeServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(http_module, "POLL_SECONDS", 0.0)
    answers = iter([(502, b"<html>"), (503, b""), (504, b""), (200, HANDSHAKE)])
    server.answers["/trb/handshake"] = lambda _: next(answers)
    HTTPEngine(server.url, wait=60)
    assert next(answers, None) is None
    server.answers["/trb/handshake"] = (503, b"")
    with pytest.raises(UsageError, match=r"no server answers at .* \(a proxy gives status 503\): start one with"):
        HTTPEngine(server.url)


def test_no_more_connections_are_opened_than_the_process_may_have(
    server: FakeServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    threads: list[int] = []

    def pool(number: int) -> ThreadPoolExecutor:
        threads.append(number)
        return ThreadPoolExecutor(number)

    monkeypatch.setattr("trbext.vllm.server.connection.ThreadPoolExecutor", pool)
    server.answers["/v1/completions"] = completed
    engine = HTTPEngine(server.url)
    for files in (6, 1024, resource.RLIM_INFINITY):
        monkeypatch.setattr(resource, "getrlimit", lambda which, files=files: (files, files))
        assert len(engine.generate([request(key) for key in range(16)])) == 16
    assert threads == [3, 8, 8]


@pytest.mark.parametrize(
    "url",
    ["localhost:8000", "ftp://a", "http://", "http://a:port", "http://[::1", "http://a..b:1", "http://a:1/\u00fc"],
)
def test_a_url_that_is_none_is_refused(url: str) -> None:
    with pytest.raises(UsageError, match="must be like http://localhost:8000, got"):
        HTTPEngine(url)


@pytest.mark.parametrize("url", ["http://user:hidden@a:1", "http://hidden@a:1", "http://a:1?key=hidden"])
def test_a_url_with_a_key_is_refused_and_not_printed(url: str) -> None:
    with pytest.raises(UsageError, match="must hold no key: set VLLM_API_KEY instead") as error:
        HTTPEngine(url)
    assert "hidden" not in str(error.value)


def test_a_refused_rollout_is_a_value_error_and_a_failed_engine_is_not(server: FakeServer) -> None:
    engine = HTTPEngine(server.url)
    server.answers["/v1/completions"] = (400, {"error": {"message": "top_p must be 1.0", "code": 400}})
    with pytest.raises(ValueError, match=r"answered a rollout with status 400: top_p must be 1\.0$"):
        engine.generate([request(key) for key in range(3)])
    server.answers["/v1/completions"] = (500, {"error": {"message": "EngineCore encountered\nan issue", "code": 500}})
    with pytest.raises(EngineFailed, match=r"answered a rollout with status 500: EngineCore encountered an issue$"):
        engine.generate([request(0)])
    server.answers["/v1/completions"] = lambda body: completed(body, "abort")
    with pytest.raises(EngineFailed, match="ended a rollout by 'abort'"):
        engine.generate([request(0)])
    server.answers["/v1/completions"] = lambda body: completed(body, "length", 2)
    with pytest.raises(EngineFailed, match="rollouts of up to 3 tokens, and ended one after 2: it has a limit"):
        engine.generate([request(0)])
    server.answers["/trb/student"] = (409, {"error": "requests are running in replica 1"})
    with pytest.raises(EngineFailed, match="answered /trb/student with status 409: requests are running in replica 1"):
        engine.load_student("/x")


def test_a_server_that_dies_ends_all_rollouts_and_no_request_is_sent_again(server: FakeServer) -> None:
    asked, dead = threading.Semaphore(0), threading.Event()

    def answer(body: dict[str, Any]) -> Any:
        asked.release()
        if key_of(body) == 5:
            for _ in range(8):
                asked.acquire()  # all eight are under way
            return BREAK
        dead.wait()  # the others would never be answered
        return completed(body)

    server.answers["/v1/completions"] = answer
    try:
        with pytest.raises(
            EngineFailed, match=rf"the server at {server.url} broke off while it answered /v1/completions"
        ):
            HTTPEngine(server.url).generate([request(key) for key in range(20)])
    finally:
        dead.set()
    keys = [key_of(body) for body in server.of("/v1/completions")]
    assert sorted(keys) == list(range(8))


def test_a_server_that_is_gone_later_is_said_to_have_ended() -> None:
    with fake_server() as server:
        engine = HTTPEngine(server.url)
    for call in (lambda: engine.generate([request(0)]), lambda: engine.counters(), lambda: engine.take_records()):
        with pytest.raises(EngineFailed, match=r"no server answers at .* it has ended since the last call"):
            call()


def test_the_key_of_the_server_is_sent(server: FakeServer, monkeypatch: pytest.MonkeyPatch) -> None:
    HTTPEngine(server.url)
    monkeypatch.setenv("VLLM_API_KEY", "from the environment")
    HTTPEngine(server.url)
    HTTPEngine(server.url, api_key="given")
    monkeypatch.setenv("VLLM_API_KEY", "of a file\n")
    HTTPEngine(server.url)
    sent = [headers.get("authorization") for headers in server.headers]
    assert sent == [None, "Bearer from the environment", "Bearer given", "Bearer of a file"]


@pytest.mark.parametrize("key", ["sec\nret", "s\u00e9cret", "sec\0ret"])
def test_a_key_that_no_header_holds_is_named_and_not_printed(key: str) -> None:
    for variable, connect in (
        ("VLLM_API_KEY", lambda: HTTPEngine("http://localhost:1", api_key=key)),
        ("TRB_TEACHER_API_KEY", lambda: HTTPSession("http://localhost:1", api_key=key)),
    ):
        with pytest.raises(UsageError, match=f"{variable} must be a key of printable ASCII characters") as error:
            connect()
        assert "ret" not in str(error.value)
