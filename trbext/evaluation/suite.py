"""Measures pass@1 of checkpoints on several benchmarks, each with its own number of samples: `trb eval --suite`."""

from __future__ import annotations

import argparse
import dataclasses
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from ..data.prompts import load_prompts
from ..data.yaml_file import read_yaml
from ..errors import UsageError
from .command import LoadedModel, evaluate_prompts
from .verifiers import check_verifier, verifier_by_name

TEXT = {"prompts", "verifier", "split", "prompt_column", "answer_column", "system_prompt"}  # of fields below


@dataclass(frozen=True)
class Benchmark:
    """One set of prompts; the fields are as the options of `trb eval` of the same names."""

    prompts: str
    samples: int = 1
    verifier: str = "math"
    split: str = "test"
    prompt_column: str = "prompt"
    answer_column: str | None = None


@dataclass(frozen=True)
class Suite:
    """The contents of a suite's YAML file. `max_completion_length` is in tokens."""

    benchmarks: dict[str, Benchmark]
    system_prompt: str | None = None
    max_completion_length: int = 512
    chat_template_kwargs: dict[str, Any] = field(default_factory=dict)

    @classmethod
    def read(cls, path: Path) -> Suite:
        """Reads and checks a suite's file.

        Args:
            path: The YAML file.

        Returns:
            The suite.

        Raises:
            ValueError: The file is no mapping, a field does not exist, there is no benchmark, a number is below 1. The
                message names the file.
        """
        try:
            settings = read_yaml(path)
        except UsageError as error:
            raise ValueError(str(error)) from error
        _check_fields(path, "a suite", cls, settings)
        benchmarks = settings.get("benchmarks")
        if not isinstance(benchmarks, dict) or not benchmarks:
            raise ValueError(f"{path}: benchmarks must map names to benchmarks, got {benchmarks!r}")
        for name, fields in benchmarks.items():
            _check_fields(path, f"benchmark {name}", Benchmark, fields)
            if "prompts" not in fields:
                raise ValueError(f"{path}: benchmark {name} needs prompts")
        suite = cls(**{**settings, "benchmarks": {str(n): Benchmark(**f) for n, f in benchmarks.items()}})
        counts = {"max_completion_length": suite.max_completion_length}
        counts |= {f"samples of {name}": benchmark.samples for name, benchmark in suite.benchmarks.items()}
        if not isinstance(suite.chat_template_kwargs, dict):
            raise ValueError(f"{path}: chat_template_kwargs must be a mapping, got {suite.chat_template_kwargs!r}")
        for name, count in counts.items():
            if type(count) is not int or count < 1:
                raise ValueError(f"{path}: {name} must be a whole number of at least 1, got {count!r}")
        return suite

    def only(self, names: Sequence[str]) -> Suite:
        """Returns the suite of the named benchmarks.

        Raises:
            ValueError: A name is no benchmark; the message lists all.
        """
        for name in names:
            if name not in self.benchmarks:
                raise ValueError(f"benchmarks are {', '.join(self.benchmarks)}, got {name!r}")
        return dataclasses.replace(self, benchmarks={name: self.benchmarks[name] for name in names})


def evaluate_suite(options: argparse.Namespace) -> dict[str, dict[str, float]]:
    """Measures and prints pass@1 of every model on every benchmark, their means, and the best model.

    With `--output` FOLDER, completions go to FOLDER/MODEL/BENCHMARK.jsonl as they are judged, from which an interrupted
    evaluation continues, and the table goes to FOLDER/pass_at_1.json.

    Args:
        options: Those of `trb eval`.

    Returns:
        pass@1 by model and benchmark; "mean" is the mean of the benchmarks.

    Raises:
        ValueError: A suite, model, prompts or verifier cannot be used, or a file is of another evaluation.
        OSError: One of them cannot be read or written.
    """
    # 1. Read the suite, its verifiers and its prompts, and check them.
    suite = Suite.read(options.suite)
    if options.benchmarks is not None:
        suite = suite.only(options.benchmarks)
    verifiers = {name: verifier_by_name(benchmark.verifier) for name, benchmark in suite.benchmarks.items()}
    prompts = {
        name: load_prompts(
            benchmark.prompts,
            split=benchmark.split,
            column=benchmark.prompt_column,
            answer_column=benchmark.answer_column,
            system_prompt=suite.system_prompt,
            limit=options.limit,
        )
        for name, benchmark in suite.benchmarks.items()
    }
    for name, verifier in verifiers.items():
        check_verifier(verifier, prompts[name], suite.benchmarks[name].verifier)
    # 2. Evaluate each model on each benchmark.
    found: dict[str, dict[str, float]] = {}
    for model in options.model:
        loaded = LoadedModel.load(model, suite.chat_template_kwargs)
        found[model] = {}
        for name, benchmark in suite.benchmarks.items():
            result = evaluate_prompts(
                loaded,
                prompts[name],
                verifiers[name],
                settings={"model": model, **dataclasses.asdict(benchmark), "system_prompt": suite.system_prompt},
                samples=options.samples or benchmark.samples,
                max_completion_length=suite.max_completion_length,
                batch_size=options.batch_size,
                seed=options.seed,
                output=None if options.output is None else options.output / _folder(model) / f"{name}.jsonl",
            )
            found[model][name] = result.pass_at_1
            print(f"{model} {name}: {result}", flush=True)
        found[model]["mean"] = sum(found[model].values()) / len(suite.benchmarks)
    # 3. Write and print the table, and name the best model.
    if options.output is not None:
        (options.output / "pass_at_1.json").write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    Console().print(_table(found))
    if len(found) > 1:
        best = max(found, key=lambda model: found[model]["mean"])
        print(f"best by the suite mean: {best} (chosen and measured on the same completions, so it flatters itself)")
    return found


def _check_fields(path: Path, what: str, kind: Any, settings: object) -> None:
    if not isinstance(settings, Mapping):
        raise ValueError(f"{path}: {what} must hold fields and values, got {settings!r}")
    known = [each.name for each in dataclasses.fields(kind)]
    for name in settings:
        if name not in known:
            raise ValueError(f"{path}: fields of {what} are {', '.join(known)}, got {name!r}")
    for name in TEXT & set(settings):
        value = settings[name]
        if value is not None and not isinstance(value, str):
            yaml_reads = "must be text, got" if isinstance(value, (list, dict)) else "is text, which YAML reads as"
            quote = "" if isinstance(value, (list, dict)) else ": quote it"
            raise ValueError(f"{path}: {name} of {what} {yaml_reads} {value!r}{quote}")


def _folder(model: str) -> str:
    return model.strip("/.").replace("/", "--").replace(":", "-")


def _table(found: dict[str, dict[str, float]]) -> Table:
    table = Table(title="pass@1")
    table.add_column("")
    for name in next(iter(found.values())):
        table.add_column(name, justify="right")
    for model, values in found.items():
        table.add_row(model, *(f"{value:.1%}" for value in values.values()))
    return table
