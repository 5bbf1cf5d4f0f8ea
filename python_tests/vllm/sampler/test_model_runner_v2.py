"""The adapter of Model Runner V2 on an imitation of the runner: every kind of request, records, and no wait for it."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from scipy import stats
from torch import Tensor

from python_tests.rollout.host_reads import HostReads
from python_tests.vllm.sampler.fake_runner_v2 import FakeRunner, Request, install_vllm, parameters
from trbext import reference
from trbext.vllm.requests import NO_KEY
from trbext.vllm.sampler.hook import Settings
from trbext.vllm.sampler.model_runner_v2 import HookV2, TRBRejectionSampler, TRBSampler, is_wanted
from trbext.vllm.sampler.vocabulary import Vocabulary

K = 3


@pytest.fixture(autouse=True)
def _vllm(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    install_vllm(monkeypatch, tmp_path)


def hooked(settings: Settings | None = None, **sizes: Any) -> tuple[FakeRunner, HookV2]:
    runner = FakeRunner(**sizes)
    return runner, HookV2(runner, settings or Settings(Vocabulary(0), epsilon=0.3, seed=3))


def logits_of(runner: FakeRunner, batch: Any, seed: int = 5) -> Tensor:
    """The teacher's, with the student's at the slots of the batch."""
    generator = torch.Generator().manual_seed(seed)
    student = runner.speculator.draft_logits
    drawn = 2 * torch.randn(len(batch.idx_mapping), *student.shape[1:], generator=generator)
    student[batch.idx_mapping] = drawn.to(student.dtype)
    return (2 * torch.randn(len(batch.logits_indices), runner.width, generator=generator)).to(runner.dtype)


def every_kind(runner: FakeRunner) -> tuple[Any, list[Request]]:
    """A batch with a request of each kind, after all of them were added."""
    requests = [
        Request(9, written=3, drafts=[21, 22]),
        Request(3, written=2),  # has lost its drafts
        Request(12, written=0, reads=4),  # has been read
        Request(0, written=5, drafts=[31, 32, 33]),
        Request(7, written=0, reads=2),  # a prompt in pieces
        Request(5, written=0, reads=1, read=3, drafts=[0, 0, 0]),  # has been read, with placeholders
        Request(15, written=6, reads=10),  # read again after a preemption
    ]
    for one in requests:
        runner.add(one.slot, parameters(one.slot + 20, key=100 + one.slot, temperature=0.7))
    return runner.batch(requests), requests


def test_every_kind_of_request_gets_its_tokens() -> None:
    runner, hook = hooked()
    batch, _ = every_kind(runner)
    output = runner.step(logits_of(runner, batch), batch)
    tokens, count = output.sampled_token_ids, output.num_sampled.tolist()
    assert tokens.shape == (7, K + 1)
    assert tokens.dtype == torch.int64
    assert 1 <= count[0] <= 2
    assert 1 <= count[3] <= 3
    assert [count[one] for one in (1, 2, 4, 5, 6)] == [1, 1, 0, 1, 1]
    assert (tokens[:, 0] >= 0).all()
    assert tokens[2, 0] == 32  # the tokens that they held out
    assert tokens[5, 0] == 25
    logits = batch.cu_num_logits.diff()
    assert torch.equal(output.num_rejected, (logits - output.num_sampled).masked_fill(output.num_sampled == 0, 0))
    assert output.logprobs_tensors is output.num_nans is output.sampling_mask_tensors is None
    counted = hook.counters.read()
    assert (counted["held_out"], counted["teacher_tokens"], counted["row_passes"]) == (2, 2, 2)
    assert counted["tokens"] == count[0] + count[3]
    assert counted["faults"] == 0
    assert 0 < counted["kl_max"] <= 0.3 * (1 + 1e-4)


def test_records_are_those_of_the_reference_by_rollout_and_place() -> None:
    runner, hook = hooked()
    batch, requests = every_kind(runner)
    logits = logits_of(runner, batch)
    output = runner.step(logits, batch)
    records = hook.records.take()
    assert records["teacher_key"].tolist() == [103, 115]
    assert records["teacher_index"].tolist() == [2, 6]  # what they had written
    assert records["fault_key"].tolist() == []
    expected = []
    for row in (0, 3):
        one = requests[row]
        for place in range(int(output.num_sampled[row])):
            student = runner.speculator.draft_logits[one.slot, place][None]
            teacher = logits[batch.cu_num_logits[row] + place][None]
            token = int(output.sampled_token_ids[row, place])
            blend = reference.blend(student, teacher, 0.3, temperature=0.7)
            log_probs = [(part.double() / 0.7).log_softmax(-1)[0, token] for part in (student, teacher)]
            expected.append((100 + one.slot, one.written + place, token, *log_probs, blend.log_probs[0, token]))
    names = ("key", "index", "token", "student_log_prob", "teacher_log_prob", "log_prob")
    found = torch.tensor([records[name].tolist() for name in names], dtype=torch.float64).T
    torch.testing.assert_close(found, torch.tensor(expected, dtype=torch.float64), rtol=1e-4, atol=1e-4)


def test_a_step_without_drafts_takes_the_same_way() -> None:
    runner, hook = hooked()
    requests = [Request(2, written=0, reads=4), Request(1, written=4), Request(8, written=0, reads=1)]
    for one in requests:
        runner.add(one.slot, parameters(one.slot + 20, key=one.slot))
    batch = runner.batch(requests)
    output = runner.step(logits_of(runner, batch), batch)
    assert output.sampled_token_ids.shape == (3, 1)
    assert output.sampled_token_ids[0, 0] == 22
    assert output.num_sampled.tolist() == [1, 1, 0]
    assert output.num_rejected.tolist() == [0, 0, 0]
    assert hook.records.take()["teacher_key"].tolist() == [1]


def test_tokens_of_requests_that_lost_their_drafts_are_the_teachers() -> None:
    """Their law is the teacher's at the temperature of the request, over the common vocabulary."""
    settings = Settings(Vocabulary(36, stop=2, merged=(3,)), epsilon=0.1, seed=1)
    runner, _ = hooked(settings, slots=4000, draft_length=1, student_width=36)
    for slot in range(4000):
        runner.sampler.add_request(slot, parameters(1, temperature=0.5 if slot % 2 else 1.5))
    runner.sampler.apply_staged_writes()
    read_again = {"written": 2, "reads": 1, "read": 5, "drafts": [0]}  # with a placeholder
    batch = runner.batch(
        [Request(slot, **(read_again if slot % 3 else {"written": 2})) for slot in range(3999, -1, -1)]
    )
    row = 2 * torch.randn(40, generator=torch.Generator().manual_seed(2))
    logits = row.repeat(len(batch.logits_indices), 1)
    logits[batch.expanded_local_pos > 0] = torch.nan
    tokens = runner.step(logits, batch).sampled_token_ids[:, 0]
    for place, temperature in ((0, 0.5), (1, 1.5)):
        law = (row[:36].double() / temperature).softmax(-1)
        law[2] += law[3]
        law[3] = 0
        counts = torch.bincount(tokens[place::2], minlength=36)
        assert counts[law == 0].sum() == 0
        assert stats.chisquare(counts[law > 0], 2000 * law[law > 0]).pvalue > 1e-3


