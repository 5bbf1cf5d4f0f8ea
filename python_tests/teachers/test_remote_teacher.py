"""A remote teacher's numbers are those of its model, and a server that is wrong, busy or gone is named."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import pytest
import torch

from python_tests.rollout.rollout_cases import tiny
from python_tests.teachers.fake_teacher import fake_teacher, law_of
from python_tests.vllm.server.fake_server import BREAK, FakeServer, fake_server
from trbext.errors import EngineFailed, UsageError
from trbext.teachers.remote.http_session import KEY_VARIABLE, HTTPSession
from trbext.teachers.remote.teacher import RemoteTeacher
from trbext.teachers.remote.top_log_probs import aligned_top
from trbext.training.teachers.top_k import require_token_scores
from trbext.vocab import Alignment, VocabularyMismatch

PREFIXES = [[3, 4], [5], [6, 7, 8, 9], [3]]
ALIGNMENT = Alignment(9, (2,), (4, 2))  # of a teacher with two end tokens, and two tokens that the student lacks


class Bytes:
    """A tokenizer of the fake server's kind."""

    all_special_ids = (0,)

    def __init__(self, vocabulary: int) -> None:
        self.vocabulary = vocabulary

    def __len__(self) -> int:
        return self.vocabulary

    def decode(self, ids: list[int]) -> str:
        return "".join(chr(ord("a") + token) for token in ids)

    def __call__(self, text: str, **_: Any) -> dict[str, list[int]]:
        return {"input_ids": [byte % self.vocabulary for byte in text.encode()]}


