"""Tests `trb eval --engine-url` with a server that this process is: what it asks, refuses, repeats and continues."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

from python_tests.evaluation.fake_completions import DEMO, fake_completions, ids_of
from python_tests.vllm.server.fake_server import BREAK, FakeServer, fake_server
from trbext.cli import main as trb
from trbext.evaluation import server_decoder
from trbext.evaluation.server_decoder import ServerDecoder, is_same_model
from trbext.evaluation.tasks import Completion, Task, tasks_of
from trbext.models.loading import load_tokenizer

ASKED = ["eval", "demo:student", "--prompts", "demo:eval", "--verifier", "demo", "--limit", "8", "--samples", "3"]


@pytest.fixture(autouse=True)
def pauses(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The seconds that a client waited, which a test does not."""
    waited: list[float] = []
    monkeypatch.setattr("trbext.teachers.remote.http_session.time.sleep", waited.append)
    return waited


def words(server: FakeServer, *more: str) -> list[str]:
    return [*ASKED, "--max-completion-length", "24", "--engine-url", server.url, *more]


def completions(path: Path) -> list[dict[str, Any]]:
    return [line for line in map(json.loads, path.read_text(encoding="utf-8").splitlines()) if "completion" in line]


@pytest.mark.parametrize("owner", ["vllm", "sglang"])
def test_every_completion_is_asked_with_its_own_seed_from_the_whole_softmax(owner: str, tmp_path: Path) -> None:
    output = tmp_path / "out.jsonl"
    with fake_completions(owner) as server:
        assert trb(words(server, "--output", str(output))) == 0
        bodies = server.of("/v1/completions") or [
            {**body["sampling_params"], "prompt": body["input_ids"]} for body in server.of("/generate")
        ]
    lines = completions(output)
    assert len(bodies) == len(lines) == 24
    seeds = {body.get("seed", body.get("sampling_seed")) for body in bodies}
    assert seeds == {line["seed"] for line in lines}
    assert len(seeds) == 24
    tokenizer = load_tokenizer(DEMO, "model")
    for line in lines:
        assert line["completion"] == tokenizer.decode(ids_of(line["seed"]), skip_special_tokens=True)
        assert line["tokens"] == len(ids_of(line["seed"]))
    for body in bodies:
        assert (body["temperature"], body["top_p"], body["min_p"], body["repetition_penalty"]) == (1.0, 1.0, 0.0, 1.0)
        assert body["top_k"] in (0, -1)
        assert body["stop_token_ids"] == [2]
        assert body.get("max_tokens", body.get("max_new_tokens")) == 24


