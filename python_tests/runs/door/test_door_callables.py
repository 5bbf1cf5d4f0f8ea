"""A user's verifiers and policies that cannot judge or write are refused in one line."""

from __future__ import annotations

import re
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import DatasetDict
from transformers import PreTrainedTokenizerFast

from python_tests.models.tiny_models import prompts
from python_tests.runs.door.refusals import refusal, write
from trbext.cli import main
from trbext.rollout import Policy, TrustRegion
from trbext.training.config import TRBConfig
from trbext.training.trainer import TRBTrainer
from trbext.training.trainer_arguments import budget_of

MODULE = """
import torch
from trbext.rollout import Policy, TrustRegion
from trbext.rollout.policies import FixedBeta

def two(prompt, completion): return True
def keywords(prompt, completion, *, row): return True
async def later(prompt, completion, row): return True
def raises(prompt, completion, row): return row["solution"] == completion
def nothing(prompt, completion, row): pass
def score(prompt, completion, row): return 0.5
def word(prompt, completion, row): return "no"
def needs_text(prompt, completion, row): return bool(completion[0])
class Judge:
    def __init__(self, prompt, completion, row): pass

class NoDraw(Policy): pass
class Short(Policy):
    def draw(self, student_logits, teacher_logits): pass
class Needs(FixedBeta):
    def needs_teacher(self): return True
class Strict(FixedBeta):
    def __init__(self, beta): raise RuntimeError("no")
class PerRow(TrustRegion):
    def __init__(self): super().__init__(torch.full((4,), 0.1))
class Negative(TrustRegion):
    def __init__(self): super().__init__(lambda step: -0.1)
def function(beta=0.5): return beta
"""

FAILING = {  # modules that fail while they are imported
    "unclosed": "f = (",
    "unnamed": "f = undefined",
    "unkeyed": 'f = {}["k"]',
    "leaves": "raise SystemExit(5)",
}


def named(name: str) -> str:
    return name if ":" in name or name == "numeric" else f"mine:{name}"


VERIFIERS = [
    ("two", "the verifier 'mine:two' must take (prompt, completion, row), but takes (prompt, completion)"),
    ("keywords", "must take (prompt, completion, row), but takes (prompt, completion, *, row)"),
    ("later", "the verifier 'mine:later' must be a plain function that returns True or False, not async"),
    ("Judge", "the verifier 'mine:Judge' must be a function, got the class Judge"),
    ("raises", "the verifier 'mine:raises' raises on every completion of the first prompts, at first KeyError"),
    ("nothing", "raises on every completion of the first prompts, at first TypeError: a verifier must return True or"),
    ("score", "a verifier must return True or False, got 0.5"),
    ("word", "a verifier must return True or False, got 'no'"),
    ("void", "the verifier 'mine:void' could not be imported"),
    (".mine:two", "a verifier is named as 'module:object', got '.mine:two'"),
    ("unclosed:f", "the verifier 'unclosed:f' could not be imported: SyntaxError: '(' was never closed (unclosed.py, "),
    ("unnamed:f", "the verifier 'unnamed:f' could not be imported: NameError: name 'undefined' is not defined"),
    ("unkeyed:f", "the verifier 'unkeyed:f' could not be imported: KeyError: 'k'"),
    ("leaves:f", "the verifier 'leaves:f' could not be imported: SystemExit: 5"),
    ("numeric", "the verifier 'numeric' raises on every completion of the first prompts, at first KeyError: 'answer'"),
]


POLICIES: list[tuple[str, dict[str, Any] | None, str]] = [
    ("NoDraw", None, "the rollout policy 'mine:NoDraw' must define draw(step, student_logits, teacher_logits, unif"),
    ("Short", None, "draw of the rollout policy 'mine:Short' must take (step, student_logits, teacher_logits, unif"),
    ("Needs", {"beta": 0.5}, "needs_teacher of the rollout policy 'mine:Needs' must take (step), but takes ()"),
    ("Needs", None, "got rollout_policy_kwargs none: missing a required argument: 'beta'"),
    ("Needs", {"beta": 0.5, "alpha": 1}, "got rollout_policy_kwargs alpha, beta: got an unexpected keyword argument"),
    ("Strict", {"beta": 0.5}, "the rollout policy 'mine:Strict' could not be made: RuntimeError: no"),
    ("function", None, "the rollout policy 'mine:function' must make a trbext.rollout.Policy, got float"),
    ("PerRow", None, "policy must have one budget for all rows of a run: give a number, got a tensor"),
    ("Negative", None, "epsilon must be a KL budget in nats, 0 <= epsilon <= inf, got -0.1"),
    ("void", None, "the rollout policy 'mine:void' could not be imported"),
    ("unclosed:f", None, "the rollout policy 'unclosed:f' could not be imported: SyntaxError: '(' was never closed"),
]


