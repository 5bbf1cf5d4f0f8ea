"""Two processes (torchrun, gloo, CPU) train one student as one run."""

from __future__ import annotations

import itertools
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from trl.distributed import DistributedBackend

from python_tests.models.tiny_models import prompts
from python_tests.processes.two_processes import run_two_processes
from python_tests.training import distributed_run, streamed_run
from python_tests.training.distributed_run import ACCUMULATION, CHECKPOINT, HELD_OUT, PROMPTS_PER_PROCESS, STEPS
from python_tests.training.trainer_cases import repeatable
from trbext.training.sharding import check_can_unshard

Rank = dict[str, Any]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("two_processes")


@pytest.fixture(scope="module")
def ranks(folder: Path) -> list[Rank]:
    """Returns what each of two processes saw."""
    run_two_processes(Path(distributed_run.__file__), str(folder), timeout=1800)
    return [torch.load(folder / f"rank{rank}.pt", weights_only=False) for rank in range(2)]


def training_logs(run: dict[str, Any]) -> list[dict[str, float]]:
    return [log for log in run["logs"] if "loss" in log]


def test_prompts_are_split_between_the_processes(ranks: list[Rank]) -> None:
    assert len(ranks[0]["prompts"]) == len(ranks[1]["prompts"]) == STEPS
    batches = [[*mine, *others] for mine, others in zip(ranks[0]["prompts"], ranks[1]["prompts"], strict=True)]
    for batch in batches:
        assert len(batch) == len(set(batch)) == 2 * PROMPTS_PER_PROCESS * ACCUMULATION
    assert sorted(itertools.chain(*batches[:3])) == sorted(prompts(24)["prompt"])  # an epoch, each prompt once
    assert set(batches[3]) <= set(prompts(24)["prompt"])


def test_both_processes_take_the_same_steps_to_the_same_weights(ranks: list[Rank]) -> None:
    for run in ("straight", "resumed"):
        first, second = ranks[0][run], ranks[1][run]
        assert first["step"] == second["step"] == STEPS
        assert first["weights"].keys() == second["weights"].keys()
        assert all(torch.equal(weight, second["weights"][name]) for name, weight in first["weights"].items())
    start = distributed_run.tiny_llama(0).state_dict()
    assert not torch.equal(ranks[0]["straight"]["weights"]["lm_head.weight"], start["lm_head.weight"])


def test_metrics_are_reduced_over_the_tokens_of_both_processes(ranks: list[Rank]) -> None:
    logs = training_logs(ranks[0]["straight"])
    assert repeatable(logs) == repeatable(training_logs(ranks[1]["straight"]))
    assert len(logs) == STEPS
    unequal = 0
    for step, log in enumerate(logs):
        (epsilon, *mine), (also, *others) = ranks[0]["rollouts"][step], ranks[1]["rollouts"][step]
        assert epsilon == also == log["trb/epsilon"]
        beta, kl = (torch.cat(pair) for pair in zip(mine, others, strict=True))
        unequal += len(mine[0]) != len(others[0])
        assert log["trb/beta_mean"] == pytest.approx(beta.mean().item(), rel=1e-6)
        assert log["trb/kl"] == pytest.approx(kl.mean().item(), rel=1e-6)
        assert log["trb/kl_max"] == kl.max().item()
        assert log["trb/beta_p10"] == beta.sort().values[math.ceil(0.1 * len(beta)) - 1].item()
        assert log["completions/mean_length"] == len(beta) / (2 * PROMPTS_PER_PROCESS * ACCUMULATION)
        assert log["trb/reverse_kl"] == pytest.approx(log["loss"], rel=1e-5)  # the loss is the mean over all tokens
    assert unequal > 0  # or token weights and process weights could not be told apart


def test_pass_at_1_is_judged_once_per_sample_and_reduced(ranks: list[Rank]) -> None:
    judged = [*ranks[0]["judged"], *ranks[1]["judged"]]
    assert sorted(prompt for prompt, _ in judged) == sorted([*prompts(HELD_OUT)["prompt"]] * 3)
    assert all(rank["judged"] for rank in ranks)
    share = sum(right for _, right in judged) / len(judged)
    for rank in ranks:
        (log,) = [log for log in rank["straight"]["logs"] if "eval_pass@1" in log]
        assert log["eval_pass@1"] == pytest.approx(share)


