"""Builds the command line of a vLLM server that only this process asks for completions of one model."""

from __future__ import annotations

import sys
from collections.abc import Sequence

import torch

from ..server.flags import REFUSED, Refused, check_flags, value_of
from .endpoints import PLUGIN
from .worker import CHECKPOINT_WORKER

SERVED = "trb-eval"  # the model's name in the server, whichever checkpoint it has
PLUGINS = {"vllm.general_plugins": "trbext", "vllm.endpoint_plugins": PLUGIN}

_PRIVATE = "the server is trb's own, with an address and a key that it chooses"
_LAW = "completions are drawn from the model's whole softmax"
_SEEDS = "each completion has a seed, which decides nothing about drafts"
_ADAPTER = "completions would be those of an adapter: merge it into the model, save that, and evaluate it"
_STALE = "it would bring back keys and values of the checkpoint before"
_REACHED = "every replica must be behind one API server, which loads the weights of them all"
# As for a TRB server, for the same reasons or for one of these.
REFUSED_HERE: dict[str, Refused] = {
    **dict.fromkeys(("served-model-name", "host", "port", "uds", "api-key", "ssl-keyfile", "ssl-certfile"),
                    Refused(_PRIVATE)),
    "model": Refused("the models are those before --"),
    "config": REFUSED["config"],
    "worker-extension-cls": REFUSED["worker-extension-cls"],
    "generation-config": Refused(_LAW, harmless=("vllm",)),
    "override-generation-config": Refused(_LAW, harmless=("{}",)),
    "logits-processors": Refused(_LAW),
    **{name: Refused(_SEEDS, short=REFUSED[name].short)
       for name in ("speculative-config", "spec-method", "spec-model", "spec-tokens")},
    **dict.fromkeys(("enable-lora", "lora-modules"), Refused(_ADAPTER)),
    **dict.fromkeys(("kv-transfer-config", "kv-offloading-size"), Refused(_STALE)),
    **{name: Refused(_REACHED, REFUSED[name].harmless, REFUSED[name].short)
       for name in ("api-server-count", "headless", "data-parallel-rank", "data-parallel-hybrid-lb",
                    "data-parallel-external-lb", "data-parallel-multi-port-external-lb", "enable-elastic-ep")},
    "grpc": Refused("trb eval speaks HTTP"),
}  # fmt: skip
# Of vLLM's flags, those on which the probabilities of a model depend.
NUMBERS = {
    "--revision": (),
    "--load-format": (),
    "--dtype": (),
    "--quantization": ("-q",),
    "--kv-cache-dtype": (),
    "--hf-overrides": (),
    "--model-impl": (),
}


def command(model: str, *, dtype: str, longest: int, port: int, flags: Sequence[str] = ()) -> list[str]:
    """Returns the command line of the server.

    Args:
        model: A folder or a name on the Hub.
        dtype: In which it computes.
        longest: Tokens of the longest prompt and its completion.
        port: On this machine.
        flags: Further ones of vLLM's; those that are given here replace ours.

    Raises:
        ValueError: A flag is refused.
    """
    check_flags(flags, REFUSED_HERE, whose="to trb eval --engine vllm")
    ours = {
        "--model": model,
        "--served-model-name": SERVED,
        "--host": "127.0.0.1",
        "--port": str(port),
        "--dtype": dtype,
        "--max-model-len": str(longest),
        "--generation-config": "vllm",
        "--worker-extension-cls": CHECKPOINT_WORKER,
    }
    words = [sys.executable, "-m", "vllm.entrypoints.openai.api_server"]
    for name, value in ours.items():
        if value_of(flags, name) is None:
            words += [name, value]
    if not torch.accelerator.is_available():
        # vLLM takes back what it has drawn for a prompt that it computes in parts. A seeded generator of a CPU cannot
        # go back, so the engine would die as soon as the prompts do not fit into one step.
        words.append("--no-enable-chunked-prefill")
    return [*words, "--disable-uvicorn-access-log", *flags]


def decoder_name(flags: Sequence[str]) -> str:
    """Returns the name of the way of decoding: vllm, and the flags on which the probabilities depend."""
    given: dict[str, str] = {}
    for at, word in enumerate(flags):
        written, equals, value = word.partition("=")
        name = _meant(written)
        if name is not None:
            given[name] = value if equals else " ".join(flags[at + 1 : at + 2])
    order = {name: at for at, name in enumerate(NUMBERS)}
    names = sorted(given, key=lambda name: (order[name.partition(".")[0]], name))
    return " ".join(["vllm", *(f"{name} {given[name]}" for name in names)])


def _meant(word: str) -> str | None:
    """The whole name of the flag of `NUMBERS` that a word names, as vLLM reads it: --flag.key, or its first letters."""
    if not word.startswith("--"):
        return next((name for name, short in NUMBERS.items() if word in short), None)
    flag, dot, key = word.partition(".")
    flag = flag.replace("_", "-")
    meant = [name for name in NUMBERS if name.startswith(flag) and flag != "--"]
    return meant[0] + dot + key if meant else None
