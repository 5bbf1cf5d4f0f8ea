"""Defines the fields of policies with a memory: two models that take turns in writing a rollout."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from ...rollout.policies_with_memory import Relay, Switching
from ...rollout.policy import Policy

REFLECTION_WORDS = "Wait,But,Hmm,Actually,Hold,However,Yet,Oh,Alternatively,No,Ah,Oops,Well"  # Relay-OPD's


class RelayTokens(NamedTuple):
    """What the words of a relay are in the ids of a tokenizer; None of either is any token."""

    words: tuple[int, ...] | None
    boundary: tuple[int, ...] | None


@dataclass
class TurnFields:
    """Relay (after Relay-OPD) and switching (after DASH-OPD); rules are in `rollout/policies_with_memory.py`."""

    relay_words: str = field(
        default=REFLECTION_WORDS,
        metadata={
            "help": "For 'relay': words that redirect a text, separated by commas; the teacher takes over if its most "
            "probable token is one of them, in lower or upper case and with a space before it or not, and none is "
            "among the student's relay_top_k. Empty = any token."
        },
    )
    relay_top_k: int = field(
        default=5, metadata={"help": "For 'relay': the student's most probable tokens that are looked at."}
    )
    relay_legs: int = field(
        default=2, metadata={"help": "For 'relay': how often the teacher takes over; the last leg ends the rollout."}
    )
    relay_leg_length: int = field(
        default=3,
        metadata={"help": "For 'relay': boundaries up to which the teacher writes a leg; 0 = only its first token."},
    )
    relay_boundary: str = field(
        default="\n\n",
        metadata={
            "help": "For 'relay': a token with this text in it is a boundary, by default the end of a paragraph. "
            "Empty = every token."
        },
    )
    switching_turn_tokens: int = field(default=32, metadata={"help": "For 'switching': tokens of a turn."})
    switching_drift_threshold: float = field(
        default=1.0,
        metadata={"help": "For 'switching': evidence of drift above which the teacher takes over, nats."},
    )
    switching_drift_allowance: float = field(
        default=0.2,
        metadata={
            "help": "For 'switching': mean log pi_S - log pi_T of a turn of the student that is no evidence of drift."
        },
    )
    switching_recovery_threshold: float = field(
        default=0.1,
        metadata={"help": "For 'switching': evidence of recovery above which the student takes over, nats."},
    )
    switching_recovery_allowance: float = field(
        default=0.2,
        metadata={
            "help": "For 'switching': mean log pi_T - log pi_S of a turn of the teacher below which there is evidence "
            "of recovery."
        },
    )

    def read_tokenizer(self, tokenizer: Any, width: int) -> None:
        """Looks up the words of a relay, without which it cannot be made.

        Args:
            tokenizer: The student's.
            width: Tokens that both models share.

        Raises:
            ValueError: The policy is a relay, and no word or boundary is a token of the student.
        """
        given: Any = self  # the other fields of a configuration are beside these
        if given.rollout_policy != "relay":
            return
        words = boundary = None
        if self.relay_words:
            words = ids_of_words(tokenizer, self.relay_words.split(","), width)
            if not words:
                raise ValueError(
                    f"relay_words must hold a word that is one token of the student, got {self.relay_words!r}; "
                    "name another, or leave it empty for any token"
                )
        if self.relay_boundary:
            texts = tokenizer.batch_decode([[token] for token in range(min(width, len(tokenizer)))])
            boundary = tuple(token for token, text in enumerate(texts) if self.relay_boundary in text)
            if not boundary:
                raise ValueError(
                    f"relay_boundary must be in the text of a token of the student, got {self.relay_boundary!r}; "
                    "leave it empty for every token"
                )
        self._relay_tokens = RelayTokens(words, boundary)

    def relay(self) -> Policy:
        """Makes the relay of these fields; before `read_tokenizer`, one that is never triggered."""
        tokens = getattr(self, "_relay_tokens", RelayTokens((), ()))
        return Relay(tokens.words, self.relay_top_k, self.relay_legs, self.relay_leg_length, tokens.boundary)

    def switching(self) -> Policy:
        """Makes the switching policy of these fields."""
        return Switching(
            self.switching_turn_tokens,
            self.switching_drift_threshold,
            self.switching_drift_allowance,
            self.switching_recovery_threshold,
            self.switching_recovery_allowance,
        )


def ids_of_words(tokenizer: Any, words: Sequence[str], width: int) -> tuple[int, ...]:
    """Returns the tokens below `width` that are one of the words, in any case, with a space before it or not."""
    variants = [space + form for word in words for form in _cases(word.strip()) for space in ("", " ")]
    encoded = (_encoded(tokenizer, text) for text in variants if text.strip())
    unknown = tokenizer.unk_token_id
    return tuple(sorted({ids[0] for ids in encoded if len(ids) == 1 and ids[0] < width and ids[0] != unknown}))


def _encoded(tokenizer: Any, text: str) -> list[int]:
    """Returns the ids of a text; none if the tokenizer cannot write it."""
    try:
        ids: list[int] = tokenizer.encode(text, add_special_tokens=False)
    except Exception:  # tokenizers raises no other kind for text outside a vocabulary without an unknown token
        return []
    return ids


def _cases(word: str) -> Iterable[str]:
    return dict.fromkeys((word, word.lower(), word.capitalize(), word.upper()))