def test_a_row_that_fills_up_the_last_batch_is_no_part_of_the_held_out_loss(ranks: list[Rank]) -> None:
    (mine,), (others,) = (rank["held_out"] for rank in ranks)
    assert len(mine) == len(others) == 4  # accelerate repeats rows, where 4 + 1 are left
    for rank in ranks:
        assert rank["scored"] == int(mine.sum() + others[:1].sum())
        (log,) = [log for log in rank["straight"]["logs"] if "eval_loss" in log]
        assert log["eval_loss"] == log["eval_trb/reverse_kl"]


def test_rows_that_fill_up_the_last_batch_of_a_stream_are_no_part_of_the_held_out_loss(tmp_path: Path) -> None:
    run_two_processes(Path(streamed_run.__file__), str(tmp_path), timeout=1800)
    both = [torch.load(tmp_path / f"streamed{rank}.pt") for rank in range(2)]
    for (rows, shards), mine in both[0].items():
        counted = []
        for found in (mine, both[1][rows, shards]):
            assert len(found["prompts"]) == 2 * len(found["own"])
            for batch, own in enumerate(found["own"]):
                counted += found["prompts"][2 * batch : 2 * batch + own]
        assert sorted(counted) == sorted(prompts(rows)["prompt"]), (rows, shards)


def test_two_processes_resume_bitwise(ranks: list[Rank]) -> None:
    for rank in ranks:
        assert repeatable(rank["resumed"]["logs"]) == repeatable(rank["straight"]["logs"])
        resumed = rank["resumed"]["weights"]
        assert all(torch.equal(weight, resumed[name]) for name, weight in rank["straight"]["weights"].items())


def test_their_checkpoint_resumes_on_one_process(ranks: list[Rank], folder: Path, tmp_path: Path) -> None:
    alone = distributed_run.trainer(tmp_path, gradient_accumulation_steps=2 * ACCUMULATION)
    batches: list[list[str]] = []
    generate = alone._generate
    alone._generate = lambda batch: (alone.model.training and batches.append(batch), generate(batch))[1]
    alone.train(resume_from_checkpoint=str(folder / "straight" / f"checkpoint-{CHECKPOINT}"))
    assert alone.state.global_step == STEPS
    together = [{*mine, *others} for mine, others in zip(ranks[0]["prompts"], ranks[1]["prompts"], strict=True)]
    assert [set(batch) for batch in batches] == together[CHECKPOINT:]  # the prompts the two would have taken next
    logs = training_logs({"logs": alone.state.log_history})
    before = training_logs(ranks[0]["straight"])
    assert repeatable(logs[:CHECKPOINT]) == repeatable(before[:CHECKPOINT])
    assert [log["trb/epsilon"] for log in logs] == [log["trb/epsilon"] for log in before]
    assert all(math.isfinite(log["loss"]) and log["loss"] < before[0]["loss"] for log in logs[CHECKPOINT:])


def test_sharded_models_decode_to_different_lengths_and_train_on(ranks: list[Rank]) -> None:
    lengths = []
    for rank in ranks:
        found, whole = rank["sharded"]["rollout"], rank["sharded"]["whole"]
        assert torch.equal(found.tokens, whole.tokens)
        torch.testing.assert_close(found.teacher_log_prob, whole.teacher_log_prob)
        lengths.append(found.tokens.shape[1])
        assert rank["sharded"]["sharded_again"]
        assert rank["sharded"]["gradient"].abs().max() > 0
    assert lengths[0] > lengths[1]


def backend(fsdp_version: int | None, zero_stage: int) -> Any:
    made = DistributedBackend.__new__(DistributedBackend)
    made.fsdp_version, made.zero_stage = fsdp_version, zero_stage
    return made


@pytest.mark.parametrize(
    ("fsdp_version", "zero_stage", "tools", "words"),
    [
        (1, 0, False, "use fsdp_version 2"),
        (None, 3, False, "set ds3_gather_for_generation=True"),
        (2, 0, True, "tools give processes different numbers of turns"),
        (None, 3, True, "tools give processes different numbers of turns"),
    ],
)
def test_sharding_that_would_hang_is_refused(
    fsdp_version: int | None, zero_stage: int, tools: bool, words: str, tmp_path: Path
) -> None:
    with pytest.raises(ValueError, match=words):
        check_can_unshard(
            backend(fsdp_version, zero_stage),
            distributed_run.config(tmp_path, ds3_gather_for_generation=False),
            tools=tools,
        )


def test_sharding_that_gathers_is_accepted(tmp_path: Path) -> None:
    for fsdp_version, zero_stage in ((None, 0), (2, 0), (None, 2), (None, 3)):
        check_can_unshard(backend(fsdp_version, zero_stage), distributed_run.config(tmp_path))
    check_can_unshard(backend(None, 2), distributed_run.config(tmp_path), tools=True)
