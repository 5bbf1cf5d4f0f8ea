"""Defines the words of the `trb` command line: its commands, their options and help texts."""

from __future__ import annotations

import argparse
import os
from collections.abc import Sequence
from pathlib import Path
from typing import NoReturn, TypeAlias

from ..errors import USAGE_ERROR

# Options that are no fields of a run, and how many words they take.
OPTIONS_BESIDE_FIELDS = {
    "train": {"--resume": "", "--fields": "", "--help": ""},
    "probe": {"--epsilon": "many", "--lengths": "many", "--limit": "one", "--output": "one", "--help": ""},
}
Subparsers: TypeAlias = "argparse._SubParsersAction[_OneLineParser]"


def parse(words: Sequence[str]) -> tuple[argparse.Namespace, list[str]]:
    """Parses the words of a command line.

    Args:
        words: The command and what follows it.

    Returns:
        The options, and the words of `trb train` and `trb probe` that set fields of their configuration.

    Raises:
        SystemExit: The words are wrong (exit code 2, one line on standard error) or ask for help (exit code 0).
    """
    words, rest = _split(list(words))
    words, fields = _fields_apart(_joined(words))
    options, others = parser().parse_known_args(words)
    fields += others
    if options.command in ("vllm-serve", "eval"):
        options.vllm_flags = rest
    else:
        fields += rest
    if fields and options.command not in ("train", "probe"):
        parser().error(f"unrecognized arguments: {' '.join(fields)}")
    return options, fields


class _OneLineParser(argparse.ArgumentParser):
    """Reports a wrong command line in one line; --help prints the usage, which has several."""

    def error(self, message: str) -> NoReturn:
        self.exit(USAGE_ERROR, f"trb: {message} ({self.prog} --help says more)\n")


def parser() -> argparse.ArgumentParser:
    """Returns the parser of `trb`, with one subparser per command."""
    parser = _OneLineParser(
        prog="trb", description="Trust-Region Behavior Blending: on-policy distillation with KL-budgeted rollouts."
    )
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    _add_train(commands)
    _add_eval(commands)
    _add_compare(commands)
    _add_probe(commands)
    _add_plot(commands)
    _add_demo(commands)
    _add_vllm_serve(commands)
    _add_vllm_check(commands)
    commands.add_parser("info", help="versions, the build, and the places of files")
    return parser


def _add_train(commands: Subparsers) -> None:
    train = commands.add_parser(
        "train",
        help="distill a student",
        description="Distill a student as CONFIG.yaml says. Every field of the file can be given as --field value.",
        epilog="`trb train --fields` lists all fields with units and defaults. On several processes: "
        "torchrun --nproc_per_node 2 -m trbext train CONFIG.yaml",
    )
    train.add_argument("config", nargs="?", type=Path, metavar="CONFIG.yaml", help="fields and their values")
    train.add_argument(
        "--resume",
        action="store_const",
        const=True,
        default=False,
        help="continue the run in output_dir from its last checkpoint; --resume auto: begin it if there is none",
    )
    train.add_argument("--resume=auto", dest="resume", action="store_const", const="auto", help=argparse.SUPPRESS)
    train.add_argument("--fields", action="store_true", help="list every field and exit")


def _add_eval(commands: Subparsers) -> None:
    evaluate = commands.add_parser(
        "eval",
        usage="trb eval MODEL ... (--prompts PROMPTS --verifier VERIFIER | --suite SUITE) [OPTION ...] [-- FLAG ...]",
        help="pass@1 of a model by sampling",
        description="Sample completions of a model at temperature 1 and report pass@1, on one set of prompts or, of "
        "several checkpoints, on all those of a suite.",
    )
    evaluate.add_argument(
        "model", nargs="+", help="a folder (also of a PEFT adapter), a model of the Hub, demo:student or demo:teacher"
    )
    evaluate.add_argument("--prompts", help="demo:eval, a file, or a dataset of the Hub")
    evaluate.add_argument("--verifier", help="numeric, math, demo, or module:function")
    evaluate.add_argument("--suite", type=Path, help="benchmarks, each with its samples; see recipes/suites/paper.yaml")
    evaluate.add_argument("--benchmarks", nargs="+", metavar="NAME", help="of the suite, only these")
    evaluate.add_argument("--split", help="split of a Hub dataset (default: test)")
    evaluate.add_argument("--limit", type=_positive, help="use the first so many prompts (default: all)")
    evaluate.add_argument("--samples", type=_positive, help="completions per prompt (default: 1, or the suite's)")
    evaluate.add_argument(
        "--max-completion-length", type=_positive, help="tokens per completion (default: 512, or the suite's)"
    )
    evaluate.add_argument(
        "--batch-size",
        type=_positive,
        help="completions decoded at a time; of an engine, requests under way (default: 32; of an engine 512)",
    )
    evaluate.add_argument(
        "--engine",
        choices=["vllm"],
        help="draw with an engine that is started here and ends with the command; flags after -- go to vLLM. "
        "Checkpoints of one architecture share it",
    )
    evaluate.add_argument(
        "--engine-url",
        metavar="URL",
        help="draw from a server of completions that has the model (vLLM, SGLang), such as http://localhost:8000; its "
        "key is read from TRB_ENGINE_API_KEY",
    )
    evaluate.add_argument("--seed", type=int, default=0, help="of the sampling (default: %(default)s)")
    evaluate.add_argument(
        "--output",
        type=_path,
        help="write completions and judgments to this .jsonl, of a suite to this folder; an interrupted evaluation "
        "resumes",
    )


