"""Measures pass@1 of checkpoints on several benchmarks, each with its own number of samples: `trb eval --suite`."""

from __future__ import annotations

import argparse
import dataclasses
import hashlib
import os
from collections.abc import Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from ..data.demo_models import model_path
from ..data.prompts import load_prompts
from ..data.yaml_file import read_yaml
from ..errors import UsageError
from ..models.loading import check_model_folder
from .command import model_settings, subjects_of, summary
from .measure import Questions, measure
from .outcome import Outcome
from .page import write_page
from .record import check_record
from .report import Report, interval, sentences
from .verifiers import check_verifier, verifier_by_name

TEXT = {"prompts", "verifier", "split", "prompt_column", "answer_column", "system_prompt"}  # of fields below
MOST_BYTES = 200  # of the name of a folder or file; file systems take 255, and a suffix may follow


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
        if len(set(map(str, benchmarks))) < len(benchmarks):
            raise ValueError(f"{path}: benchmarks must have different names, got {', '.join(map(repr, benchmarks))}")
        for name, fields in benchmarks.items():
            plain = str(name).isprintable() and 0 < len(str(name).encode()) <= MOST_BYTES
            if not plain or Path(str(name)).name != str(name):
                raise ValueError(f"{path}: the name of a benchmark must be that of a file, got {name!r:.80}")
            if name == "mean":  # of the benchmarks, in tables and files
                raise ValueError(f"{path}: a benchmark must have another name than 'mean'")
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


def evaluate_suite(options: argparse.Namespace) -> Report:
    """Measures and prints every model on every benchmark, their means, how they differ, and which one is best.

    With `--output` FOLDER, completions go to FOLDER/MODEL/BENCHMARK.jsonl as they are drawn, from which an interrupted
    evaluation continues. FOLDER also gets pass_at_1.json, results.json, and index.html with a table and a plot.

    Args:
        options: Those of `trb eval`.

    Returns:
        The figures of all models.

    Raises:
        ValueError: A suite, model, prompts or verifier cannot be used, or a file is of another evaluation.
        OSError: One of them cannot be read or written.
        EngineFailed: An engine failed; the same command continues.
    """
    # 1. Read the suite, its verifiers and its prompts, and check them.
    for name in ("prompts", "verifier", "split"):
        if getattr(options, name) is not None:
            raise ValueError(f"--{name} is the suite's to say: leave it out with --suite")
    suite = Suite.read(options.suite)
    if options.benchmarks is not None:
        suite = suite.only(options.benchmarks)
    questions = [_questions(name, suite, options) for name in suite.benchmarks]
    # 2. Look at all models and their records, before the first is measured.
    models = list(dict.fromkeys(map(_normal, options.model)))
    asked: dict[str, list[Questions]] = {}
    outputs: dict[str, dict[str, Path] | None] = {}
    folders: dict[str, str] = {}
    for model in models:
        folder = _folder(model)
        if folders.setdefault(folder, model) != model and options.output is not None:
            raise ValueError(f"models must have records in folders of their own, got {folders[folder]} and {model}")
        check_model_folder(model_path(model), "model")
        settings = model_settings(model)
        asked[model] = [dataclasses.replace(each, settings={**each.settings, **settings}) for each in questions]
        outputs[model] = None
        if options.output is not None:
            outputs[model] = {each.name: options.output / folder / f"{each.name}.jsonl" for each in questions}
            for each in asked[model]:
                check_record(options.output / folder / f"{each.name}.jsonl", each.record_settings(""), {"decoder"})
    # 3. Measure each model on all benchmarks.
    outcomes: dict[str, dict[str, Outcome]] = {}
    weights: dict[str, str | None] = {}
    with closing(subjects_of(options)) as subjects:
        for model in models:
            subject = subjects.load(model, asked[model])
            outcomes[model] = measure(asked[model], subject.prompt_ids, subject.decoder, outputs[model])
            weights[model] = subject.weights()
            found = Report.of({model: outcomes[model]}, {})
            for name, outcome in outcomes[model].items():
                print(f"{model} {name}: {summary(found, model, name, outcome)}", flush=True)
            print(f"{model}: {found.checkpoints[model].tokens_per_second:.0f} tokens/s", flush=True)
    # 4. Write and print the figures of all.
    report = Report.of(outcomes, weights)
    if options.output is not None:
        report.write(options.output)
        write_page(report, options.output)
    Console().print(_table(report))
    for sentence in sentences(report):
        print(sentence)
    return report


