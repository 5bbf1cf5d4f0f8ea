"""Measures one model over a set of prompts: `trb eval`. If it writes a file, it can be resumed."""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from contextlib import closing
from typing import Any

from ..data.demo_models import model_path
from ..data.prompts import load_prompts
from ..models.stored_digest import model_digest
from .measure import Questions, measure
from .outcome import Outcome
from .record import check_record
from .report import Report, interval
from .subjects import OwnModels, Subjects
from .verifiers import check_verifier, verifier_by_name


def evaluate_model(options: argparse.Namespace) -> float:
    """Measures one model on one set of prompts, and prints its pass@1 and what else is counted.

    Args:
        options: Those of `trb eval` (see its help).

    Returns:
        pass@1.

    Raises:
        ValueError: A model, prompts or verifier cannot be used, or the file is of another evaluation.
        OSError: One of them cannot be read or written.
        EngineFailed: An engine failed; the same command continues.
    """
    # 1. Check the options, the verifier and the prompts.
    if len(options.model) != 1:
        raise ValueError(f"several models need --suite, got {' '.join(options.model)}")
    for name in ("prompts", "verifier"):
        if getattr(options, name) is None:
            raise ValueError(f"--{name} is required without --suite")
    if options.benchmarks is not None:
        raise ValueError("--benchmarks are those of a suite: it needs --suite")
    verifier = verifier_by_name(options.verifier)
    prompts = load_prompts(options.prompts, split=options.split or "test", limit=options.limit)
    check_verifier(verifier, prompts, options.verifier)  # before minutes of loading weights
    (model,) = options.model
    benchmark = Questions(
        name="prompts",
        source=options.prompts,
        prompts=prompts,
        verifier=verifier,
        samples=options.samples or 1,
        max_completion_length=options.max_completion_length or 512,
        seed=options.seed,
        template={},
        settings=model_settings(model) | {"prompts": options.prompts, "verifier": options.verifier},
    )
    if options.output is not None:
        check_record(options.output, benchmark.record_settings(""), {"decoder"})
    # 2. Measure the model.
    with closing(subjects_of(options)) as subjects:
        subject = subjects.load(model, [benchmark])
        outputs = None if options.output is None else {benchmark.name: options.output}
        outcomes = measure([benchmark], subject.prompt_ids, subject.decoder, outputs)
    # 3. Print what was found.
    report = Report.of({model: outcomes}, {})
    print(summary(report, model, benchmark.name, outcomes[benchmark.name]))
    print(f"{report.checkpoints[model].tokens_per_second:.0f} tokens/s")
    return report.checkpoints[model].mean.value


def subjects_of(options: argparse.Namespace) -> Subjects:
    """Returns what makes the models ready that `trb eval` was asked to evaluate.

    Raises:
        ValueError: The options of engines do not fit together.
    """
    flags: Sequence[str] = options.vllm_flags
    if options.engine_url is not None and options.engine is not None:
        raise ValueError("--engine starts an engine, and --engine-url asks one that is there: give one of them")
    if flags and options.engine is None:
        raise ValueError(f"flags after -- are vLLM's and need --engine vllm, got {' '.join(flags)}")
    if options.engine_url is None and options.engine is None:
        return OwnModels(options.batch_size or 32)
    from .engine_subjects import OwnEngine, ServedModel

    if options.engine is not None:
        return OwnEngine(flags, options.batch_size)
    if len(options.model) != 1:
        raise ValueError(f"--engine-url is a server of one model, got {' '.join(options.model)}")
    return ServedModel(options.engine_url, options.batch_size)


def model_settings(model: str) -> dict[str, Any]:
    """Returns what of a model decides about its completions, as a record holds it."""
    return {"model": model, "model_files": model_digest(model_path(model))}


def summary(report: Report, model: str, benchmark: str, outcome: Outcome) -> str:
    """Returns the figures of one model on one benchmark, in one line."""
    values = report.checkpoints[model].benchmarks[benchmark]
    shown = [f"pass@1 {values['pass@1'].value:.4f} [{values['pass@1'].low:.4f}, {values['pass@1'].high:.4f}]"]
    n = outcome.samples
    shown += [f"{name} {interval(values[name])}" for name in _last(values, n) if n > 1]
    shown.append(f"length {values['length'].value:.1f} (90 % below {outcome.length_p90():.0f})")
    shown.append(f"cut off {values['cut'].value:.1%}")
    errors = outcome.verifier_errors
    raised = f", {errors} of them wrong because the verifier raised" if errors else ""
    return f"{', '.join(shown)}, {outcome.prompts} prompts x {n} samples{raised}"


def _last(values: Mapping[str, Any], n: int) -> list[str]:
    return [name for name in (f"pass@{n}", f"maj@{n}") if name in values]