@pytest.fixture(autouse=True)
def pauses(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The seconds that a client waited, which a test does not."""
    waited: list[float] = []
    monkeypatch.setattr("time.sleep", waited.append)
    return waited


@pytest.fixture(params=["vllm", "sglang"])
def server(request: pytest.FixtureRequest) -> Iterator[FakeServer]:
    with fake_teacher(tiny(vocab=11, seed=3), request.param) as found:
        yield found


def test_the_top_tokens_of_a_server_are_those_of_its_model_over_the_common_vocabulary(server: FakeServer) -> None:
    teacher = RemoteTeacher(server.url, top_k=11)
    ids, log_probs = teacher.next_tokens(PREFIXES, ALIGNMENT)
    model = tiny(vocab=11, seed=3)
    for row, prefix in enumerate(PREFIXES):
        with torch.no_grad():
            logits = model(torch.tensor([prefix]), use_cache=False).logits[0, -1]
        law = ALIGNMENT.canonical(logits).log_softmax(-1)
        found = torch.full_like(law, -torch.inf)
        known = ids[row] >= 0
        found[ids[row][known]] = log_probs[row][known].to(law.dtype)
        torch.testing.assert_close(found, law, atol=1e-6, rtol=0)
        assert ids[row].tolist().count(-1) == 12 - 8  # the merged end token and two unknown ones are not there
        assert (log_probs[row][known].diff() <= 0).all()


def test_few_tokens_keep_their_probabilities_and_order(server: FakeServer) -> None:
    whole = RemoteTeacher(server.url, top_k=11).next_tokens(PREFIXES, Alignment(11, (2,), ()))
    few = RemoteTeacher(server.url, top_k=3).next_tokens(PREFIXES, Alignment(11, (2,), ()))
    assert torch.equal(few.ids[:, :3], whole.ids[:, :3])
    assert torch.equal(few.log_probs[:, :3], whole.log_probs[:, :3])
    assert (few.ids[:, 3:] == -1).all()


def test_whole_sequences_are_scored_as_their_prefixes_are(server: FakeServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("trbext.teachers.remote.teacher.SEQUENCES_PER_REQUEST", 2)
    teacher = RemoteTeacher(server.url, top_k=4)
    sequences, starts = [[3, 4, 5, 6, 7], [5, 8, 8], [6, 7, 8, 9]], [2, 1, 3]
    scored = teacher.score(sequences, starts, ALIGNMENT)
    prefixes = [s[:place] for s, start in zip(sequences, starts, strict=True) for place in range(start, len(s))]
    expected = teacher.next_tokens(prefixes, ALIGNMENT)
    assert torch.equal(scored.ids, expected.ids)
    torch.testing.assert_close(scored.log_probs, expected.log_probs)
    path = "/generate" if "/generate" in server.answers else "/v1/completions"
    server.answers[path] = (200, {"choices": [{"index": 0, "prompt_logprobs": [None]}]})
    with pytest.raises(EngineFailed, match=f"answered {path} in another form"):
        teacher.score([[3, 4]], [1], ALIGNMENT)


def test_given_tokens_are_scored_over_the_vocabulary_of_the_teacher(server: FakeServer) -> None:
    teacher = RemoteTeacher(server.url, top_k=2)
    # 2 is the end token, which has a second id; a token may be asked for twice.
    ids = torch.tensor([[3, 2, 0, 3], [1, 5, 2, 2], [7, 6, 0, 1], [2, 1, 8, 0]])
    found = teacher.log_probs_of(PREFIXES, ids, ALIGNMENT)
    model = tiny(vocab=11, seed=3)
    for row, prefix in enumerate(PREFIXES):
        law = law_of(model, prefix).double().exp()
        merged = [law[[token, *(ALIGNMENT.duplicates if token == 2 else ())]].sum() for token in ids[row].tolist()]
        torch.testing.assert_close(found[row].double(), torch.stack(merged).log(), atol=1e-6, rtol=0)


def test_a_server_that_does_not_score_given_tokens_is_refused(server: FakeServer) -> None:
    teacher = RemoteTeacher(server.url, top_k=2)
    assert require_token_scores(teacher, 3, ALIGNMENT) is teacher
    path = "/generate" if "/generate" in server.answers else "/v1/completions"
    serve = server.answers[path]
    unknown = ("logprob_token_ids", "token_ids_logprob")  # fields that an older server ignores
    server.answers[path] = lambda body: serve({name: value for name, value in body.items() if name not in unknown})
    with pytest.raises(UsageError, match="loss_tokens_of 'student' needs a server that scores given tokens"):
        require_token_scores(teacher, 3, ALIGNMENT)
    with pytest.raises(UsageError, match="needs a teacher with `log_probs_of`, got object"):
        require_token_scores(object(), 3, ALIGNMENT)  # type: ignore[arg-type]


def test_many_prefixes_travel_in_requests_of_many(server: FakeServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("trbext.teachers.remote.teacher.PREFIXES_PER_REQUEST", 3)
    teacher = RemoteTeacher(server.url, top_k=2)
    asked = len(server.asked)
    ids, _ = teacher.next_tokens(PREFIXES * 2, ALIGNMENT)
    assert len(server.asked) - asked == 3
    assert torch.equal(ids[:4], ids[4:])


def test_probabilities_of_unknown_tokens_are_spread_over_the_others() -> None:
    told = {0: math.log(0.4), 9: math.log(0.2), 4: math.log(0.1), 2: math.log(0.1)}
    ids, log_probs = aligned_top([told], ALIGNMENT, 4)
    assert ids.tolist() == [[0, 2, -1, -1]]
    assert log_probs[0, :2].exp().tolist() == pytest.approx([0.5, 0.25])  # of 0.8


@pytest.mark.parametrize("value", [math.nan, 0.1])
def test_numbers_that_are_no_log_probs_are_an_error(value: float) -> None:
    with pytest.raises(EngineFailed, match=f"gave {value} as the log-prob of token 3"):
        aligned_top([{3: value}], ALIGNMENT, 2)
    with pytest.raises(EngineFailed, match=r"gave probabilities that sum to 1\.4"):
        aligned_top([{3: math.log(0.7), 5: math.log(0.7)}], ALIGNMENT, 2)


def test_the_tokenizer_of_a_server_must_be_the_students(server: FakeServer) -> None:
    RemoteTeacher(server.url, top_k=2, tokenizer=Bytes(11))  # type: ignore[arg-type]
    with pytest.raises(VocabularyMismatch, match="has another tokenizer than the student"):
        RemoteTeacher(server.url, top_k=2, tokenizer=Bytes(10))  # type: ignore[arg-type]
    del server.answers["/tokenize"]
    with pytest.raises(UsageError, match="does not say how it tokenizes"):
        RemoteTeacher(server.url, top_k=2, tokenizer=Bytes(11))  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("changed", "options", "words"),
    [
        ({}, {"model": "other"}, "has no model 'other': it has tiny"),
        ({"/v1/models": (200, {"data": []})}, {}, "name the teacher's model: the server at .* has none"),
        ({"/v1/models": (404, {})}, {}, "refuses /v1/models: status 404"),
        ({"/v1/models": (401, {"error": "Unauthorized"})}, {}, f"refuses the key: set {KEY_VARIABLE}"),
        ({"/v1/models": (503, {"error": "loading"})}, {"tries": 2}, "no teacher is served at .* loading"),
        ({}, {"top_k": 21}, "logprobs of 21, which is greater than max: 20"),
        ({}, {"top_k": 0}, "at least 1, got 0"),
        ({}, {"timeout": 0}, "must be > 0, got 0"),
        ({}, {"tries": 0}, "tried at least once"),
    ],
)
def test_a_server_that_cannot_serve_is_refused(changed: dict[str, Any], options: dict[str, Any], words: str) -> None:
    with fake_teacher(tiny(vocab=11)) as server:
        server.answers |= changed
        with pytest.raises(UsageError, match=words):
            RemoteTeacher(server.url, **options)


@pytest.mark.parametrize(
    "url", ["localhost:8000", "ftp://host", "http://", "http://host:port", "", "http://[bad", 8000]
)
def test_a_url_must_be_one(url: Any) -> None:
    with pytest.raises(UsageError, match="the URL of a teacher must be like"):
        HTTPSession(url)


def test_a_prefix_longer_than_the_server_takes_is_refused(server: FakeServer) -> None:
    teacher = RemoteTeacher(server.url, top_k=2)
    with pytest.raises(UsageError, match="takes 64 tokens, and a prefix has 64"):
        teacher.next_tokens([[3] * 64], ALIGNMENT)


def test_a_busy_server_is_asked_again_and_a_lost_one_ends_the_run(server: FakeServer) -> None:
    teacher = RemoteTeacher(server.url, top_k=2, tries=3)
    path = "/generate" if "/generate" in server.answers else "/v1/completions"
    plain, replies = server.answers[path], iter([(503, {"error": "busy"}), BREAK])
    server.answers[path] = lambda body: next(replies, None) or plain(body)
    assert teacher.next_tokens(PREFIXES, ALIGNMENT).ids.shape == (4, 3)  # after an answer that broke off, too
    server.answers[path] = (502, {"error": {"message": "bad gateway"}})
    with pytest.raises(EngineFailed, match="failed in 3 tries: bad gateway"):
        teacher.next_tokens(PREFIXES, ALIGNMENT)
    server.answers[path] = (200, {"choices": []} if path == "/v1/completions" else [])
    with pytest.raises(EngineFailed, match="answered with 0 of 4 distributions"):
        teacher.next_tokens(PREFIXES, ALIGNMENT)
    server.answers[path] = (200, {"strange": 1})
    with pytest.raises(EngineFailed, match=f"answered {path} in another form"):
        teacher.next_tokens(PREFIXES, ALIGNMENT)


def test_pauses_double_up_to_a_minute_or_are_what_the_server_asks_for(pauses: list[float]) -> None:
    with fake_server() as server:
        server.answers["/v1/models"] = (503, {})
        with pytest.raises(UsageError):
            RemoteTeacher(server.url, tries=10)
        assert pauses == [0.5, 1, 2, 4, 8, 16, 32, 60, 60]
        server.answers["/v1/models"] = (429, {}, {"Retry-After": "7"})
        with pytest.raises(UsageError):
            RemoteTeacher(server.url, tries=3)
        assert pauses[9:] == [7, 7]


def test_nothing_answers_any_more() -> None:
    with fake_teacher(tiny(vocab=11)) as server:
        teacher = RemoteTeacher(server.url, top_k=2, tries=2)
    with pytest.raises(EngineFailed, match=r"gave no answer in 2 tries .*continues from its last checkpoint"):
        teacher.next_tokens(PREFIXES, ALIGNMENT)


def test_a_key_is_sent_and_shown_nowhere(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(KEY_VARIABLE, "secret-key\n")  # as that of a file ends
    with fake_teacher(tiny(vocab=11)) as server:
        teacher = RemoteTeacher(server.url, top_k=2, tries=1)
        assert all(headers["authorization"] == "Bearer secret-key" for headers in server.headers)
        assert "secret" not in repr(teacher) + repr(teacher._session)
    with pytest.raises(EngineFailed) as caught:
        teacher.next_tokens(PREFIXES, ALIGNMENT)
    assert "secret" not in str(caught.value)
    assert caught.value.__cause__ is None
    with pytest.raises(UsageError, match="must hold no key") as refused:
        HTTPSession("http://user:hidden@host")
    assert "hidden" not in str(refused.value)


def test_a_redirect_takes_no_key_elsewhere() -> None:
    with fake_server() as other, fake_server() as server:
        server.answers["/v1/models"] = (302, b"", {"Location": other.url + "/v1/models"})
        with pytest.raises((UsageError, EngineFailed)):
            RemoteTeacher(server.url, api_key="secret-key", tries=1)
        assert other.asked == []
