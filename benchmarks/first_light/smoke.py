"""Checks the operators against float64: three dtypes, eight widths, four operators, three rows each."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

import trbext
from trbext import reference

from ..harness.rows import language_model_rows

DTYPES = (torch.bfloat16, torch.float32, torch.float16)
VOCABS = (1, 17, 1000, 32_768, 50_257, 151_936, 262_144, 500_009)  # one block, clusters, a streamed row
EPSILON = torch.tensor([1e-4, 0.02, 0.5])
UNIFORM = torch.tensor([0.0, 0.37, 1 - 2**-53], dtype=torch.float64)
CELL = 1e-5  # a uniform may lie outside of its token's cell of the cumulative distribution by this much
LOST = ("CUDA error", "device-side assert")  # the context is gone, and every further call fails


def check(device: str) -> bool:
    """Prints a line of a Markdown table per case, and returns whether all were right."""
    print("| dtype | V | sweeps | solve, sample, blend, verify |\n|---|---|---|---|", flush=True)
    right = True
    for dtype in DTYPES:
        for vocab in VOCABS:
            student, teacher = (logits.to(dtype) for logits in language_model_rows(3, vocab))
            sweeps = ""
            try:
                outcome = Outcome(student, teacher, device)
                sweeps, faults = str(outcome.solved.sweeps.tolist()), list(outcome.faults())
            except RuntimeError as error:
                faults = [f"{type(error).__name__}: {str(error).splitlines()[0][:120]}"]
            right &= not faults
            print(f"| {str(dtype)[6:]} | {vocab} | {sweeps} | {'; '.join(faults) or 'right'} |", flush=True)
            if any(word in fault for fault in faults for word in LOST):
                print("\nThe device's context is lost: nothing more was tried.")
                return False
    return right


class Outcome:
    """The answers of the four operators for three rows on a device, copied to the CPU."""

    def __init__(self, student: Tensor, teacher: Tensor, device: str) -> None:
        self.student, self.teacher = student, teacher
        there = [tensor.to(device) for tensor in (student, teacher, EPSILON, UNIFORM)]
        vocab = student.shape[1]
        # A draft that is nearly always rejected, a draft of a likely token, a row without a draft; two requests.
        self.drafts = torch.tensor([vocab - 1, int(student[1].argmax()), -1])
        self.accept = torch.tensor([0.9, 0.0, 0.5], dtype=torch.float64)
        self.solved = trbext.solve(*there[:3])
        self.drawn = reference.Sample(*(x.cpu() for x in trbext.sample(*there[:3], uniform=there[3])))
        self.blended = reference.Blend(*(x.cpu() for x in trbext.blend(*there[:3])))
        self.verified = reference.Verification(
            *(
                x.cpu()
                for x in trbext.verify(
                    there[0], there[1], self.drafts.to(device), torch.tensor([0, 1, 3], device=device), 0.02,
                    accept_uniform=self.accept.to(device), draw_uniform=there[3], width=2,
                )
            )
        )  # fmt: skip
        self.solved = reference.Solution(*(x.cpu() for x in self.solved))

    def faults(self) -> Iterator[str]:
        """Yields a sentence for each answer that disagrees with float64."""
        beta = self.solved.beta
        kl = reference.behavior_kl(self.student, self.teacher, beta)
        if not bool((kl <= EPSILON.double() * (1 + 1e-4) + 1e-7).all()):
            yield f"KL {kl.tolist()} above epsilon"
        if bool(((beta < 1) & (kl < EPSILON.double() * (1 - 3e-4) - 1e-7)).any()):
            yield f"beta {beta.tolist()} is not the largest, KL {kl.tolist()}"
        if not (torch.equal(self.drawn.beta, beta) and torch.equal(self.blended.beta, beta)):
            yield "beta differs among the operators"
        log_mu = reference.behavior_log_probs(self.student, self.teacher, beta)
        if not torch.allclose(self.blended.log_probs.double(), log_mu, atol=1e-4, rtol=1e-5):
            yield "log mu"
        for row in range(3):
            if not in_cell(log_mu[row].exp(), int(self.drawn.token[row]), float(UNIFORM[row])):
                yield f"token {int(self.drawn.token[row])} of row {row}"
        yield from self._verify_faults()

    def _verify_faults(self) -> Iterator[str]:
        """Yields each decision that disagrees with mu at the returned beta."""
        got, log_student = self.verified, self.student.double().log_softmax(-1)
        for request, rows in enumerate((range(1), range(1, 3))):
            emitted, accepted = int(got.emitted[request]), int(got.accepted[request])
            for place, row in enumerate(rows[:emitted]):
                log_mu = reference.behavior_log_probs(self.student[row], self.teacher[row], got.beta[row])
                draft, token = int(self.drafts[row]), int(got.tokens[request, place])
                ratio = float((log_mu - log_student[row])[draft].exp()) if draft >= 0 else 0.0
                is_accepted = place < accepted
                if abs(ratio - float(self.accept[row])) > CELL and is_accepted != (float(self.accept[row]) < ratio):
                    yield f"verify: the draft of row {row} was {'accepted' if is_accepted else 'rejected'}"
                if is_accepted:
                    continue
                weights = (log_mu.exp() - log_student[row].exp()).clamp(min=0) if draft >= 0 else log_mu.exp()
                weights = weights if weights.sum() > CELL else log_mu.exp()
                if not in_cell(weights / weights.sum(), token, float(UNIFORM[row]), CELL / float(weights.sum())):
                    yield f"verify: token {token} of row {row}"
            if emitted < 1 or emitted != min(accepted + 1, len(rows)):
                yield f"verify: {emitted} tokens emitted, {accepted} drafts accepted"


def in_cell(probabilities: Tensor, token: int, uniform: float, tolerance: float = CELL) -> bool:
    """Returns whether the inverse of the cumulative distribution at `uniform` is `token`.

    Args:
        probabilities: [V] float64.
        token: The token that was drawn.
        uniform: In [0, 1).
        tolerance: By which the uniform may lie outside the token's cell.
    """
    if not 0 <= token < len(probabilities):
        return False
    upper = probabilities[: token + 1].sum()
    return bool(upper - probabilities[token] - tolerance <= uniform <= upper + tolerance)
