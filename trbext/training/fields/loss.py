"""Defines the fields of a run that say what is minimized at the prefixes of its rollouts."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

from ..schedule import check_duration

ESTIMATORS = ("full", "top_k", "sampled", "routed")
PAPER_TOP_K = 16


@dataclass
class LossFields:
    """The loss, by default the reverse KL at each prefix; formulas are in `trbext/training/losses.py`."""

    loss_estimator: str | None = field(
        default=None,
        metadata={
            "help": "How the reverse KL of a prefix is taken: 'full' = over the whole vocabulary; 'top_k' = over the "
            "student's loss_top_k most probable tokens and the rest as one; 'sampled' = from the sampled token only, "
            "weighted by its probability under the student over that under the rollout policy; 'routed' = SAKI: "
            "'sampled' at accepted drafts of the student, and the surprise of the teacher's most probable token where "
            "another token replaced one. Unset = 'top_k' if loss_top_k is set, else 'full'."
        },
    )
    loss_top_k: int | None = field(
        default=None,
        metadata={
            "help": "Tokens on which the reverse KL is estimated at each prefix: the student's k most probable ones, "
            "all others counted as one outcome. 16 is the paper's; unset = the whole vocabulary."
        },
    )
    loss_weight_cap: float | None = field(
        default=None,
        metadata={
            "help": "For loss_estimator 'sampled' and 'routed': largest weight of a token, at least 1; lowers "
            "variance, adds bias. Unset = no cap."
        },
    )
    veto_start: float = field(
        default=0.0,
        metadata={
            "help": "Veto: exponent b at the first step of the target pi_T pi_S^b (normalized) that replaces the "
            "teacher in the loss, 0 to below 1; it falls linearly to 0. 0 = off."
        },
    )
    veto_steps: float = field(
        default=50,
        metadata={
            "help": "Veto: optimizer steps until its exponent is 0. An integer, or a share of all steps below 1."
        },
    )

    def check_loss(self, beta: float) -> None:
        """Checks these fields, and sets `loss_estimator` and `loss_top_k` if one follows from the other.

        Args:
            beta: TRL's, the divergence of the loss; 1.0 is the reverse KL.

        Raises:
            ValueError: A field is out of range, or needs the reverse KL.
        """
        if self.loss_top_k is not None and beta != 1.0:
            raise ValueError(f"loss_top_k estimates the reverse KL, which is beta = 1.0, got beta = {beta}")
        if self.loss_estimator is None:
            self.loss_estimator = "full" if self.loss_top_k is None else "top_k"
        if self.loss_estimator not in ESTIMATORS:
            raise ValueError(f"loss_estimator must be one of {', '.join(ESTIMATORS)}, got {self.loss_estimator!r}")
        if self.loss_estimator == "top_k" and self.loss_top_k is None:
            self.loss_top_k = PAPER_TOP_K
        if self.loss_estimator != "top_k" and self.loss_top_k is not None:
            raise ValueError(f"loss_top_k belongs to loss_estimator 'top_k', got {self.loss_estimator!r}")
        for name, chosen in (
            (f"loss_estimator={self.loss_estimator!r}", self.loss_estimator != "full"),
            (f"veto_start={self.veto_start}", self.veto_start != 0),
        ):
            if chosen and beta != 1.0:
                raise ValueError(f"{name} is of the reverse KL, which is beta = 1.0, got beta = {beta}")
        if self.loss_weight_cap is not None:
            if self.loss_estimator not in ("sampled", "routed"):
                raise ValueError(
                    f"loss_weight_cap belongs to loss_estimator 'sampled' or 'routed', got {self.loss_estimator!r}"
                )
            if not 1 <= self.loss_weight_cap < math.inf:
                raise ValueError(f"loss_weight_cap must be at least 1, or unset for none, got {self.loss_weight_cap}")
        if not 0 <= self.veto_start < 1:
            raise ValueError(f"veto_start must be an exponent with 0 <= veto_start < 1, got {self.veto_start}")
        check_duration("veto_steps", self.veto_steps)

    def check_top_k(self, vocabulary: float) -> None:
        """Checks the top k against the number of tokens that the models share.

        Raises:
            ValueError: It is larger, so the loss would be that of the whole vocabulary.
        """
        if self.loss_top_k is not None and self.loss_top_k > vocabulary:
            raise ValueError(
                f"loss_top_k must be at most the {vocabulary} tokens that the models share, got {self.loss_top_k}: "
                "leave it out for the whole vocabulary (loss_estimator 'full')"
            )
