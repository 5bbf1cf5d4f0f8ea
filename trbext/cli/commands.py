"""Runs the commands of `trb`: train, eval, compare, probe, plot, demo, vllm-serve, vllm-check and info.

Exit codes: 0 done, 1 a fault of the program or the machine, 2 a usage error (one line on stderr), 130 interrupted.
"""

from __future__ import annotations

import argparse
import os
import sys
import warnings
from collections.abc import Sequence

from ..errors import INSTALL_EXTRA, INTERRUPTED, UsageError
from ..runs.exit_codes import FAILED, exit_code, print_usage_error
from ..runs.standard_output import OutputClosed, discard, flush, is_of_output, named_output, print_anything
from ..runs.uncollected_imports import uncollected_imports
from .words import parse

# Packages of the extra [train], by the names that are imported: without them there are the operators and `trb info`.
OF_THE_EXTRA = {
    *("trl", "transformers", "accelerate", "datasets", "safetensors", "numpy", "yaml", "rich", "matplotlib", "scipy"),
    *("filelock", "jinja2", "requests"),
}


@named_output()
def main(arguments: Sequence[str] | None = None) -> int:
    """Runs one `trb` command.

    Args:
        arguments: The words after `trb`; those of the process if not given.

    Returns:
        The exit code.
    """
    # transformers' notices to library authors; a user of the command can do nothing about them.
    warnings.filterwarnings("ignore", category=FutureWarning, module=r"transformers\.")
    if not {"", os.getcwd()} & set(sys.path):
        sys.path.append(os.getcwd())  # the folder of a user's 'module:object'
    print_anything()
    options, fields = parse(sys.argv[1:] if arguments is None else arguments)
    # The commands import what they need when they run: `trb --help` must not wait for TRL.
    try:
        code = int(COMMANDS[options.command](options, fields))
        flush()
        return code
    except ModuleNotFoundError as error:
        package = (error.name or "").partition(".")[0]
        if package not in OF_THE_EXTRA:
            raise
        return print_usage_error(f"trb {options.command} needs {package}, which is not installed: {INSTALL_EXTRA}")
    except (OSError, OutputClosed) as error:
        if isinstance(error, OSError):
            if not is_of_output(error):
                raise
            discard()
            error = OutputClosed(error)
        if not error.quiet:
            print(f"trb: {error}", file=sys.stderr)
        return 0 if error.quiet else 1
    except KeyboardInterrupt:
        print("trb: interrupted", file=sys.stderr)
        return INTERRUPTED


def _train(options: argparse.Namespace, fields: list[str]) -> int:
    with uncollected_imports():
        from accelerate import PartialState

        from ..runs.lora_warmup import train_warmed_up
        from ..runs.printing import printing_survives
        from ..runs.settings import parse_run, print_fields
        from ..runs.train import print_summary

    if options.fields:
        print_fields()
        return 0

    def train() -> None:
        folder = train_warmed_up(*parse_run(options.config, fields), resume=options.resume)
        if PartialState().is_main_process:
            print_summary(folder)

    with printing_survives():
        return exit_code(train, to_continue="with --resume")


def _eval(options: argparse.Namespace, fields: list[str]) -> int:
    with uncollected_imports():
        from ..evaluation.command import evaluate_model
        from ..evaluation.suite import evaluate_suite

    evaluate = evaluate_model if options.suite is None else evaluate_suite
    return exit_code(lambda: evaluate(options), also_usage=(ValueError, OSError))


def _compare(options: argparse.Namespace, fields: list[str]) -> int:
    with uncollected_imports():
        from ..studies.compare.command import compare

    failures: list[str] = []
    code = exit_code(
        lambda: failures.extend(compare(options.config, report_only=options.report)), also_usage=(OSError,)
    )
    for failure in failures:
        print(f"trb: {failure}", file=sys.stderr)
    return code or (FAILED if failures else 0)


def _probe(options: argparse.Namespace, fields: list[str]) -> int:
    with uncollected_imports():
        from ..studies.probe.command import probe

    return exit_code(
        lambda: probe(
            options.config,
            fields,
            epsilons=options.epsilon,
            lengths=options.lengths,
            limit=options.limit,
            output=options.output,
        ),
        also_usage=(ValueError, OSError),
    )


def _plot(options: argparse.Namespace, fields: list[str]) -> int:
    with uncollected_imports():
        from ..runs.plot_command import plot_folders

    def plot() -> None:
        if not options.rollout:
            if options.prompt or options.epsilon is not None:
                raise UsageError("--prompt and --epsilon belong to --rollout")
            plot_folders(options.runs, options.output)
            return
        from ..runs.rollout_command import plot_rollout

        if len(options.runs) != 1:
            raise UsageError(f"--rollout plots one run, got {len(options.runs)}")
        plot_rollout(options.runs[0], options.output, prompt=options.prompt, epsilon=options.epsilon)

    return exit_code(plot, also_usage=(ValueError, OSError))


def _demo(options: argparse.Namespace, fields: list[str]) -> int:
    with uncollected_imports():
        from ..studies.demo import walk_through

    return exit_code(
        lambda: walk_through(
            options.output,
            steps=options.steps,
            epsilon=options.epsilon,
            seed=options.seed,
            draft_length=options.draft_length,
        ),
        also_usage=(ValueError,),
        to_continue="when the command is repeated",
    )


def _vllm_serve(options: argparse.Namespace, fields: list[str]) -> int:
    from ..vllm.server.serve import serve

    return exit_code(lambda: serve(options))


def _vllm_check(options: argparse.Namespace, fields: list[str]) -> int:
    from ..vllm.server.check import check

    return exit_code(lambda: check(options.url, wait=options.wait))


def _info(options: argparse.Namespace, fields: list[str]) -> int:
    from ..build_info import build_info

    for name, value in build_info().items():
        print(f"{name:20} {value}")
    return 0


COMMANDS = {
    "train": _train,
    "eval": _eval,
    "compare": _compare,
    "probe": _probe,
    "plot": _plot,
    "demo": _demo,
    "vllm-serve": _vllm_serve,
    "vllm-check": _vllm_check,
    "info": _info,
}
