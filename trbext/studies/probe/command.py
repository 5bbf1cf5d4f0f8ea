"""Probes the models, prompts and verifier of a `trb train` configuration before training: `trb probe`."""

from __future__ import annotations

import json
import math
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any, get_args

from rich.console import Console
from rich.progress import track
from rich.table import Table

from ...data.prompt_checks import check_encodings
from ...errors import UsageError, errors_of
from ...evaluation.statistics import holm
from ...evaluation.verifiers import check_verifier, verifier_by_name
from ...models.positions import position_limit
from ...runs.folder import left_as_it_was
from ...runs.inputs import sample_prompts
from ...runs.pair import load_pair
from ...runs.settings import RunArguments, parse_run
from ...training.config import TRBConfig
from ..p_value_text import p_value
from .figure import name_of, plot_probe
from .intervals import auroc, mean, paired_difference, share
from .rollouts import Completions, Continuer, Probe

DEFAULT_PROMPTS = 256


def probe(
    config: Path,
    fields: Sequence[str],
    *,
    epsilons: Sequence[float] | None,
    lengths: Sequence[int] | None,
    limit: int | None,
    output: Path | None,
) -> dict[str, Any]:
    """Probes a configuration, writes probe.json, probe.png and probe.svg, and prints the findings.

    Args:
        config: The YAML file of `trb train`.
        fields: Words of the command line that replace its fields.
        epsilons: KL budgets, nats per token; the one with which the run begins if not given.
        lengths: Of prefixes, in tokens; a quarter, half and three quarters of the longest completion if not given.
        limit: Prompts to use.
        output: The folder to write to.

    Returns:
        What the JSON holds.

    Raises:
        UsageError: The configuration, a budget, a length or the folder is not right.
        ValueError: As UsageError.
        OSError: A model or prompts cannot be read.
    """
    arguments, trb_config, _ = parse_run(config, fields)
    output = output or Path("runs") / f"{config.stem}-probe"
    longest = trb_config.max_completion_length
    assert longest is not None
    budgets = [0.0, *dict.fromkeys(epsilons if epsilons is not None else [trb_config.first_epsilon])]
    lengths = sorted(set(lengths if lengths is not None else [max(1, longest * part // 4) for part in (1, 2, 3)]))
    if epsilons is None and budgets[1:] == [0.0]:
        raise UsageError("the run begins with a KL budget of 0, which is OPD: name budgets by --epsilon")
    if not all(0 < epsilon < math.inf for epsilon in budgets[1:]):
        raise UsageError(
            f"--epsilon must be finite KL budgets above 0 (OPD, which is 0, is always probed), got {budgets[1:]}"
        )
    if not all(0 < length < longest for length in lengths):
        raise UsageError(f"--lengths must lie between 1 and max_completion_length - 1 = {longest - 1}, got {lengths}")
    if output.exists() and not output.is_dir():
        raise UsageError(f"--output {output} must be a folder, got a file")
    if (output / "probe.json").exists():
        raise UsageError(f"{output} holds a probe already: name another --output")
    with left_as_it_was(output):
        output.mkdir(parents=True, exist_ok=True)
        with errors_of(output), tempfile.TemporaryFile(dir=output) as file:  # before minutes of measuring
            file.write(b"x")
        setting = load_probe(arguments, trb_config, limit or arguments.eval_prompts_limit or DEFAULT_PROMPTS)
        found = {
            "student": arguments.model_name_or_path,
            "teacher": trb_config.teacher_model_name_or_path,
            "prompts": len(setting.rows),
            "seed": trb_config.seed,
            "temperature": setting.temperature,
            "max_completion_length": longest,
            **measure(setting, budgets, lengths),
        }
        (output / "probe.json").write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    plot_probe(found, output / "probe")
    _print(found, output)
    return found


def load_probe(arguments: RunArguments, config: TRBConfig, limit: int) -> Probe:
    """Loads the models, the prompts (held-out ones if the run has any) and the verifier of a run.

    Raises:
        UsageError: The run has no verifier.
        ValueError: A model, the prompts or the verifier cannot be used.
        OSError: One of them cannot be read.
    """
    # 1. Find the verifier, and load the prompts.
    if config.eval_verifier is None:
        raise UsageError("eval_verifier is not set: a probe counts right completions")
    verifier = verifier_by_name(config.eval_verifier)
    rows = sample_prompts(arguments, config, limit)
    # 2. Load the models.
    pair = load_pair(arguments, config)
    # 3. Check the prompts and the verifier before anything is sampled.
    positions = {name: position_limit(getattr(pair, name).config) for name in ("student", "teacher")}
    template, longest = config.chat_template_kwargs or {}, config.max_completion_length or 0
    check_encodings(rows, arguments.eval_prompts or arguments.prompts, pair.tokenizer, template, longest, positions)
    check_verifier(verifier, rows, config.eval_verifier)
    return Probe(
        student=pair.student,
        teacher=pair.teacher,
        tokenizer=pair.tokenizer,
        alignment=pair.alignment,
        rows=list(rows),
        verifier=verifier,
        max_new_tokens=longest,
        temperature=config.temperature,
        batch_size=config.per_device_eval_batch_size,
        seed=config.seed,
        chat_template=template,
    )


def measure(probe: Probe, epsilons: Sequence[float], lengths: Sequence[int]) -> dict[str, Any]:
    """Rolls out at every budget, and lets either model continue from every length.

    Args:
        probe: Models, prompts and verifier.
        epsilons: KL budgets, nats per token; the first is 0, which is OPD.
        lengths: Of prefixes, in tokens.

    Returns:
        Rollouts and continuations, as the JSON holds them. P-values of the differences to OPD are corrected by Holm
        over all of them.
    """
    rollouts = {epsilon: probe.roll_out(epsilon) for epsilon in epsilons}
    tasks: list[tuple[float, int, Continuer]] = [
        (epsilon, length, by) for by in get_args(Continuer) for length in lengths for epsilon in epsilons
    ]
    right = {
        task: probe.continued(rollouts[task[0]], task[1], task[2])
        for task in track(tasks, description="continuations", console=Console(stderr=True), transient=True)
    }
    continuations: list[dict[str, Any]] = []
    for epsilon, length, by in tasks:
        entry = {"epsilon": epsilon, "length": length, "by": by, "success": share(right[epsilon, length, by]).as_json()}
        if epsilon != 0:
            difference, p = paired_difference(right[epsilon, length, by], right[0.0, length, by])
            entry |= {"minus_opd": difference.as_json(), "p": p}
        continuations.append(entry)
    compared = [entry for entry in continuations if "p" in entry]
    for entry, corrected in zip(compared, holm([entry["p"] for entry in compared]), strict=True):
        entry["p_holm"] = corrected
    return {"rollouts": [_summary(rollouts[epsilon]) for epsilon in epsilons], "continuations": continuations}


def _summary(completions: Completions) -> dict[str, Any]:
    pairs = zip(completions.teacher_log_prob, completions.student_log_prob, strict=True)
    scores = [teacher - student for teacher, student in pairs]
    return {
        "epsilon": completions.epsilon,
        "reward": share(completions.correct).as_json(),
        "teacher_log_prob": mean(completions.teacher_log_prob).as_json(),
        "excluded_by_teacher": sum(value == float("-inf") for value in completions.teacher_log_prob),
        "support_score": mean(scores).as_json(),
        "auroc": auroc(scores, completions.correct).as_json(),
        "mean_length": sum(map(len, completions.tokens)) / len(completions.tokens),
    }


def _print(found: dict[str, Any], output: Path) -> None:
    console = Console()
    title = f"{found['prompts']} prompts, one rollout each"
    table = Table("", "success", "teacher log-prob", "support score", "AUROC of the score", title=title)
    for entry in found["rollouts"]:
        cells = [_text(entry["reward"], "{:.1%}")]
        cells += [_text(entry[key], "{:.3f}") for key in ("teacher_log_prob", "support_score", "auroc")]
        table.add_row(name_of(entry["epsilon"]), *cells)
    console.print(table)
    table = Table("", "t", "continued by", "success", "minus OPD", "corrected p", title="Continued from t tokens")
    for entry in found["continuations"]:
        difference = _text(entry["minus_opd"], "{:+.1%}") if "p" in entry else ""
        p = p_value(entry["p_holm"]) if "p" in entry else ""
        success = _text(entry["success"], "{:.1%}")
        table.add_row(name_of(entry["epsilon"]), str(entry["length"]), entry["by"], success, difference, p)
    console.print(table)
    console.print(
        "Intervals (95 %) cover prompts and sampling: one student, one teacher. Shares: Wilson; differences: paired by "
        "prompt, bootstrap, McNemar's exact p corrected by Holm.",
        highlight=False,
        soft_wrap=True,
    )
    console.print(f"{output / 'probe.json'}, probe.png, probe.svg", highlight=False, soft_wrap=True, markup=False)


def _text(value: dict[str, float | None], form: str) -> str:
    if value["value"] is None:
        return "n/a"
    if value["low"] is None or value["high"] is None:
        return form.format(value["value"])
    return f"{form.format(value['value'])} [{form.format(value['low'])}, {form.format(value['high'])}]"