def test_no_step_waits_for_the_device(monkeypatch: pytest.MonkeyPatch) -> None:
    for top_k in (0, 4):
        runner, _ = hooked(Settings(Vocabulary(38, 2, (3,)), epsilon=0.3, top_k=top_k), student_width=38)
        batch, _ = every_kind(runner)
        logits = logits_of(runner, batch)
        with monkeypatch.context() as patch, HostReads(patch) as reads:
            runner.step(logits, batch)
            runner.sampler.add_request(1, parameters(4))
            runner.sampler.apply_staged_writes()
            runner.speculator.compute_draft_logits(torch.zeros(2, 38), 0)
        assert reads.count == 0
        with monkeypatch.context() as patch, HostReads(patch) as reads:
            assert (logits > 0).any()
        assert reads.count > 0  # it would be seen


def test_logits_at_fault_cost_their_own_request_only() -> None:
    outputs = []
    for spoil in (False, True):
        runner, hook = hooked()
        batch, requests = every_kind(runner)
        logits = logits_of(runner, batch)
        if spoil:
            logits[batch.cu_num_logits[3]] = torch.nan
        outputs.append(runner.step(logits, batch))
    sound, spoilt = outputs
    others = [0, 1, 2, 4, 5, 6]
    assert torch.equal(sound.sampled_token_ids[others], spoilt.sampled_token_ids[others])
    assert torch.equal(sound.num_sampled[others], spoilt.num_sampled[others])
    assert spoilt.num_sampled[3] == 1
    assert spoilt.sampled_token_ids[3, 0] == 0
    records = hook.records.take()
    assert (records["fault_key"].tolist(), records["fault_index"].tolist()) == ([100], [requests[3].written])
    assert hook.counters.read()["faults"] == 1


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_each_request_has_its_own_budget(dtype: torch.dtype) -> None:
    runner, hook = hooked(dtype=dtype)
    epsilons = [0.0, 0.02, None, torch.inf]
    for slot, epsilon in enumerate(epsilons):
        runner.add(slot, parameters(1, key=slot, epsilon=epsilon))
    hook.set_epsilon(0.1)
    batch = runner.batch([Request(slot, drafts=[4, 5, 6]) for slot in (3, 1, 0, 2)])
    logits = logits_of(runner, batch)
    runner.step(logits, batch)
    records = hook.records.take()
    for row, (slot, epsilon) in enumerate(((3, torch.inf), (1, 0.02), (0, 0.0), (2, 0.1))):
        first = (records["key"] == slot).argmax()
        expected = reference.blend(runner.speculator.draft_logits[slot, 0], logits[4 * row], epsilon).kl
        assert records["kl"][first] == pytest.approx(float(expected), rel=1e-3, abs=1e-6)


