"""Asks a server which models it has, and whether its tokenizer is the one that its client uses."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from ...errors import EngineFailed, UsageError
from ...vocab import VocabularyMismatch
from .http_session import HTTPSession

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

PROBED_TOKENS = 200  # of the client's vocabulary, in the texts that both tokenizers must read alike


def served_models(session: HTTPSession) -> dict[str, dict[str, Any]]:
    """Returns what a server says of each of its models, by name.

    Raises:
        UsageError: Nothing answers, or the server refuses to tell.
    """
    try:
        answer = session.answer("GET", "/v1/models")
    except EngineFailed as error:
        raise UsageError(f"no {session.role.name} is served at {session.url}: {error}") from None
    listed = answer.get("data") if isinstance(answer, dict) else None
    return {str(one["id"]): one for one in listed or [] if isinstance(one, dict) and "id" in one}


def check_tokenizer(session: HTTPSession, model: str, tokenizer: PreTrainedTokenizerBase, whose: str) -> None:
    """Checks that a server makes the same ids of two texts from all over the vocabulary.

    Args:
        session: Of the server.
        model: One of its models.
        tokenizer: The client's.
        whose: It is, for messages.

    Raises:
        UsageError: The server does not tell.
        VocabularyMismatch: It makes other ids.
    """
    name = session.role.name
    for text in probe_texts(tokenizer):
        body = {"model": model, "prompt": text, "add_special_tokens": False}
        status, answer = session.send("POST", "/tokenize", body)
        if status != 200 or not isinstance(answer, dict) or "tokens" not in answer:
            raise UsageError(
                f"the {name} at {session.url} does not say how it tokenizes (/tokenize: status {status}), so nothing "
                f"shows that its ids are those of {whose}: use a server that does"
            )
        own = tokenizer(text, add_special_tokens=False)["input_ids"]
        if list(answer["tokens"]) != list(own):
            raise VocabularyMismatch(
                f"the {name} {model} at {session.url} has another tokenizer than {whose}: of {text[:19]!r} "
                f"it makes {answer['tokens'][:8]}, and {whose} {own[:8]}"
            )


def probe_texts(tokenizer: PreTrainedTokenizerBase) -> list[str]:
    """Returns two texts of tokens from all over a vocabulary: another tokenizer makes other ids of them."""
    special = set(tokenizer.all_special_ids)
    ids = [token for token in range(len(tokenizer)) if token not in special]
    chosen = ids[:: max(1, len(ids) // PROBED_TOKENS)]
    # Parts of a character are no text.
    return [str(tokenizer.decode(part)).replace("\ufffd", "") for part in (chosen[::2], chosen[1::2])]
