"""Checks the arguments of `TRBTrainer` before anything is loaded."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from trl.trainer.utils import get_config_model_id

from ..evaluation.verifiers import Verifier, check_verifier_signature, verifier_by_name
from ..limits import is_epsilon, not_an_epsilon
from ..models.model_kind import check_kind
from ..models.next_token import is_transformers
from ..rollout import Policy, TrustRegion
from ..rollout.caches import named_models
from ..rollout.policy_methods import check_policy_methods
from .config import TRBConfig
from .teachers.routes import check_routing


class TrainerArguments(NamedTuple):
    """Arguments of a trainer, or the ones that its configuration names instead."""

    args: TRBConfig
    teacher: Any  # a path or a model, or paths of several by their labels
    policy: Policy | None  # None: a built-in one, which may depend on the length of the run
    verifier: Verifier | None

    @classmethod
    def checked(
        cls,
        model: Any,
        teacher: Any,
        args: TRBConfig | None,
        policy: Policy | None,
        verifier: Verifier | None,
        *,
        tools: bool = False,
    ) -> TrainerArguments:
        """Returns the arguments, completed from `args`.

        Args:
            model: The student, a path or a model.
            teacher: A path or a model; None is `args.teacher_model_name_or_path`, or `args.teachers`.
            args: None is the default configuration, in a folder named after the student.
            policy: None is the one that `args.rollout_policy` names.
            verifier: None is the one that `args.eval_verifier` names, if any.
            tools: Conversations call tools.

        Raises:
            TypeError: `args` is not a `TRBConfig`, `policy` no policy, or `verifier` no function.
            ValueError: There is no teacher, a policy or verifier cannot be called as one, options contradict each
                other, or a model is of a kind that cannot be trained.
        """
        if args is None:
            name = model if isinstance(model, str) else get_config_model_id(model.config)
            args = TRBConfig(f"{name.split('/')[-1]}-TRB")
        if not isinstance(args, TRBConfig):
            raise TypeError(f"args must be a TRBConfig, got {type(args).__name__}")
        if args.teachers is not None and not (teacher is None or isinstance(teacher, dict)):
            raise ValueError("teachers are given in args and as teacher_model: leave one out")
        teacher = next((t for t in (teacher, args.teacher_model_name_or_path, args.teachers) if t is not None), None)
        if teacher is None and args.teacher_url is not None:
            teacher = ""  # the only model of the server
        if teacher is None:
            raise ValueError("a teacher is required: pass teacher_model, or set teacher_model_name_or_path")
        check_routing(teacher, args, tools=tools)
        if policy is not None:
            if not isinstance(policy, Policy):
                got = f"the class {policy.__name__}" if isinstance(policy, type) else repr(policy)
                raise TypeError(f"policy must be an object of trbext.rollout.Policy, got {got:.80}")
            args.refuse_altered_sampling("a policy")
            check_policy_methods(type(policy).__name__, policy)
        elif ":" in args.rollout_policy:  # a user's class is made once; it may fail, so before anything is loaded
            policy = args.policy(total_steps=0)
        if policy is not None:
            budget_of(policy, 0)
        if verifier is not None:
            if not callable(verifier):
                raise TypeError(f"verifier must be a function, got {verifier!r:.80}")
            check_verifier_signature(getattr(verifier, "__name__", "verifier"), verifier)
        elif args.eval_verifier is not None:
            verifier = verifier_by_name(args.eval_verifier)
        if verifier is not None and args.remove_unused_columns:
            raise ValueError("a verifier reads columns of the dataset: set remove_unused_columns=False")
        for name, given in (("student", model), ("teacher", teacher)):
            for role, each in named_models(name, given):
                if not isinstance(each, (str, dict)) and is_transformers(each):
                    check_kind(each, role)
        return cls(args, teacher, policy, verifier)


def budget_of(policy: Policy, step: int) -> float | None:
    """Returns the KL budget of a policy at an optimizer step in nats per token; None for a policy without a budget.

    Raises:
        ValueError: It is none, or differs from row to row, which the log of a run does not show.
    """
    budget = policy.epsilon(step) if isinstance(policy, TrustRegion) else None
    if isinstance(budget, torch.Tensor):
        raise ValueError("policy must have one budget for all rows of a run: give a number, got a tensor")
    if budget is not None and not is_epsilon(budget):
        raise ValueError(not_an_epsilon(budget))
    return None if budget is None else float(budget)