def _add_compare(commands: Subparsers) -> None:
    compare = commands.add_parser(
        "compare",
        help="runs x seeds of one YAML, and which differences are resolved",
        description="Train every run of STUDY.yaml with every seed, several at a time, and report learning curves, "
        "costs and paired differences with intervals as results.csv, figures/ and index.html in its output_dir. "
        "The same command continues a study that was stopped.",
    )
    compare.add_argument("config", type=Path, metavar="STUDY.yaml", help="see recipes/study-countsort.yaml")
    compare.add_argument("--report", action="store_true", help="run nothing, report what is finished")


def _add_probe(commands: Subparsers) -> None:
    probe = commands.add_parser(
        "probe",
        help="what TRB's rollouts are worth before training, by KL budget",
        description="Roll out within KL budgets and as vanilla OPD, cut the rollouts at some lengths, let the teacher "
        "or the student finish them, and compare how often the result is right. Fields as in trb train.",
    )
    probe.add_argument("config", type=Path, metavar="CONFIG.yaml", help="a configuration of trb train")
    probe.add_argument("--epsilon", type=float, nargs="+", help="KL budgets, nats per token (default: the run's)")
    probe.add_argument("--lengths", type=_positive, nargs="+", help="of prefixes, tokens (default: quarters)")
    probe.add_argument(
        "--limit",
        type=_positive,
        help="prompts to use, held-out ones if the run has any (default: its eval_prompts_limit, or 256)",
    )
    probe.add_argument("--output", type=_path, help="folder (default: runs/CONFIG-probe)")


def _add_plot(commands: Subparsers) -> None:
    plot = commands.add_parser(
        "plot",
        help="plot the curves of runs, or one rollout token by token",
        description="Plot the curves of runs or, with --rollout, one completion of a run before and after "
        "training, each token colored by the beta with which it was drawn.",
    )
    plot.add_argument("runs", nargs="+", type=Path, metavar="RUN", help="a run folder of `trb train`")
    plot.add_argument(
        "--rollout", action="store_true", help="plot a rollout of the one RUN, which may also be a CONFIG.yaml"
    )
    plot.add_argument("--prompt", type=int, default=0, help="of the rollout, counted from 0 (default: %(default)s)")
    plot.add_argument("--epsilon", type=float, help="its KL budget, nats per token (default: the run's at step 0)")
    plot.add_argument("--output", type=_path, default=Path("plot.png"), help=".png or .svg (default: %(default)s)")


def _add_demo(commands: Subparsers) -> None:
    demo = commands.add_parser(
        "demo",
        help="see TRB at work on a small task, in about a minute",
        description="Distill a small student on a built-in counting-sort task, once with vanilla on-policy "
        "distillation and once with TRB, and compare them in a table and a plot.",
    )
    demo.add_argument(
        "--output", type=_path, default=Path("runs/demo"), help="folder for runs and plot (default: %(default)s)"
    )
    demo.add_argument("--steps", type=_positive, default=240, help="optimizer steps of each run (default: %(default)s)")
    demo.add_argument("--epsilon", type=float, default=0.5, help="KL budget at step 0, nats (default: %(default)s)")
    demo.add_argument(
        "--draft_length",
        "--draft-length",
        default="0",
        help="tokens the student drafts ahead for one pass of the teacher: auto, 0 for lockstep, or a number; the law "
        "of the rollouts is the same, but auto measures the clock, so that no two runs are quite the same (default: "
        "%(default)s)",
    )
    demo.add_argument("--seed", type=int, default=0, help="of prompts and sampling (default: %(default)s)")


