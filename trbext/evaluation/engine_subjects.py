"""Prepares models that a server decodes: the user's server, or vLLM's, which is started here."""

from __future__ import annotations

import json
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from transformers import AutoConfig

from ..data.demo_models import model_path
from ..models.adapters import base_of
from ..models.loading import check_model_folder, load_tokenizer
from ..models.positions import position_limit
from ..vllm.completions.command import SERVED, decoder_name
from ..vllm.completions.process import CompletionServer
from ..vllm.server.flags import value_of
from ..vllm.server.stored_alignment import align_stored
from ..vllm.weights import weight_files
from .measure import Questions
from .server_decoder import IN_FLIGHT, ServerDecoder
from .subjects import Subject

logger = logging.getLogger(__name__)

# Of a configuration: who wrote it, from where. Two models that differ in nothing else can share an engine.
NOT_OF_ARCHITECTURE = {"_name_or_path", "transformers_version"}


@dataclass(frozen=True)
class StoredSubject:
    """What a client has to know of a model; no weight is read for it."""

    path: str  # a folder or a name on the Hub
    config: Any
    tokenizer: Any
    prompt_ids: dict[str, list[list[int]]]  # of each benchmark's prompts
    longest: int  # tokens of the longest prompt and its completion
    stop: tuple[int, ...]  # ids that end a completion: those that the trainer stops at

    @classmethod
    def read(cls, name: str, benchmarks: Sequence[Questions]) -> StoredSubject:
        """Reads a model's configuration and tokenizer, and encodes and checks its prompts.

        Args:
            name: A folder, a name on the Hub, or a built-in model.
            benchmarks: What it will be asked.

        Raises:
            ValueError: It cannot be read, is an adapter, or a prompt cannot be used with it.
        """
        path = model_path(name)
        check_model_folder(path, "model")
        base = base_of(path)
        if base is not None:
            raise ValueError(
                f"the model {name} is a PEFT adapter of {base}, and an engine takes whole models: merge it (peft's "
                "AutoPeftModelForCausalLM.from_pretrained, merge_and_unload, save_pretrained), or leave out the engine"
            )
        tokenizer = load_tokenizer(path, "model")
        alignment = align_stored(path, path)
        config = AutoConfig.from_pretrained(path)
        positions = position_limit(config)
        prompt_ids = {benchmark.name: benchmark.encoded(tokenizer, positions) for benchmark in benchmarks}
        longest = max(max(map(len, prompt_ids[each.name])) + each.max_completion_length for each in benchmarks)
        return cls(path, config, tokenizer, prompt_ids, longest, (alignment.stop, *alignment.duplicates))

    def architecture(self) -> str:
        """Returns what two models must have in common to share an engine: configuration and tokenizer."""
        config = {name: value for name, value in self.config.to_dict().items() if name not in NOT_OF_ARCHITECTURE}
        backend = getattr(self.tokenizer, "backend_tokenizer", None)
        tokenizer = backend.to_str() if backend is not None else self.path
        return json.dumps([config, tokenizer, self.stop], sort_keys=True, default=str)


class ServedModel:
    """The model of a server that the user has started.

    Args:
        url: http://HOST:PORT of the server.
        in_flight: Requests under way at a time; None is 512.
    """

    def __init__(self, url: str, in_flight: int | None) -> None:
        self._url, self._in_flight = url, in_flight or IN_FLIGHT

    def load(self, name: str, benchmarks: Sequence[Questions]) -> Subject:
        """See `Subjects`."""
        stored = StoredSubject.read(name, benchmarks)
        decoder = ServerDecoder(
            self._url, model=stored.path, tokenizer=stored.tokenizer, stop=stored.stop, in_flight=self._in_flight
        )
        decoder.check_length(stored.longest)
        return Subject(stored.prompt_ids, decoder)

    def close(self) -> None:
        """Leaves the server as it is."""


class OwnEngine:
    """A vLLM engine that is started here, and into which one checkpoint after the other is loaded.

    A model of another architecture or tokenizer, or one that is no folder with safetensors files, gets a new engine.

    Args:
        flags: Of vLLM.
        in_flight: Requests under way at a time; None is 512, or twice vLLM's --max-num-seqs if that is more.
    """

    def __init__(self, flags: Sequence[str], in_flight: int | None) -> None:
        self._flags = flags
        at_a_time = value_of(flags, "--max-num-seqs") or ""
        self._in_flight = in_flight or max(IN_FLIGHT, 2 * int(at_a_time) if at_a_time.isdecimal() else 0)
        self._server: CompletionServer | None = None
        self._holds: tuple[str, int] | None = None  # architecture and length of the engine's models

    def load(self, name: str, benchmarks: Sequence[Questions]) -> Subject:
        """See `Subjects`."""
        stored = StoredSubject.read(name, benchmarks)
        server = self._with_weights_of(stored)
        decoder = ServerDecoder(
            server.url,
            model=SERVED,
            tokenizer=stored.tokenizer,
            stop=stored.stop,
            in_flight=self._in_flight,
            api_key=server.key,
            gone=server.gone,
            name=decoder_name(self._flags),
        )
        decoder.check_length(stored.longest)
        return Subject(stored.prompt_ids, decoder, server.digest)

    def _with_weights_of(self, stored: StoredSubject) -> CompletionServer:
        architecture = stored.architecture()
        if self._server is not None and self._holds is not None:
            same, longest = self._holds[0] == architecture, self._holds[1]
            if same and stored.longest <= longest and _has_weight_files(stored.path):
                self._server.load(stored.path)
                return self._server
            self.close()
        logger.warning("starting vLLM with %s", stored.path)
        self._server = CompletionServer(
            stored.path, dtype=_dtype(stored.config), longest=stored.longest, flags=self._flags
        )
        self._holds = architecture, stored.longest
        return self._server

    def close(self) -> None:
        """Ends the engine."""
        if self._server is not None:
            server, self._server, self._holds = self._server, None, None
            server.close()


def _has_weight_files(path: str) -> bool:
    try:
        return bool(weight_files(path))
    except FileNotFoundError:
        return False


def _dtype(config: Any) -> str:
    """Returns the precision in which a model is stored, as our own decoder computes; vLLM's own rule rounds float32."""
    found = getattr(config, "dtype", None)
    return "auto" if found is None else str(found).removeprefix("torch.")
