"""Labels each token of a rollout: a draft of the student that was accepted, or the token that replaced one.

A behavior policy mu is the student pi_S with some of its tokens replaced, by the maximal coupling of the two: the
student drafts x ~ pi_S, which is accepted with probability min(1, mu(x) / pi_S(x)), and what is rejected is replaced by
a draw from max(mu - pi_S, 0). `verify` decodes in this way, and its verdicts are the labels. A token that was drawn
from mu at once gets its label afterwards: it is accepted with probability min(1, pi_S(x) / mu(x)). Both give the same
joint law, P(x, accepted) = min(mu(x), pi_S(x)), so a label means the same however a rollout was decoded. A token is
replaced with probability TV(mu, pi_S).

The labels of tokens drawn at once need a random number each. These come from a stream of their own, so that the tokens
of a rollout are what they would be without labels.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import torch
from torch import Tensor


def event_uniforms(
    generator: torch.Generator | Sequence[torch.Generator] | None, tokens: int, rows: int, device: torch.device
) -> Tensor:
    """Draws the random numbers of the labels, without advancing the generator of the tokens.

    Args:
        generator: Of the rollout, before its first random number was drawn; one, one per row, or None for the default
            generator of `device`.
        tokens: The longest completion.
        rows: Of the rollout.
        device: Of the numbers.

    Returns:
        [tokens, rows] float64 in [0, 1), which depend on the state of the generator and on nothing else.
    """
    if isinstance(generator, Sequence):
        streams = [_own_stream(one.get_state()) for one in generator]
        numbers = [torch.rand(tokens, dtype=torch.float64, generator=stream) for stream in streams]
        return torch.stack(numbers, -1).to(device)
    stream = _own_stream(_default_state(device) if generator is None else generator.get_state())
    return torch.rand((tokens, rows), dtype=torch.float64, generator=stream).to(device)


def accepted_drafts(uniforms: Tensor, log_prob: Tensor, student_log_prob: Tensor) -> Tensor:
    """Labels tokens that were drawn from mu: True for a draft of the student that was accepted.

    Args:
        uniforms: `[...]` float64 in [0, 1), independent of the tokens.
        log_prob: `[...]` log mu of the tokens, nats.
        student_log_prob: `[...]` log pi_S of the tokens, nats.

    Returns:
        `[...]` bool: u mu(x) < pi_S(x). All are True if mu = pi_S.
    """
    return uniforms < (student_log_prob.double() - log_prob.double()).exp()


def stream_of(seed: int) -> torch.Generator:
    """Returns the stream of labels of a rollout that is known by its seed, such as an engine's."""
    return _seeded(str(seed).encode())


def _own_stream(state: Tensor) -> torch.Generator:
    # The state is on the host for every device, so nothing waits. A hash of it shares no number with the generator.
    return _seeded(state.numpy().tobytes())


def _seeded(source: bytes) -> torch.Generator:
    digest = hashlib.blake2b(source, digest_size=8, person=b"trb events").digest()
    return torch.Generator().manual_seed(int.from_bytes(digest, "little") >> 1)


def _default_state(device: torch.device) -> Tensor:
    if device.type == "cpu":
        return torch.get_rng_state()
    module = torch.get_device_module(device)
    state: Tensor = module.get_rng_state() if device.type == "mps" else module.get_rng_state(device)
    return state
