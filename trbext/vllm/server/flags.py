"""Refuses the flags of a vLLM server under which its rollouts would not follow mu, or not all of its replicas would."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Refused:
    """A flag, the values under which it does no harm, and why any other is refused."""

    reason: str
    harmless: tuple[str, ...] = ()
    short: str = ""


_STUDENT = "the student is the draft model: use --student and --draft-length"
_REPLICAS = "every replica must be behind one API server, which sets the budget and the weights of them all"
_LOST = "it would wake up without the weights that nobody syncs, the teacher's"
_STALE = "it would bring back keys and values of the student's old weights"
_UNHOOKED = "an engine that starts later would draw from the teacher"

REFUSED = {
    "model": Refused("the engine's model is the teacher: use --teacher"),
    "config": Refused("the flags of a file would not be checked: write them on the command line"),
    "speculative-config": Refused(_STUDENT, short="-sc"),
    "spec-method": Refused(_STUDENT),
    "spec-model": Refused(_STUDENT),
    "spec-tokens": Refused(_STUDENT),
    "worker-extension-cls": Refused("the worker extension is trbext's"),
    "worker-cls": Refused("trbext knows vLLM's own worker only", harmless=("auto",)),
    "scheduler-cls": Refused("trbext knows vLLM's own scheduler only"),
    "generation-config": Refused("the teacher's sampling defaults would change the law", harmless=("vllm",)),
    "override-generation-config": Refused("sampling defaults would change the law", harmless=("{}",)),
    "logits-processors": Refused("tokens follow mu only, so it would not be called"),
    "enable-sleep-mode": Refused(_LOST),
    "enable-lora": Refused("an adapter would change the teacher"),
    "lora-modules": Refused("an adapter would change the teacher"),
    "kv-transfer-config": Refused(_STALE),
    "kv-offloading-size": Refused(_STALE),
    "max-num-scheduled-tokens": Refused("requests would lose their drafts: use --max-num-batched-tokens"),
    "enable-batch-sharded-sampling": Refused("each worker must see the logits of the whole batch"),
    "pipeline-parallel-size": Refused("only the last stage has the logits", harmless=("1",), short="-pp"),
    "api-server-count": Refused(_REPLICAS, harmless=("1",), short="-asc"),
    "headless": Refused(_REPLICAS),
    "grpc": Refused("a TRB server speaks HTTP"),
    "data-parallel-rank": Refused(_REPLICAS, short="-dpn"),
    "data-parallel-hybrid-lb": Refused(_REPLICAS, short="-dph"),
    "data-parallel-external-lb": Refused(_REPLICAS, short="-dpe"),
    "data-parallel-multi-port-external-lb": Refused(_REPLICAS, short="-dpm"),
    "enable-elastic-ep": Refused(_UNHOOKED),
    "enable-fault-tolerance": Refused(_UNHOOKED),
}
# `trb vllm-serve` sets these itself; what came of them is checked in the workers (`check_settings`).
SET_BY_US = {"model", "speculative-config", "worker-extension-cls"}


def check_flags(
    words: Sequence[str], refused: Mapping[str, Refused] = REFUSED, *, whose: str = "to a TRB server"
) -> None:
    """Checks the vLLM flags of a command line.

    Args:
        words: As they would be given to vLLM, which also takes underscores, --flag=value, --flag.key value and the
            first letters of a flag.
        refused: The flags that cannot be given, by their names.
        whose: To what they cannot be given, for the message.

    Raises:
        ValueError: A flag is refused. Names it and says why.
    """
    for at, word in enumerate(words):
        written, equals, value = word.partition("=")
        found = _meant(written, refused)
        if found is None:
            continue
        if not equals:
            value = words[at + 1] if at + 1 < len(words) else ""
        if value not in refused[found].harmless:
            raise ValueError(f"{written} cannot be given {whose}: {refused[found].reason}")


def _meant(word: str, refused: Mapping[str, Refused]) -> str | None:
    """The refused flag that a word names, or may name by its first letters."""
    if not word.startswith("-") or word in ("-", "--"):
        return None
    if not word.startswith("--"):
        return next((flag for flag, one in refused.items() if one.short == word), None)
    name = word[2:].partition(".")[0].replace("_", "-")
    if name in refused:
        return name
    return next((flag for flag in refused if flag.startswith(name)), None)


def check_parsed(arguments: Any) -> None:
    """Checks what vLLM's own parser made of a command line, a file or the environment.

    Args:
        arguments: vLLM's Namespace.

    Raises:
        RuntimeError: A flag is refused. Names it and says why.
    """
    for flag, refused in REFUSED.items():
        value = getattr(arguments, flag.replace("-", "_"), None)
        if flag not in SET_BY_US and value and str(value) not in refused.harmless:
            raise RuntimeError(f"--{flag} {value} cannot be given to a TRB server: {refused.reason}")


def value_of(words: Sequence[str], *names: str) -> str | None:
    """The last value of a flag in a command line, or None.

    Args:
        words: Of the command line.
        names: Of the flag, as vLLM writes them: --max-num-seqs, say.
    """
    value = None
    for at, word in enumerate(words):
        written, equals, given = word.partition("=")
        if written.startswith("--"):
            written = written.replace("_", "-")
        if written in names:
            value = given if equals else (words[at + 1] if at + 1 < len(words) else None)
    return value