def test_both_models_draw_from_one_vocabulary() -> None:
    vocabulary = Vocabulary(36, stop=2, merged=(3, 4))
    runner, hook = hooked(Settings(vocabulary, epsilon=0.3), width=40, student_width=38, slots=8)
    runner.speculator.idx_mapping[:2] = torch.tensor([5, 1])
    runner.speculator.temperature[5] = 0.5
    raw = torch.randn(2, 38, generator=torch.Generator().manual_seed(0))
    drafted = runner.speculator.compute_draft_logits(raw, 0)
    assert torch.equal(drafted, vocabulary.canonical_(raw.clone(), torch.tensor([0.5, 1.0])))
    for slot in range(4):
        runner.add(slot, parameters(1, key=slot))
    batch = runner.batch([Request(slot, drafts=[5, 6, 7]) for slot in range(4)])
    logits = logits_of(runner, batch)
    vocabulary.canonical_(runner.speculator.draft_logits.flatten(0, 1), torch.ones(8 * K))  # as the drafts were drawn
    before = logits.clone()
    runner.step(logits, batch)
    assert torch.equal(logits, vocabulary.canonical_(before, torch.ones(len(before))))
    records = hook.records.take()
    assert set(records["token"].tolist()) <= {2, *range(5, 36)} | {0, 1}
    assert (records["log_prob"] > -torch.inf).all()


def test_slots_are_used_again_and_requests_without_a_key_are_not_recorded() -> None:
    runner, hook = hooked()
    runner.add(2, parameters(9, key=1, epsilon=0.5))
    runner.add(2, parameters(8))
    assert hook.slots.keys[2] == NO_KEY
    assert hook.slots.epsilon[2] == pytest.approx(0.3)
    batch = runner.batch([Request(2, drafts=[4])])
    runner.step(logits_of(runner, batch), batch)
    assert len(hook.records.take()["key"]) == 0
    assert hook.counters.read()["tokens"] == 1
    batch = runner.batch([Request(2, written=0, reads=4)])
    assert runner.step(logits_of(runner, batch), batch).sampled_token_ids.tolist() == [[8]]