def _add_vllm_serve(commands: Subparsers) -> None:
    serve = commands.add_parser(
        "vllm-serve",
        usage="trb vllm-serve --teacher MODEL --student MODEL [--draft-length K] [--print] [-- FLAG ...]",
        help="start a vLLM server that draws TRB rollouts",
        description="Start vLLM's API server with the teacher as its model and the student as its draft model, so that "
        "rollouts follow the behavior policy. Flags after -- go to vLLM, tensor and data parallelism among them; those "
        "under which tokens would follow another law are refused. The process becomes the server.",
        epilog="The server answers at the address of vLLM's --host and --port (default: every address of the machine, "
        "8000). `trb vllm-check URL` looks at it.",
    )
    serve.add_argument("--teacher", required=True, metavar="MODEL", help="a folder or a model of the Hub")
    serve.add_argument("--student", required=True, metavar="MODEL", help="a folder or a model of the Hub")
    serve.add_argument(
        "--draft-length",
        type=_positive,
        default=4,
        metavar="K",
        help="tokens the student drafts ahead for one pass of the teacher (default: %(default)s)",
    )
    serve.add_argument("--print", action="store_true", help="print the command and its environment, and start nothing")


def _add_vllm_check(commands: Subparsers) -> None:
    check = commands.add_parser(
        "vllm-check",
        help="look at a vLLM server of TRB rollouts, and draw a few",
        description="Print what a server of `trb vllm-serve` says of itself, draw a few short rollouts, and check that "
        "they follow the behavior policy. Not while another client draws from it.",
    )
    check.add_argument("url", metavar="URL", help="of the server, such as http://localhost:8000")
    check.add_argument(
        "--wait",
        type=_seconds,
        default=0.0,
        metavar="SECONDS",
        help="wait for a server that is starting (default: 0)",
    )


def _split(words: list[str]) -> tuple[list[str], list[str]]:
    """The words before and after the first `--`, which begins the flags of another program."""
    at = words.index("--") if "--" in words else len(words)
    return words[:at], words[at + 1 :]


def _fields_apart(words: list[str]) -> tuple[list[str], list[str]]:
    """Takes the fields of a run and their values out of the words of `trb train` and `trb probe`: argparse knows no
    field, and would take the value of the first one for CONFIG.yaml. The first word in .yaml is that file, also after
    --bf16 or --epsilon; it is put first."""
    command = words[0] if words else ""
    if command not in OPTIONS_BESIDE_FIELDS:
        return words, []
    own = OPTIONS_BESIDE_FIELDS[command]
    kept: list[str] = []
    fields: list[str] = []
    configured = False
    values = ""  # whose the next word is: a "field"'s, or that of an own option of "one" or "many"
    for word in words[1:]:
        name, given, _ = word.partition("=")
        of_command = [kind for option, kind in own.items() if option.startswith(name)]
        if word.startswith("--"):
            (kept if of_command else fields).append(word)
            values = "" if given else next(iter(of_command), "field")
        elif values == "one":
            kept.append(word)
            values = ""
        elif word.endswith((".yaml", ".yml")) and not configured:
            kept.insert(0, word)
            configured, values = True, ""
        elif values == "field" and word != "-h":
            fields.append(word)
        else:
            kept.append(word)
            configured |= values != "many" and word != "-h"
            values = values if values == "many" else ""
    return [command, *kept], fields


def _path(text: str) -> Path:
    """Returns a path with the home folder in the place of "~", as `trb train` reads output_dir."""
    return Path(os.path.expanduser(text))


def _joined(words: list[str]) -> list[str]:
    """Joins `--resume auto` to one word, because `--resume` takes no value: it would take CONFIG.yaml for one."""
    joined: list[str] = []
    for word in words:
        if word == "auto" and joined and joined[-1] == "--resume":
            joined[-1] = "--resume=auto"
        else:
            joined.append(word)
    return joined


def _positive(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"must be a whole number of at least 1, got {text!r}")
    return int(text)


def _seconds(text: str) -> float:
    try:
        seconds = float(text)
    except ValueError:
        seconds = -1.0
    if not 0 <= seconds < float("inf"):
        raise argparse.ArgumentTypeError(f"must be a number of seconds, at least 0, got {text!r}")
    return seconds
