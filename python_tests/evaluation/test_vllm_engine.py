"""Tests `trb eval --engine vllm` with vLLM: tokens and shares of our own decoder, weights that are loaded, kills."""

from __future__ import annotations

import importlib.util
import json
import os
import random
import signal
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from python_tests.evaluation.eval_process import await_, completions, drawn, eval_process, finished
from python_tests.evaluation.padded_heads import write_demo
from python_tests.vllm.server.process_tree import descendants, lives
from python_tests.vllm.server.server_process import ENVIRONMENT
from trbext.cli import main as trb
from trbext.data.prompts import load_prompts
from trbext.errors import UsageError
from trbext.evaluation.measure import Questions
from trbext.evaluation.own_decoder import OwnDecoder
from trbext.evaluation.server_decoder import ServerDecoder
from trbext.evaluation.tasks import Completion, Decoder, Task, tasks_of
from trbext.evaluation.verifiers import VERIFIERS
from trbext.models.loading import load_for_inference, load_tokenizer
from trbext.vllm.completions.command import SERVED
from trbext.vllm.completions.process import CompletionServer

pytestmark = [
    pytest.mark.vllm,
    pytest.mark.skipif(importlib.util.find_spec("vllm") is None, reason="needs vLLM"),
    pytest.mark.xdist_group("vllm_eval"),  # one engine for most of them
]

NOISES = (0.03, 0.04)  # of the two checkpoints, whose pass@1 are far from 0, from 1 and from each other
# The prompts of all requests do not fit into one step: the engine must not cut one.
FLAGS = ["--enforce-eager", "--max-num-seqs", "32", "--max-num-batched-tokens", "64"]
LONGEST = 32  # tokens of a completion
SUITE = """
max_completion_length: 32
benchmarks:
  sort: {prompts: "demo:eval", verifier: demo, samples: 8}
"""


class Pair:
    """Two checkpoints of the demonstration's teacher: as our decoder has them, and with heads that vLLM has."""

    def __init__(self, folder: Path) -> None:
        self.own = [write_demo("demo:teacher", folder / "own" / str(n), padded=False, noise=n) for n in NOISES]
        self.padded = [write_demo("demo:teacher", folder / str(n), padded=True, noise=n) for n in NOISES]
        self.tokenizer = load_tokenizer(str(self.own[0]), "model")
        questions = Questions(
            "sort", "demo:eval", load_prompts("demo:eval", limit=20), VERIFIERS["demo"], 2, LONGEST, 0, {}, {}
        )
        ids = questions.encoded(self.tokenizer, None)
        prompts = questions.prompts["prompt"]
        self.tasks = tasks_of("sort", prompts, ids, samples=2, seed=0, max_new_tokens=LONGEST)

    def decoded(self, decoder: Decoder, tasks: list[Task]) -> dict[Task, Completion]:
        found: dict[Task, Completion] = {}
        list(decoder.draw(tasks, lambda _: True, found.__setitem__))
        return found

    def by_own(self, which: int, temperature: float) -> dict[Task, Completion]:
        model = load_for_inference(str(self.own[which]), "model", "cpu")
        decoder = OwnDecoder(model, self.tokenizer, batch_size=16, temperature=temperature)
        return self.decoded(decoder, self.tasks)

    def by_engine(
        self, server: CompletionServer, temperature: float, tasks: list[Task], in_flight: int = 64
    ) -> dict[Task, Completion]:
        decoder = ServerDecoder(
            server.url,
            model=SERVED,
            tokenizer=self.tokenizer,
            stop=[2],
            in_flight=in_flight,
            api_key=server.key,
            gone=server.gone,
            temperature=temperature,
        )
        return self.decoded(decoder, tasks)


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> Pair:
    return Pair(tmp_path_factory.mktemp("models"))


@pytest.fixture(scope="module")
def server(pair: Pair) -> Iterator[CompletionServer]:
    """An engine that has the first checkpoint."""
    with pytest.MonkeyPatch.context() as patch:
        for name, value in ENVIRONMENT.items():
            patch.setenv(name, value)
        server = CompletionServer(str(pair.padded[0]), dtype="float32", longest=64, flags=FLAGS)
    yield server
    server.close()


def test_greedy_tokens_of_both_checkpoints_are_those_of_our_decoder(pair: Pair, server: CompletionServer) -> None:
    digests = []
    expected = [pair.by_own(which, temperature=1e-5) for which in (0, 1)]
    assert sum(expected[0][task] != expected[1][task] for task in pair.tasks) > 10  # of forty
    for which in (0, 1, 0):
        if digests:
            server.load(str(pair.padded[which]))
        assert pair.by_engine(server, 0.0, pair.tasks) == expected[which]
        digests.append(server.digest())
    assert digests[0] == digests[2] != digests[1]


def test_a_completion_depends_neither_on_the_others_nor_on_the_order(pair: Pair, server: CompletionServer) -> None:
    whole = pair.by_engine(server, 1.0, pair.tasks)
    assert len({completion.text for completion in whole.values()}) > 10
    some = pair.tasks[::-3]
    assert pair.by_engine(server, 1.0, some, in_flight=3) == {task: whole[task] for task in some}


