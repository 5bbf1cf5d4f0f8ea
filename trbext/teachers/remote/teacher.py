"""Asks a server which tokens its model finds most probable after each of many prefixes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

from ...errors import EngineFailed, UsageError
from ...top_k import TopK
from ...vocab import Alignment
from .dialects import WRONG_FORM, Prefixes, Row, dialect_of
from .http_session import HTTPSession
from .served_model import check_tokenizer, served_models
from .top_log_probs import aligned_log_probs, aligned_tokens, aligned_top

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedTokenizerBase

TOP_K = 20  # the most that a vLLM server tells unless it was started with a larger --max-logprobs
PREFIXES_PER_REQUEST = 256
SEQUENCES_PER_REQUEST = 8  # whose answers have a distribution for every token
REQUESTS_AT_A_TIME = 8


class RemoteTeacher:
    """A teacher on a server of completions (vLLM, SGLang), of which the log-probs of the top k tokens are known.

    A rollout asks for the token after each prefix, and not for the log-probs of a prompt: the server's prefix cache
    then holds all but the last tokens, while log-probs of a prompt make vLLM compute the whole prompt again. The
    prefixes of all drafts and rows travel together. Completions that are whole are scored as prompts, once.

    Args:
        url: http://HOST:PORT of the server.
        model: One of the server's models; None is its only one.
        top_k: Tokens whose log-probs are asked for.
        tokenizer: The student's; the server's must make the same ids of two texts. None leaves this unchecked.
        api_key: The server's key; None is that of TRB_TEACHER_API_KEY in the environment. It is neither printed nor
            stored.
        timeout: Seconds to wait for an answer.
        tries: How often a request is sent before the run ends with an error.
        eos_token_ids: Ids with which the teacher ends a sequence beside the student's own; servers do not tell them.

    Raises:
        UsageError: The server lacks the model, refuses the key or `top_k`, or there is no server at the URL.
        VocabularyMismatch: The server's tokenizer makes other ids.
    """

    vocab_size = 2**31 - 1  # unknown: tokens that the student lacks leave (`aligned_top`)

    def __init__(
        self,
        url: str,
        *,
        model: str | None = None,
        top_k: int = TOP_K,
        tokenizer: PreTrainedTokenizerBase | None = None,
        api_key: str | None = None,
        timeout: float = 300.0,
        tries: int = 8,
        eos_token_ids: Sequence[int] = (),
    ) -> None:
        self.eos_token_ids = tuple(eos_token_ids)
        if top_k < 1:
            raise UsageError(f"top_k of a remote teacher must be at least 1, got {top_k}")
        self.top_k = top_k
        self._session = HTTPSession(url, api_key=api_key, timeout=timeout, tries=tries)
        self.url = self._session.url
        about = self._choose(model)
        self.model: str = about["id"]
        longest = about.get("max_model_len")
        self.longest: int | None = int(longest) if longest else None  # tokens of a prefix and the one after it
        self._dialect = dialect_of(str(about.get("owned_by", "")))
        if tokenizer is not None:
            check_tokenizer(self._session, self.model, tokenizer, "the student")
        self._next([[0]], [0])  # a server that does not tell top_k log-probs refuses now and not in the first step

    def __repr__(self) -> str:
        return f"RemoteTeacher({self.url!r}, model={self.model!r}, top_k={self.top_k})"

    def next_tokens(self, prefixes: Sequence[Sequence[int]], alignment: Alignment) -> TopK:
        """Asks for the distribution of the next token at each prefix, as `TopKTeacher` says.

        Raises:
            EngineFailed: The server gives no answer, or one that makes no sense.
            UsageError: A prefix is longer than the server takes, or the server refuses the request.
        """
        self._check_lengths(prefixes)
        rows = self._in_parts(prefixes, [0] * len(prefixes), self._next, PREFIXES_PER_REQUEST)
        # The sampled token may come on top of the most probable ones.
        return aligned_top(rows, alignment, self.top_k + 1)

    def log_probs_of(self, prefixes: Sequence[Sequence[int]], ids: Tensor, alignment: Alignment) -> Tensor:
        """Asks for the log-probs of given next tokens at each prefix, as `TokenScorer` says.

        vLLM takes one prefix per request, and at most 128 tokens; SGLang takes many.

        Raises:
            EngineFailed: As `next_tokens`, and if the server tells other tokens than it was asked for.
            UsageError: As `next_tokens`.
        """
        self._check_lengths(prefixes)
        wanted = aligned_tokens(ids, alignment)
        rows = self._in_parts(prefixes, wanted, self._tokens, self._dialect.token_prefixes)
        return aligned_log_probs(rows, ids, alignment)

    def score(self, sequences: Sequence[Sequence[int]], starts: Sequence[int], alignment: Alignment) -> TopK:
        """Asks for the distributions of the tokens of whole sequences, as `TopKTeacher` says.

        Raises:
            EngineFailed: As `next_tokens`.
            UsageError: As `next_tokens`.
        """
        self._check_lengths(sequences)
        rows = self._in_parts(sequences, starts, self._scores, SEQUENCES_PER_REQUEST)
        return aligned_top(rows, alignment, self.top_k + 1)

    def _in_parts(
        self,
        lists: Sequence[Sequence[int]],
        about: Sequence[Any],
        ask: Callable[[Prefixes, Sequence[Any]], list[Row]],
        size: int,
    ) -> list[Row]:
        parts = [(lists[i : i + size], about[i : i + size]) for i in range(0, len(lists), size)]
        with ThreadPoolExecutor(min(REQUESTS_AT_A_TIME, max(1, len(parts)))) as pool:
            return [row for rows in pool.map(lambda part: ask(*part), parts) for row in rows]

    def _next(self, prefixes: Prefixes, _: Sequence[int]) -> list[Row]:
        answer = self._answer(self._dialect.ask_next(self.model, prefixes, self.top_k))
        return self._read(lambda: self._dialect.read_next(answer), len(prefixes))

    def _tokens(self, prefixes: Prefixes, ids: Prefixes) -> list[Row]:
        answer = self._answer(self._dialect.ask_tokens(self.model, prefixes, ids))
        return self._read(lambda: self._dialect.read_tokens(answer), len(prefixes))

    def _scores(self, sequences: Prefixes, starts: Sequence[int]) -> list[Row]:
        answer = self._answer(self._dialect.ask_scores(self.model, sequences, self.top_k))
        count = sum(len(sequence) - start for sequence, start in zip(sequences, starts, strict=True))
        return self._read(lambda: self._dialect.read_scores(answer, sequences, starts), count)

    def _answer(self, body: dict[str, Any]) -> Any:
        return self._session.answer("POST", self._dialect.path, body)

    def _read(self, read: Callable[[], list[Row]], count: int) -> list[Row]:
        try:
            rows = read()
        except WRONG_FORM as error:
            raise EngineFailed(
                f"the teacher at {self.url} answered {self._dialect.path} in another form than "
                f"{type(self._dialect).__name__} has ({type(error).__name__}: {error})"
            ) from error
        if len(rows) != count:
            raise EngineFailed(f"the teacher at {self.url} answered with {len(rows)} of {count} distributions")
        return rows

    def check_length(self, longest: int) -> None:
        """Checks that the server takes rows of `longest` tokens, and one that it writes when it scores them.

        Raises:
            UsageError: It does not.
        """
        self._check_lengths([range(longest)])  # of which only the length is looked at

    def _check_lengths(self, lists: Sequence[Sequence[int]]) -> None:
        if self.longest is None or all(len(one) < self.longest for one in lists):
            return
        raise UsageError(
            f"the teacher at {self.url} takes {self.longest} tokens, and a prefix has {max(map(len, lists))} beside "
            "the next one: shorten max_completion_length, or start the server with a longer --max-model-len"
        )

    def _choose(self, model: str | None) -> dict[str, Any]:
        served = served_models(self._session)
        names = ", ".join(served) or "none"
        if model is None:
            if len(served) != 1:
                raise UsageError(f"name the teacher's model: the server at {self.url} has {names}")
            model = next(iter(served))
        if model not in served:
            raise UsageError(f"the server at {self.url} has no model {model!r}: it has {names}")
        return served[model]