@pytest.fixture
def mine(config: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    """Writes modules of the user's in the working folder."""
    Path("mine.py").write_text(MODULE, encoding="utf-8")
    for name, text in FAILING.items():
        Path(f"{name}.py").write_text(text, encoding="utf-8")
    monkeypatch.delitem(sys.modules, "mine", raising=False)
    monkeypatch.setattr(sys, "dont_write_bytecode", True)  # __pycache__ would count as a folder that was made
    monkeypatch.syspath_prepend(Path.cwd())


@pytest.mark.usefixtures("mine")
@pytest.mark.parametrize(("name", "message"), VERIFIERS)
def test_verifiers_that_cannot_judge_are_refused(
    name: str, message: str, config: dict[str, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    verifier = named(name)
    Path("questions.jsonl").write_text('{"prompt": "1+1="}\n' * 4, encoding="utf-8")
    words = ["--eval_verifier", verifier, "--eval_prompts", "questions.jsonl"]
    assert message in refusal(capsys, "train", write(config), *words)
    of_eval = ["eval", config["model_name_or_path"], "--prompts", "questions.jsonl", "--verifier", verifier]
    assert message in refusal(capsys, *of_eval, "--max-completion-length", "4", "--output", "out.jsonl")


@pytest.mark.usefixtures("mine")
def test_a_verifier_that_raised_on_every_completion_is_an_error(
    config: dict[str, Any], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The fault is not seen beforehand: the verifier raises on empty completions, and the model writes nothing else."""
    monkeypatch.setattr(PreTrainedTokenizerFast, "decode", lambda self, *_, **__: "")
    words = ["eval", config["model_name_or_path"], "--prompts", "prompts.jsonl", "--verifier", "mine:needs_text"]
    assert main([*words, "--limit", "4", "--max-completion-length", "4"]) == 2
    line = capsys.readouterr().err.strip().splitlines()[-1]
    assert line.startswith(
        "trb: the verifier raised on all 4 completions, at first IndexError: string index out of range"
    )


@pytest.mark.usefixtures("mine")
@pytest.mark.parametrize(("name", "kwargs", "message"), POLICIES)
def test_policies_that_cannot_write_are_refused(
    name: str,
    kwargs: dict[str, Any] | None,
    message: str,
    config: dict[str, Any],
    capsys: pytest.CaptureFixture[str],
) -> None:
    change = {"rollout_policy": named(name)} | ({} if kwargs is None else {"rollout_policy_kwargs": kwargs})
    assert message in refusal(capsys, "train", write(config | change))


def test_the_trainer_refuses_what_is_of_another_type(models: dict[str, str], tmp_path: Path) -> None:
    def make(**given: Any) -> TRBTrainer:
        args = TRBConfig(str(tmp_path / "run"), use_cpu=True, report_to="none")
        return TRBTrainer(models["student"], models["teacher"], args, **{"train_dataset": prompts(8)} | given)

    refused: list[tuple[dict[str, Any], str]] = [
        ({"policy": TrustRegion}, "policy must be an object of trbext.rollout.Policy, got the class TrustRegion"),
        ({"policy": 5}, "policy must be an object of trbext.rollout.Policy, got 5"),
        ({"verifier": 5}, "verifier must be a function, got 5"),
        (
            {"train_dataset": DatasetDict(train=prompts(8))},
            "train_dataset must be one dataset, got DatasetDict of train",
        ),
        (
            {"verifier": lambda prompt, completion, row: True, "eval_dataset": prompts(8).to_iterable_dataset()},
            "eval_dataset must be a datasets.Dataset for a verifier, got IterableDataset",
        ),
        ({"train_dataset": "prompts.jsonl"}, "train_dataset must be one dataset, got 'prompts.jsonl'"),
    ]
    for given, message in refused:
        with pytest.raises(TypeError, match=re.escape(message)):
            make(**given)
    with pytest.raises(ValueError, match="train_dataset must be the prompts to train on, got None"):
        make(train_dataset=None).train()
    assert not (tmp_path / "run").exists() or not any((tmp_path / "run").iterdir())


def test_the_trainer_refuses_objects_that_cannot_write_or_judge(models: dict[str, str], tmp_path: Path) -> None:
    class NoDraw(Policy):
        pass

    def make(**given: Any) -> TRBTrainer:
        args = TRBConfig(str(tmp_path / "run"), use_cpu=True)
        return TRBTrainer(models["student"], models["teacher"], args, train_dataset=prompts(8), **given)

    with pytest.raises(ValueError, match="policy must have one budget for all rows of a run: give a number"):
        make(policy=TrustRegion(torch.tensor(0.1)))
    with pytest.raises(ValueError, match=r"the rollout policy NoDraw must define draw\(step, student_logits"):
        make(policy=NoDraw())
    policy = TrustRegion(lambda step: 0.1 if step == 0 else torch.full((4,), 0.1))
    assert budget_of(policy, 0) == 0.1
    with pytest.raises(ValueError, match="policy must have one budget for all rows of a run: give a number"):
        budget_of(policy, 1)
    with pytest.raises(ValueError, match=r"the verifier '<lambda>' must take \(prompt, completion, row\)"):
        make(verifier=lambda prompt, completion: True)