def test_one_seed_gives_the_same_drafts_and_tokens() -> None:
    found = []
    for seed in (1, 1, 2):
        runner, hook = hooked()
        hook.reseed(seed)
        batch, _ = every_kind(runner)
        tokens = runner.step(logits_of(runner, batch), batch).sampled_token_ids
        found.append((runner.sampler.sampling_states.seeds.np.copy(), tokens))
    assert (found[0][0] == found[1][0]).all()
    assert torch.equal(found[0][1], found[1][1])
    assert (found[0][0] != found[2][0]).any()


def test_a_request_that_cannot_follow_mu_is_refused_by_name() -> None:
    runner, _ = hooked()
    for asked, name in ((parameters(1, top_p=0.9), "top_p"), (parameters(1, temperature=0.0), "temperature")):
        with pytest.raises(ValueError, match=name):
            runner.sampler.add_request(0, asked)
    with pytest.raises(ValueError, match="trb_held_out"):
        runner.sampler.add_request(0, SimpleNamespace(temperature=1.0, extra_args=None))


def test_drafts_that_are_no_draws_are_refused() -> None:
    runner, _ = hooked()
    batch = runner.batch([Request(0, drafts=[1])])
    logits = logits_of(runner, batch)
    with pytest.raises(RuntimeError, match="student's logits of its drafts, got none"):
        runner.rejection_sampler(logits, batch, None)
    with pytest.raises(RuntimeError, match="a grammar has cut"):
        runner.rejection_sampler(logits, batch, runner.speculator.draft_logits, torch.zeros(2, dtype=torch.bool))


@pytest.mark.parametrize(
    ("part", "value", "message"),
    [
        ("adaptive_verification", object(), "without adaptive draft verification"),
        ("batch_sharder", object(), "without batch-sharded sampling"),
        ("pcp_manager", object(), "without prefill context parallelism"),
        ("vllm_config", SimpleNamespace(watermark_config="key"), "without watermarking, got 'key'"),
        ("sampler", SimpleNamespace(return_sampling_mask=True), "without return_sampling_mask, got True"),
        ("speculator", None, "DraftModelSpeculator must have compute_draft_logits, got none"),
    ],
)
def test_an_engine_that_would_not_follow_mu_is_refused(part: str, value: Any, message: str) -> None:
    runner = FakeRunner()
    setattr(runner, part, value)
    with pytest.raises(RuntimeError, match=message):
        HookV2(runner, Settings(Vocabulary(0)))
    runner = FakeRunner()
    runner.speculator.draft_logits = None  # type: ignore[assignment]
    with pytest.raises(RuntimeError, match="got a speculator that keeps none"):
        HookV2(runner, Settings(Vocabulary(0)))


def test_the_samplers_are_the_stock_ones_in_everything_else_and_can_be_given_back() -> None:
    runner = FakeRunner()
    sampler, rejection_sampler = runner.sampler, runner.rejection_sampler
    hook = HookV2(runner, Settings(Vocabulary(0)))
    assert isinstance(runner.sampler, TRBSampler)
    assert isinstance(runner.rejection_sampler, TRBRejectionSampler)
    assert runner.sampler.sampling_states is sampler.sampling_states
    assert runner.rejection_sampler.enable_adaptive_verification is False
    with pytest.raises(AttributeError):
        _ = runner.sampler.nothing
    hook.remove()
    assert runner.sampler is sampler
    assert runner.rejection_sampler is rejection_sampler
    assert "compute_draft_logits" not in vars(runner.speculator)


def test_model_runner_v2_is_used_only_if_it_is_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("TRB_VLLM_RUNNER_V2", raising=False)
    assert not is_wanted(FakeRunner())
    monkeypatch.setenv("TRB_VLLM_RUNNER_V2", "1")
    assert is_wanted(FakeRunner())
    assert not is_wanted(type("V1", (), {"_sample": None})())
