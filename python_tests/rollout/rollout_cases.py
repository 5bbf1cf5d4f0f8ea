"""Makes tiny random models of several families and prompts for the tests of every way of decoding.

It also enumerates the law of completions, makes models fail, and watches what is read.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from scipy import stats
from torch import Tensor
from transformers import AutoModelForCausalLM, PreTrainedModel
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

from trbext import reference
from trbext.rollout import Rollout
from trbext.vocab import Alignment

PAD = 0
FAMILIES = {
    "llama": {},
    "qwen2": {},
    "qwen2 with a sliding window": {"use_sliding_window": True, "sliding_window": 4, "max_window_layers": 1},
    "mistral": {"sliding_window": 4},  # all layers
    "gpt2": {"n_embd": 16, "n_layer": 2, "n_head": 2, "n_positions": 64},
    # Attention and a recurrent state in one layer, whose cache cannot drop rows.
    "falcon_h1": {"mamba_d_ssm": 16, "mamba_n_heads": 2, "mamba_d_head": 8, "mamba_d_state": 8, "mamba_chunk_size": 8},
}


def tiny(family: str = "llama", vocab: int = 11, seed: int = 0, dtype: torch.dtype = torch.float64) -> PreTrainedModel:
    sizes = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2}
    ids = {"vocab_size": vocab, "pad_token_id": PAD, "bos_token_id": 1, "eos_token_id": 2}
    config = CONFIG_MAPPING[family.split()[0]](
        **{**sizes, "num_key_value_heads": 1, "max_position_embeddings": 64, **ids, **FAMILIES[family]}
    )
    torch.manual_seed(seed)
    model = AutoModelForCausalLM.from_config(config).to(dtype).eval()
    for parameter in model.parameters():
        if parameter.dim() > 1:
            parameter.data *= 20  # fresh weights give nearly flat distributions that hardly depend on the prefix
    return model


def left_padded(*prompts: list[int], width: int = 0) -> tuple[Tensor, Tensor]:
    width = max(width, *map(len, prompts))
    rows = [[PAD] * (width - len(prompt)) + prompt for prompt in prompts]
    mask = [[0] * (width - len(prompt)) + [1] * len(prompt) for prompt in prompts]
    return torch.tensor(rows), torch.tensor(mask)


PROMPTS = left_padded([3, 4, 5, 6], [7], [8, 9], [4, 4, 4], [10, 3, 9, 8, 7, 6], [5, 3])


def completion_logits(model: PreTrainedModel, prompts: tuple[Tensor, Tensor], rollout: Rollout, row: int) -> Tensor:
    """Computes [length, V] by one teacher-forced forward over the row by itself, without padding or cache."""
    prompt = prompts[0][row][prompts[1][row].bool()]
    sequence = torch.cat([prompt, rollout.tokens[row, : rollout.lengths[row]]])
    with torch.no_grad():
        return model(sequence[None], use_cache=False).logits[0, len(prompt) - 1 : -1]


def assert_same(one: Rollout, two: Rollout, tolerance: float = 0.0) -> None:
    assert torch.equal(one.tokens, two.tokens)
    assert torch.equal(one.mask, two.mask)
    assert torch.equal(one.finished, two.finished)
    for name in ("log_prob", "student_log_prob", "teacher_log_prob", "beta", "kl"):
        difference = (getattr(one, name) - getattr(two, name)).abs().max()
        assert difference <= tolerance, name


def sequence_law(
    student: PreTrainedModel,
    teacher: PreTrainedModel,
    prompt: list[int],
    epsilon: float,
    alignment: Alignment,
    length: int,
) -> dict[tuple[int, ...], float]:
    """Computes P(completion) under mu of every completion of at most `length` tokens, by the reference, in float64."""
    alive, ended = {(): 1.0}, {}
    for _ in range(length):
        prefixes = torch.tensor([[*prompt, *completion] for completion in alive])
        with torch.no_grad():
            a, b = (model(prefixes, use_cache=False).logits[:, -1] for model in (student, teacher))
        law = reference.blend(alignment.canonical(a), alignment.canonical(b), epsilon).log_probs.exp()
        children = {
            (*completion, token): probability * float(mu[token])
            for (completion, probability), mu in zip(alive.items(), law, strict=True)
            for token in range(alignment.width)
        }
        ended.update({completion: p for completion, p in children.items() if completion[-1] == alignment.stop})
        alive = {completion: p for completion, p in children.items() if completion[-1] != alignment.stop and p > 0}
    return ended | alive


def assert_rows_end_at_their_first_stop_token(rollout: Rollout) -> None:
    """Checks a rollout of `PROMPTS` with 14 new tokens, stop token 2 and pad token 9: some rows end by themselves,
    others do not."""
    assert rollout.tokens.shape == (6, 14)
    assert rollout.finished.any()
    assert not rollout.finished.all()
    for row in range(6):
        length = int(rollout.lengths[row])
        assert rollout.mask[row].tolist() == [True] * length + [False] * (14 - length)
        assert (rollout.tokens[row, : length - 1] != 2).all()
        assert bool(rollout.tokens[row, length - 1] == 2) == bool(rollout.finished[row])
        assert rollout.finished[row] or length == 14
        assert (rollout.tokens[row, length:] == 9).all()
        for values in (rollout.log_prob, rollout.student_log_prob, rollout.teacher_log_prob, rollout.beta, rollout.kl):
            assert values.dtype == torch.float32
            assert (values[row, length:] == 0).all()
            assert (values[row, :length] != 0).all()


def completion_counts(rollout: Rollout, rows: slice = slice(None)) -> Counter[tuple[int, ...]]:
    """Counts how often each completion was written."""
    padded = rollout.tokens[rows].masked_fill(~rollout.mask[rows], -1)
    unique, counts = padded.unique(dim=0, return_counts=True)
    completions = (tuple(token for token in tokens if token >= 0) for tokens in unique.tolist())
    return Counter(dict(zip(completions, counts.tolist(), strict=True)))


def p_value(law: dict[tuple[int, ...], float], rollout: Rollout, rows: slice, *, bins_above: int = 30) -> float:
    """Returns the p-value of the chi-square test of the completions against their law."""
    return p_value_of_counts(law, completion_counts(rollout, rows), bins_above=bins_above)


def p_value_of_counts(
    law: dict[tuple[int, ...], float], counts: Counter[tuple[int, ...]], *, bins_above: int = 30
) -> float:
    """Returns the p-value of the chi-square test of counts against a law, with rare completions merged until at least
    10 are expected in a bin."""
    if not counts.keys() <= law.keys():
        return 0.0
    total = sum(counts.values())
    expected, observed, bins = 0.0, 0, []
    for completion in sorted(law, key=law.__getitem__):
        expected, observed = expected + total * law[completion], observed + counts[completion]
        if expected >= 10:
            bins.append((observed, expected))
            expected, observed = 0.0, 0
    bins[-1] = (bins[-1][0] + observed, bins[-1][1] + expected)
    assert len(bins) > bins_above
    statistic = sum((observed - expected) ** 2 / expected for observed, expected in bins)
    return float(stats.chi2.sf(statistic, len(bins) - 1))


def raising(model: PreTrainedModel) -> PreTrainedModel:
    def forward(*args: Any, **kwargs: Any) -> None:
        raise AssertionError("the teacher was called")

    model.register_forward_pre_hook(forward)
    return model


def without(model: PreTrainedModel, token: int) -> PreTrainedModel:
    """Returns a model that never draws `token`."""

    def hook(_: Any, __: Any, output: Any) -> None:
        output.logits[..., token] = -torch.inf

    model.register_forward_hook(hook)
    return model


@contextmanager
def training(model: PreTrainedModel) -> Iterator[list[bool]]:
    """Puts a model in the middle of training: gradient checkpointing, dropout at work, one frozen submodule in eval
    mode."""
    model.gradient_checkpointing_enable()
    model.config.use_cache = False
    model.train()
    model.get_input_embeddings().eval()
    flags = [module.training for module in model.modules()]
    yield flags
    assert [module.training for module in model.modules()] == flags


def poison(model: PreTrainedModel, rows: Callable[[dict[str, Tensor]], Tensor], value: float = math.nan) -> None:
    """Puts `value` among the logits of the rows that `rows(inputs of the forward)` picks."""

    def hook(_: Any, __: Any, inputs: dict[str, Tensor], output: Any) -> None:
        output.logits[rows(inputs), -1, 3] = value

    model.register_forward_hook(hook, with_kwargs=True)