def test_weights_that_do_not_fit_are_refused_by_name(pair: Pair, server: CompletionServer, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="must have"):
        server.load(str(tmp_path))
    with pytest.raises(Exception, match="trb_load failed"):
        server.load(str(pair.own[0]))
    server.load(str(pair.padded[0]))


def words_of(pair: Pair, folder: Path) -> list[str]:
    suite = folder / "suite.yaml"
    suite.write_text(SUITE, encoding="utf-8")
    given = ["--suite", str(suite), "--limit", "40", "--output", str(folder / "out")]
    return [*map(str, pair.padded), *given, "--engine", "vllm", "--batch-size", "8", "--", *FLAGS]


def records(pair: Pair, folder: Path) -> list[Path]:
    names = [str(model).strip("/").replace("/", "--") for model in pair.padded]
    return [folder / "out" / name / "sort.jsonl" for name in names]


ALL = [(prompt, sample) for prompt in range(40) for sample in range(8)]


def assert_continued(before: list[list[tuple[int, int]]], after: list[list[tuple[int, int]]]) -> None:
    """Checks that nothing came twice, and that nothing went."""
    for old, new in zip(before, after, strict=True):
        assert new[: len(old)] == old
        assert len(set(new)) == len(new)


@pytest.mark.nightly
def test_a_suite_whose_client_and_server_are_killed_has_the_shares_of_our_decoder(pair: Pair, tmp_path: Path) -> None:
    words, log, paths = words_of(pair, tmp_path), tmp_path / "log", records(pair, tmp_path)
    before: list[list[tuple[int, int]]] = [[], []]
    for which, path in zip(("client", "server"), paths, strict=True):
        with eval_process(words, ENVIRONMENT, log) as client:
            drawn(client, [path], len(completions(path)) + 8, log)
            started = descendants(client.pid)
            assert len(started) >= 3  # end_with_client.py, the API server, and its engine
            os.kill(client.pid if which == "client" else started[1], signal.SIGKILL)
            code = -signal.SIGKILL if which == "client" else 1
            assert client.wait() == code, log.read_text(encoding="utf-8")[-3000:]
        await_(lambda pids=started: not any(map(lives, pids)), "processes of the engine live on")
        after = [completions(each) for each in paths]
        assert_continued(before, after)
        before = after
    assert sum(map(len, before)) < 2 * len(ALL)
    finished(words, ENVIRONMENT, log)
    after = [completions(each) for each in paths]
    assert_continued(before, after)
    assert [sorted(each) for each in after] == [ALL, ALL]
    # The same suite by our own decoder.
    own = tmp_path / "own"
    given = ["--suite", str(tmp_path / "suite.yaml"), "--limit", "40", "--output", str(own)]
    assert trb(["eval", *map(str, pair.own), *given]) == 0
    shares = []
    for folder, models in ((tmp_path / "out", pair.padded), (own, pair.own)):
        results: dict[str, Any] = json.loads((folder / "results.json").read_text(encoding="utf-8"))
        shares.append([results["checkpoints"][str(model)]["mean"] for model in models])
    for engine, ours in zip(*shares, strict=True):
        assert engine["low"] <= ours["value"] <= engine["high"]
        assert ours["low"] <= engine["value"] <= ours["high"]
    assert shares[0][0]["low"] > shares[0][1]["high"]  # the checkpoints differ, so a stale one would be seen
    weights = [
        found["weights"]
        for found in json.loads((tmp_path / "out" / "results.json").read_text())["checkpoints"].values()
    ]
    assert len(set(weights)) == 2
    assert all(weight[:12] in (tmp_path / "out" / "index.html").read_text(encoding="utf-8") for weight in weights)


@pytest.mark.nightly
def test_twenty_random_kills_lose_nothing_and_draw_nothing_twice(pair: Pair, tmp_path: Path) -> None:
    words, log, paths = words_of(pair, tmp_path), tmp_path / "log", records(pair, tmp_path)
    words[words.index("--batch-size") + 1] = "2"
    rng = random.Random(0)
    before: list[list[tuple[int, int]]] = [[], []]
    for kill in range(20):
        with eval_process(words, ENVIRONMENT, log) as client:
            if kill % 2:  # while it draws, or at any time: while it starts, too
                missing = 2 * len(ALL) - sum(map(len, before))
                drawn(client, paths, sum(map(len, before)) + min(missing - 1, rng.randrange(1, 20)), log)
            else:
                time.sleep(rng.uniform(0, 40))
            started = descendants(client.pid)
            with suppress(ProcessLookupError):
                # Not end_with_client.py before its client, which would otherwise have ended the rest.
                os.kill(rng.choice([client.pid, *started[0 if kill % 3 else 1 :]]), signal.SIGKILL)
            if kill % 3:
                client.wait()  # it ends by itself: killed, or because its server was
        await_(lambda pids=started: not any(map(lives, pids)), "processes of the engine live on")
        after = [completions(each) for each in paths]
        assert_continued(before, after)
        before = after
    finished(words, ENVIRONMENT, log)
    after = [completions(each) for each in paths]
    assert_continued(before, after)
    assert [sorted(each) for each in after] == [ALL, ALL]
