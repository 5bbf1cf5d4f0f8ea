"""Runs whose teacher is on a server learn as with the teacher in the process, and lose nothing when the server goes."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
import torch

from python_tests.models.tiny_models import END_OF_TURN, EOS, prompts, tiny_llama, tiny_tokenizer
from python_tests.runs.run_files import repeatable, same_weights, tiny_run, trb, written
from python_tests.teachers.fake_teacher import fake_teacher
from python_tests.training.trainer_cases import make_trainer, steps, weights, without_timings
from python_tests.vllm.server.fake_server import FakeServer
from trbext import RemoteTeacher, TopK, TRBConfig
from trbext.errors import EngineFailed
from trbext.runs.folder import RunFolder
from trbext.training.teachers.top_divergence import reverse_kl_of_top
from trbext.training.teachers.top_k import told_at_prefixes, told_of_tokens
from trbext.vllm.sampler.teacher_top import TeacherTop
from trbext.vocab import Alignment

WHOLE = {"loss_estimator": "top_k", "loss_top_k": 64}  # of 64 tokens: the loss over all of them


@pytest.mark.parametrize(
    ("owner", "fields"),
    [
        ("vllm", {}),
        ("sglang", {"gradient_accumulation_steps": 2, "rollout_batch_size": 3, "rollout_policy": "teacher"}),
        ("vllm", {"rollout_policy": "sft", "sft_steps": 2}),
    ],
)
def test_a_server_that_tells_all_tokens_trains_as_the_teacher_itself(
    tmp_path: Path, owner: str, fields: dict[str, Any]
) -> None:
    teacher = tiny_llama(1, hidden=32, eos=[END_OF_TURN, EOS])
    shared: dict[str, Any] = {"max_steps": 4, "eval_strategy": "steps", "eval_steps": 2, "held_out": prompts(6)}
    local = make_trainer(tmp_path / "a", None, teacher, **shared | WHOLE | fields)
    local.train()
    with fake_teacher(teacher, owner, tokenizer=tiny_tokenizer(), most=64) as server:
        served = RemoteTeacher(
            server.url, top_k=64, tokenizer=tiny_tokenizer(), eos_token_ids=[END_OF_TURN, EOS], tries=1
        )
        remote = make_trainer(tmp_path / "b", None, served, **shared | WHOLE | fields)  # type: ignore[arg-type]
        remote.train()
    assert remote.teacher_model is None
    logs = [without_timings(trainer.state.log_history) for trainer in (remote, local)]
    for line, expected in zip(*logs, strict=True):
        untold = {name for name in expected if name.endswith("teacher_entropy")}
        assert line.keys() == expected.keys() - untold
        for name in line.keys() - {"compute/teacher_tokens", "compute/flops", "compute/passes"}:
            assert line[name] == pytest.approx(expected[name], rel=2e-3, abs=1e-4), name
    for name, weight in weights(local).items():
        torch.testing.assert_close(weights(remote)[name], weight, rtol=1e-2, atol=2e-3, msg=name)


@pytest.mark.parametrize("owner", ["vllm", "sglang"])
def test_the_loss_over_the_student_s_tokens_is_that_of_the_teacher_itself(tmp_path: Path, owner: str) -> None:
    teacher = tiny_llama(1, hidden=32, eos=[END_OF_TURN, EOS])
    shared: dict[str, Any] = WHOLE | {"max_steps": 3, "loss_top_k": 5, "trb_warmup_steps": 2}
    local = make_trainer(tmp_path / "a", None, teacher, **shared)
    local.train()
    with fake_teacher(teacher, owner, tokenizer=tiny_tokenizer(), most=64) as server:
        served = RemoteTeacher(server.url, top_k=64, eos_token_ids=[END_OF_TURN, EOS], tries=1)
        remote = make_trainer(tmp_path / "b", None, served, **shared, loss_tokens_of="student")  # type: ignore[arg-type]
        remote.train()
    for line, expected in zip(*(without_timings(one.state.log_history) for one in (remote, local)), strict=True):
        for name in line.keys() & {"loss", "trb/reverse_kl", "trb/kl", "trb/teacher_log_prob", "grad_norm"}:
            assert line[name] == pytest.approx(expected[name], rel=2e-3, abs=1e-4), name
    for name, weight in weights(local).items():
        torch.testing.assert_close(weights(remote)[name], weight, rtol=1e-2, atol=2e-3, msg=name)


def test_the_loss_is_over_what_was_told_and_the_rest_as_one() -> None:
    generator = torch.Generator().manual_seed(0)
    student = torch.randn(7, 9, generator=generator, requires_grad=True)
    ids = torch.tensor([3, 8, 0]).expand(7, 3).clone()
    ids[5:, 2] = -1  # a server may tell fewer
    log_prob = torch.randn(7, 9, generator=generator).log_softmax(-1).gather(1, ids.clamp(min=0))
    log_prob = log_prob.masked_fill(ids < 0, -torch.inf)
    rest = (1 - log_prob.exp().sum(1)).log()
    found = reverse_kl_of_top(student, TeacherTop(ids, log_prob, rest))
    p = student.double().softmax(-1)
    for row in range(7):
        told = ids[row][ids[row] >= 0]
        mine = torch.cat([p[row, told], (1 - p[row, told].sum())[None]])
        theirs = torch.cat([log_prob[row, : len(told)], rest[row : row + 1]]).double()
        assert float(found[row]) == pytest.approx(float((mine * (mine.log() - theirs)).sum()), abs=1e-5)
    found.sum().backward()
    assert student.grad is not None
    assert student.grad.isfinite().all()


def test_completions_without_what_was_told_are_scored_as_a_whole() -> None:
    class Recorder:
        def next_tokens(self, *_: Any) -> TopK:
            raise AssertionError("a whole completion is scored at once")

        def score(self, sequences: Any, starts: Any, alignment: Alignment) -> TopK:
            assert sequences == [[5, 6, 7, 8, 9], [4, 3]]
            assert starts == [2, 1]
            return TopK(torch.tensor([[1, 2], [3, -1], [4, 5], [6, 7]]), torch.tensor([[-1.0, -2.0]] * 4))

    batch = {
        "prompt_ids": torch.tensor([[5, 6], [0, 4]]),
        "prompt_mask": torch.tensor([[1, 1], [0, 1]]),
        "completion_ids": torch.tensor([[7, 8, 9], [3, 0, 0]]),
        "completion_mask": torch.tensor([[1, 1, 1], [1, 0, 0]]),
    }
    found = told_at_prefixes(Recorder(), [], batch, Alignment(16, (1,), ()))
    assert found["top_ids"].tolist() == [[[1, 2], [3, -1], [4, 5]], [[6, 7], [-1, -1], [-1, -1]]]
    assert found["top_log_prob"][0, 1].tolist() == [-1.0, -torch.inf]
    rest, alone = (math.log(1 - sum(map(math.exp, told))) for told in ([-1.0, -2.0], [-1.0]))
    assert found["rest_log_prob"][0].tolist() == pytest.approx([rest, alone, rest])
    assert found["rest_log_prob"][1].tolist() == pytest.approx([rest, 0, 0])


def test_one_row_for_a_completion_of_three_tokens_is_refused() -> None:
    class Once:
        def score(self, *_: Any) -> TopK:
            return TopK(torch.tensor([[1, 2]]), torch.tensor([[-1.0, -2.0]]))

    ids, ones, teacher = torch.tensor([[5, 6, 7]]), torch.ones(1, 3, dtype=torch.int64), cast(Any, Once())
    batch = {"prompt_ids": ids, "prompt_mask": ones, "completion_ids": ids, "completion_mask": ones}
    with pytest.raises(ValueError, match=r"the teacher Once must return .* \[3, k\], got torch.int64 \[1, 2\]"):
        told_at_prefixes(teacher, [], batch, Alignment(16, (1,), ()))


class Counting:
    """A top-k teacher that counts the tokens that it is asked about."""

    vocab_size, eos_token_ids = 64, (EOS,)

    def __init__(self) -> None:
        self.model, self.asked = tiny_llama(1), 0

    def log_probs(self, ids: Sequence[int]) -> torch.Tensor:
        with torch.no_grad():
            return self.model(torch.tensor([list(ids)])).logits[0].log_softmax(-1)

    def next_tokens(self, prefixes: Any, alignment: Alignment) -> TopK:
        raise AssertionError("the student writes by itself")

    def score(self, sequences: Any, starts: Any, alignment: Alignment) -> TopK:
        rows = torch.cat([self.log_probs(ids)[at - 1 : -1] for ids, at in zip(sequences, starts, strict=True)])
        self.asked += len(rows)
        top = rows.topk(64)
        return TopK(top.indices, top.values)

    def log_probs_of(self, prefixes: Any, ids: torch.Tensor, alignment: Alignment) -> torch.Tensor:
        self.asked += len(prefixes)
        return torch.stack([self.log_probs(prefix)[-1] for prefix in prefixes]).gather(-1, ids)


@pytest.mark.parametrize("fields", [{"loss_top_k": 64}, {"loss_top_k": 5, "loss_tokens_of": "student"}], ids=str)
def test_a_loss_of_prefixes_asks_about_no_later_token(tmp_path: Path, fields: dict[str, Any]) -> None:
    teacher = Counting()
    fields = {"rollout_policy": "student", "loss_estimator": "top_k", "loss_prefix_tokens": 2, "max_steps": 1, **fields}
    trainer = make_trainer(tmp_path, teacher=teacher, **fields)  # type: ignore[arg-type]
    teacher.asked = 0
    trainer.train()
    (log,) = steps(trainer)
    assert log["completions/mean_length"] > 2
    assert 0 < teacher.asked <= 4 * 2


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda found: found[:, :1], r"a tensor \[1, 6\] in float32 or float64, got torch.float32 \[1, 1\]"),
        (lambda found: found[0, 0], r"got torch.float32 \[\]"),
        (lambda found: found.tolist(), "got list"),
        (lambda found: found.long(), "got torch.int64"),
        (lambda found: found.bfloat16(), r"in float32 or float64, got torch.bfloat16 \[1, 6\]"),
        (lambda found: found.half(), r"in float32 or float64, got torch.float16 \[1, 6\]"),
        (lambda found: found * torch.nan, r"add up to at most 1, got \[nan, .* in row 0"),
        (lambda found: found * 0, r"add up to at most 1, got \["),
        (lambda found: found + 3, r"add up to at most 1, got \["),
    ],
)
def test_an_answer_without_log_probs_of_the_tokens_is_refused(tmp_path: Path, change: Any, words: str) -> None:
    class Wrong(Counting):
        def log_probs_of(self, prefixes: Any, ids: torch.Tensor, alignment: Alignment) -> Any:
            return change(super().log_probs_of(prefixes, ids, alignment))

    fields: dict[str, Any] = {"loss_estimator": "top_k", "loss_top_k": 5, "loss_tokens_of": "student"}
    teacher: Any = Wrong()
    with pytest.raises(ValueError, match=f"the teacher Wrong must return log-probs.*{words}"):
        make_trainer(tmp_path, teacher=teacher, rollout_policy="student", **fields)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_an_answer_may_be_of_float64_and_tell_a_token_twice(dtype: torch.dtype) -> None:
    class Teacher:
        def log_probs_of(self, prefixes: Any, ids: torch.Tensor, alignment: Alignment) -> torch.Tensor:
            return torch.full(ids.shape, -0.5, dtype=dtype)

    ids, ones = torch.tensor([[5]]), torch.ones(1, 1, dtype=torch.int64)
    batch = {"prompt_ids": ids, "prompt_mask": ones, "completion_ids": ids, "completion_mask": ones}
    teacher, alignment = cast(Any, Teacher()), Alignment(16, (1,), ())
    found = told_of_tokens(teacher, batch, torch.tensor([[[5]]]), alignment)
    assert found["teacher_log_prob"].tolist() == [[-0.5]]
    with pytest.raises(ValueError, match=r"add up to at most 1, got \[-0.5, -0.5\] in row 0"):
        told_of_tokens(teacher, batch, torch.tensor([[[4]]]), alignment)


def test_a_teacher_may_tell_no_token(tmp_path: Path) -> None:
    class Nothing(Counting):
        def score(self, sequences: Any, starts: Any, alignment: Alignment) -> TopK:
            return TopK(*(part[:, :0] for part in super().score(sequences, starts, alignment)))

    teacher: Any = Nothing()
    trainer = make_trainer(
        tmp_path, teacher=teacher, rollout_policy="student", loss_estimator="top_k", loss_top_k=64, max_steps=1
    )
    trainer.train()
    (log,) = steps(trainer)
    assert log["trb/reverse_kl"] == pytest.approx(0, abs=1e-6)  # the teacher then is the student


def test_rollouts_of_one_batch_may_have_been_told_different_numbers_of_tokens() -> None:
    batch = {
        "prompt_ids": torch.tensor([[5], [4]]),
        "prompt_mask": torch.ones(2, 1, dtype=torch.int64),
        "completion_ids": torch.tensor([[7, 8], [3, 0]]),
        "completion_mask": torch.tensor([[1, 1], [1, 0]]),
    }
    one, two = torch.tensor([[[1], [2]]]), torch.tensor([[[3, 6]]])
    rollouts: Any = [SimpleNamespace(teacher_top_ids=ids, teacher_top_log_prob=-ids.float()) for ids in (one, two)]
    nobody: Any = None  # is asked
    found = told_at_prefixes(nobody, rollouts, batch, Alignment(16, (1,), ()))
    assert found["top_ids"].tolist() == [[[1, -1], [2, -1]], [[3, 6], [-1, -1]]]
    assert found["top_log_prob"].exp().sum(-1)[1, 1] == 0


def served_run(folder: Path, server: FakeServer) -> dict[str, Any]:
    settings = tiny_run(folder, teacher_url=server.url, teacher_top_k=8, max_steps=6, learning_rate=0.05)
    return {name: value for name, value in settings.items() if name != "teacher_model_name_or_path"}


def test_a_run_whose_server_goes_away_continues_to_the_same_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("time.sleep", lambda _: None)
    teacher = tiny_llama(2)
    folders = [tmp_path / name for name in ("whole", "cut")]
    for folder in folders:
        folder.mkdir()
    with fake_teacher(teacher, tokenizer=tiny_tokenizer()) as server:
        assert trb("train", written(folders[0] / "config.yaml", served_run(folders[0], server))) == 0
    with fake_teacher(teacher, tokenizer=tiny_tokenizer()) as server:
        settings = served_run(folders[1], server)
        plain = server.answers["/v1/completions"]

        def dies(body: Any) -> Any:  # in the first step after the warmup, whose completions are scored as a whole
            return (502, {"error": {"message": "upstream is gone"}}) if "prompt_logprobs" in body else plain(body)

        server.answers["/v1/completions"] = dies
        config = written(folders[1] / "config.yaml", settings)
        assert trb("train", config) == 1
    said = capsys.readouterr().err
    assert "upstream is gone" in said
    assert "Traceback" not in said
    run = RunFolder(folders[1] / "run")
    assert run.last_checkpoint() is not None
    assert not run.is_finished()
    with fake_teacher(teacher, tokenizer=tiny_tokenizer(), name="another") as server:
        assert trb("train", config, "--resume", "--teacher_url", server.url) == 2
    assert "other contents of the teacher" in capsys.readouterr().err
    with fake_teacher(teacher, tokenizer=tiny_tokenizer()) as server:  # at another address
        assert trb("train", config, "--resume", "--teacher_url", server.url) == 0
    whole = RunFolder(folders[0] / "run")
    assert same_weights(whole, run)
    assert repeatable(whole) == repeatable(run)
    assert "tiny" in (run.model / "README.md").read_text(encoding="utf-8")


def test_a_server_that_takes_too_few_tokens_is_refused_before_the_run(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with fake_teacher(tiny_llama(2), tokenizer=tiny_tokenizer()) as server:
        settings = served_run(tmp_path, server) | {"max_completion_length": 59}  # the student has 64 positions as well
        assert trb("train", written(tmp_path / "config.yaml", settings)) == 2
    assert "takes 64 tokens, and a prefix has" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"loss_estimator": "full"}, "trains by loss_estimator 'top_k', got loss_estimator='full'"),
        ({"loss_top_k": 16}, "over the teacher's teacher_top_k = 20 tokens, got loss_top_k = 16"),
        ({"temperature": 0.7}, r"gives log-probs at temperature 1 only, got temperature=0\.7"),
        ({"rollout_policy": "skd"}, "serves trb, student, fixed, sft, teacher, each"),
        ({"veto_start": 0.5}, "Veto's target needs the whole distribution"),
        ({"teachers": {"a": "b"}}, "teacher_url names one teacher, got teachers"),
        ({"teacher_model_name_or_path": "self"}, "is on no server"),
        ({"teacher_offload": "cpu"}, "with teacher_url it has none"),
        ({"teacher_top_k": 0}, "teacher_top_k must be a whole number of at least 1, got 0"),
        ({"teacher_url": None, "teacher_top_k": 5}, "teacher_top_k belongs to a teacher on a server"),
    ],
)
def test_what_does_not_fit_a_server_is_refused(tmp_path: Path, fields: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        TRBConfig(**{"output_dir": str(tmp_path), "use_cpu": True, "teacher_url": "http://localhost:1"} | fields)


def test_a_lost_server_is_an_error_of_its_own(tmp_path: Path) -> None:
    teacher = tiny_llama(2)
    with fake_teacher(teacher) as server:
        served = RemoteTeacher(server.url, top_k=4, tries=1)
        trainer = make_trainer(tmp_path, None, served, loss_estimator="top_k", loss_top_k=4)  # type: ignore[arg-type]
    before = weights(trainer)
    with pytest.raises(EngineFailed, match="continues from its last checkpoint"):
        trainer.train()
    assert steps(trainer) == []
    for name, weight in weights(trainer).items():
        assert torch.equal(weight, before[name])