def _questions(name: str, suite: Suite, options: argparse.Namespace) -> Questions:
    """Reads the prompts of a benchmark, and checks that its verifier can judge them."""
    benchmark = suite.benchmarks[name]
    verifier = verifier_by_name(benchmark.verifier)
    prompts = load_prompts(
        benchmark.prompts,
        split=benchmark.split,
        column=benchmark.prompt_column,
        answer_column=benchmark.answer_column,
        system_prompt=suite.system_prompt,
        limit=options.limit,
    )
    check_verifier(verifier, prompts, benchmark.verifier)
    settings = {**dataclasses.asdict(benchmark), "system_prompt": suite.system_prompt}
    del settings["samples"]  # each completion has its own seed: an evaluation may continue with more
    return Questions(
        name=name,
        source=benchmark.prompts,
        prompts=prompts,
        verifier=verifier,
        samples=options.samples or benchmark.samples,
        max_completion_length=options.max_completion_length or suite.max_completion_length,
        seed=options.seed,
        template=suite.chat_template_kwargs,
        settings=settings | {"chat_template_kwargs": suite.chat_template_kwargs},
    )


def _check_fields(path: Path, what: str, kind: Any, settings: object) -> None:
    if not isinstance(settings, Mapping):
        raise ValueError(f"{path}: {what} must hold fields and values, got {settings!r}")
    known = [each.name for each in dataclasses.fields(kind)]
    for name in settings:
        if name not in known:
            raise ValueError(f"{path}: fields of {what} are {', '.join(known)}, got {name!r}")
    for name in TEXT & set(settings):
        value = settings[name]
        default = next(each.default for each in dataclasses.fields(kind) if each.name == name)
        if value is None and default is not None:
            remedy = "" if default is dataclasses.MISSING else ": leave its line out for the default"
            raise ValueError(f"{path}: {name} of {what} must be text, got null{remedy}")
        if value is not None and not isinstance(value, str):
            yaml_reads = "must be text, got" if isinstance(value, (list, dict)) else "is text, which YAML reads as"
            quote = "" if isinstance(value, (list, dict)) else ": quote it"
            raise ValueError(f"{path}: {name} of {what} {yaml_reads} {value!r}{quote}")


def _normal(model: str) -> str:
    """Returns the shortest spelling of a path to a model's folder, and another name as it is."""
    normal = os.path.normpath(model)
    return normal if os.path.isdir(model) and os.path.isdir(normal) and os.path.samefile(model, normal) else model


def _folder(model: str) -> str:
    """Returns a name for the folder of a model's records; one that others could have too, or too long, has a digest."""
    bare = model.strip("/.")
    name = bare.replace("/", "--").replace(":", "-")
    shared = "--" in model or bare != model or (":" in model and not model.startswith("demo:"))
    if not name or shared or len(name.encode()) > MOST_BYTES:
        end = name.encode()[-MOST_BYTES // 2 :].decode(errors="ignore")
        name = f"{end}-{hashlib.sha256(model.encode()).hexdigest()[:8]}"
    return name


def _table(report: Report) -> Table:
    table = Table(title="pass@1 with 95 % intervals over prompts")
    table.add_column("")
    for name in [*report.completions, "mean"]:
        table.add_column(escape(name), justify="right")
    for model, found in report.checkpoints.items():
        cells = [interval(values["pass@1"]) for values in found.benchmarks.values()]
        table.add_row(escape(model), *cells, interval(found.mean))
    return table