def test_a_server_that_goes_away_leaves_what_it_had_answered_and_a_second_run_asks_for_the_rest(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "out.jsonl"
    with fake_completions() as server:
        plain, left = server.answers["/v1/completions"], [9]

        def some(body: Any) -> Any:
            left[0] -= 1
            return plain(body) if left[0] >= 0 else BREAK

        server.answers["/v1/completions"] = some
        assert trb(words(server, "--output", str(output), "--batch-size", "1")) == 1
        assert "run the same command again when the server is back: it continues" in capsys.readouterr().err
        before = completions(output)
        assert len(before) == 9
        server.answers["/v1/completions"] = plain
        asked = len(server.of("/v1/completions"))
        assert trb(words(server, "--output", str(output))) == 0
        assert len(server.of("/v1/completions")) - asked == 24 - 9
    after = completions(output)
    assert after[:9] == before
    assert len({(line["prompt"], line["sample"]) for line in after}) == len(after) == 24


def test_a_busy_server_is_asked_again_with_the_same_seed(pauses: list[float]) -> None:
    with fake_completions() as server:
        plain, refused = server.answers["/v1/completions"], iter([(503, {}), BREAK, (429, {}, {"Retry-After": "7"})])
        server.answers["/v1/completions"] = lambda body: next(refused, None) or plain(body)
        assert trb([*words(server), "--limit", "1", "--samples", "1"]) == 0
        assert len({body["seed"] for body in server.of("/v1/completions")}) == 1
        assert len(server.of("/v1/completions")) == 4
    assert pauses == [0.5, 1, 7]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"/v1/models": (200, {"data": [{"id": "other"}]})}, "must have the model .*student, got other"),
        ({"/tokenize": (200, {"tokens": [9, 9]})}, "has another tokenizer than the model"),
        ({"/tokenize": (404, {})}, "does not say how it tokenizes"),
        ({"/v1/models": (401, {"error": "no key"})}, "refuses the key: set TRB_ENGINE_API_KEY"),
        ({"/v1/models": (200, {"data": [{"id": DEMO, "max_model_len": 20}]})}, "takes 20 tokens, and a prompt and"),
    ],
)
def test_a_server_of_something_else_is_refused_by_name_before_a_file_is_made(
    change: dict[str, Any], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with fake_completions() as server:
        server.answers |= change
        assert trb(words(server, "--output", str(tmp_path / "out.jsonl"))) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert re.search(message, line), line
    assert not (tmp_path / "out.jsonl").exists()


def test_a_key_is_sent_and_written_nowhere(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv(server_decoder.KEY_VARIABLE, "secret-key")
    suite = tmp_path / "suite.yaml"
    suite.write_text("benchmarks: {a: {prompts: 'demo:eval', verifier: demo, samples: 2}}\nmax_completion_length: 9")
    with fake_completions() as server:
        given = ["--suite", str(suite), "--limit", "3", "--output", str(tmp_path / "out")]
        assert trb(["eval", "demo:student", "--engine-url", server.url, *given]) == 0
        assert all(headers["authorization"] == "Bearer secret-key" for headers in server.headers)
    printed = capsys.readouterr()
    written = [path.read_text() for path in (tmp_path / "out").rglob("*") if path.is_file()]
    assert len(written) == 5  # a record, two .json, a page and a plot
    assert not any("secret" in text for text in [*written, printed.out, printed.err])
    assert not any(server.url in text for text in written)


def test_what_a_server_answers_wrongly_ends_the_evaluation() -> None:
    tokenizer = load_tokenizer(DEMO, "model")
    (task,) = tasks_of("B", ["?"], [[5]], samples=1, seed=0, max_new_tokens=4)

    def drawn(server: FakeServer) -> list[Task]:
        decoder = ServerDecoder(server.url, model=DEMO, tokenizer=tokenizer, stop=[2], tries=1)
        written: list[Completion] = []
        return list(decoder.draw([task], lambda _: True, lambda _, completion: written.append(completion)))

    with fake_completions() as server:
        for answer, message in (
            ({"choices": []}, "in another form than OpenAICompletions has"),
            ({"choices": [{"text": "", "token_ids": [], "finish_reason": "abort"}]}, "ended a completion by 'abort'"),
            ({"choices": [{"text": "", "token_ids": [5] * 3, "finish_reason": "length"}]}, "up to 4 .* after 3: it"),
        ):
            server.answers["/v1/completions"] = (200, answer)
            with pytest.raises(server_decoder.EngineFailed, match=message):
                drawn(server)
        whole = {"choices": [{"text": "", "token_ids": [5] * 4, "finish_reason": "length"}]}
        server.answers["/v1/completions"] = (200, whole)
        assert drawn(server) == [task]


def test_options_of_engines_that_do_not_fit_are_refused(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    suite = tmp_path / "suite.yaml"
    suite.write_text("benchmarks: {a: {prompts: 'demo:eval', verifier: demo}}")
    assert trb(["eval", "a", "b", "--suite", str(suite), "--engine-url", "http://localhost:1"]) == 2
    assert "--engine-url is a server of one model, got a b" in capsys.readouterr().err
    with fake_server() as server:
        server.answers = {}
        assert trb(words(server)) == 2
    assert "refuses /v1/models" in capsys.readouterr().err


def test_a_folder_is_the_same_model_wherever_it_is_mounted(tmp_path: Path) -> None:
    (tmp_path / "run" / "checkpoint-5").mkdir(parents=True)
    folder = str(tmp_path / "run" / "checkpoint-5")
    assert is_same_model(folder, folder + "/")
    assert is_same_model(folder, "/mnt/run/checkpoint-5")
    assert not is_same_model(folder, "/mnt/other/checkpoint-5")
    assert is_same_model("Qwen/Qwen3-8B", "Qwen/Qwen3-8B")
    assert not is_same_model("Qwen/Qwen3-8B", "Qwen3-8B-Base")
