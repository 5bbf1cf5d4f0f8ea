"""Plots one rollout of a run before and after training, token by token: the command `trb plot --rollout`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from ..data.encoding import encode_prompts, left_padded
from ..errors import UsageError
from ..limits import in_float32
from ..rollout import Rollout, lockstep
from ..training.config import TRBConfig
from .folder import RunFolder
from .inputs import sample_prompts
from .pair import Pair, load_pair
from .plot_command import check_picture
from .rollout_picture import ColoredText, draw_colored_texts, save_figure, text_of_tokens
from .settings import RunArguments, parse_run


def plot_rollout(path: Path, output: Path, *, prompt: int = 0, epsilon: float | None = None) -> None:
    """Plots completions of one prompt: of the student as it began and, if the run has ended, of the trained one.

    Both are drawn within the same KL budget and from the same random numbers.

    Args:
        path: A run folder of `trb train`, or its YAML file before there is one.
        output: The image to write, .png or .svg, in a folder that exists.
        prompt: Counts from 0, among the held-out prompts if the run has any.
        epsilon: KL budget in nats per token; None is the run's budget at step 0.

    Raises:
        UsageError: A path, the prompt or the budget cannot be used.
        ValueError: A model cannot be used.
        OSError: A file cannot be read or written.
    """
    # 1. Read the run and its prompt.
    check_picture(output)
    folder = RunFolder(path)
    settings = path if path.is_file() else folder.config
    if not settings.is_file():
        raise UsageError(f"{path} is neither a run folder of trb train nor a YAML file: there is no {settings}")
    arguments, config, _ = parse_run(settings, [])
    budget = config.first_epsilon if epsilon is None else epsilon
    if not budget >= 0:
        raise UsageError(f"--epsilon must be a KL budget of at least 0 nats per token, got {epsilon}")
    question = _prompt(arguments, config, prompt)
    # 2. Draw a completion from each student.
    students: dict[str, str | None] = {"before training": None}
    if folder.is_finished():
        students["after training"] = str(folder.model)
    texts = []
    for name, student in students.items():
        pair = load_pair(arguments, config, student)
        ids = encode_prompts(pair.tokenizer, [question], **(config.chat_template_kwargs or {}))
        texts.append(_text(name, pair, _completed(pair, ids, config, budget), budget))
    # 3. Plot the completions.
    shown = question if isinstance(question, str) else "\n".join(str(message["content"]) for message in question)
    save_figure(draw_colored_texts(texts, shown), str(output))
    print(output)


def _prompt(arguments: RunArguments, config: TRBConfig, index: int) -> Any:
    rows = sample_prompts(arguments, config, max(index, 0) + 1)
    if not 0 <= index < len(rows):
        raise UsageError(f"--prompt counts from 0, and there are {len(rows)} prompts, got {index}")
    return rows[index]["prompt"]


def _completed(pair: Pair, ids: list[list[int]], config: TRBConfig, epsilon: float) -> Rollout:
    pad = pair.tokenizer.pad_token_id
    pad = pair.alignment.stop if pad is None else pad
    input_ids, mask = left_padded(ids, pad, pair.student.device)
    assert config.max_completion_length is not None
    return lockstep(
        pair.student,
        pair.teacher,
        input_ids,
        mask,
        # A budget of one row, and not a number: at the number 0 the teacher would not be called.
        epsilon=torch.full((1,), in_float32(epsilon)),
        max_new_tokens=config.max_completion_length,
        alignment=pair.alignment,
        pad_token_id=pad,
        temperature=config.temperature,
        generator=torch.Generator().manual_seed(config.seed),
    )


def _text(name: str, pair: Pair, rollout: Rollout, epsilon: float) -> ColoredText:
    kept = rollout.mask[0]
    beta, replaced = rollout.beta[0][kept].tolist(), rollout.replaced[0][kept].tolist()
    mean_kl = float(rollout.kl[0][kept].mean())
    title = (
        f"{name}: epsilon = {epsilon:g}, mean beta {sum(beta) / len(beta):.2f}, mean KL {mean_kl:.3g} nats per token, "
        f"{sum(replaced)} of {len(replaced)} replaced"
    )
    return ColoredText(title, text_of_tokens(pair.tokenizer, rollout.tokens[0][kept].tolist()), beta, replaced)
