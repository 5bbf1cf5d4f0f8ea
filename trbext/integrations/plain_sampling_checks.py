"""Refuses options of `generate` that would sample another distribution than the one the KL budget holds for."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Any

from ..rollout.plain_sampling import PLAIN_SAMPLING

# Options of a generation config that change the distribution, with the values at which each has no effect.
PLAIN: dict[str, tuple[Any, ...]] = {
    **PLAIN_SAMPLING,
    "top_h": (None,),
    "guidance_scale": (1.0, None),
    "min_length": (0, None),
    "min_new_tokens": (0, None),
    "exponential_decay_length_penalty": (None,),
    "encoder_no_repeat_ngram_size": (0, None),
    "bad_words_ids": (None,),
    "suppress_tokens": (None, []),
    "begin_suppress_tokens": (None, []),
    "sequence_bias": (None,),
    "forced_bos_token_id": (None,),
    "forced_eos_token_id": (None,),
    "stop_strings": (None,),
    "max_time": (None,),
    "watermarking_config": (None,),
    "dola_layers": (None,),
}
_DEFAULT_TOP_K = 50  # transformers sets it unless a model or the caller says otherwise


def check_plain_sampling(generation_config: Any, *, student: Any = None) -> float:
    """Checks that a generation config samples the whole softmax at a temperature.

    Args:
        generation_config: Of transformers.
        student: The model whose `generate` will fill the fields that are None: from the model's own generation config,
            and then with transformers' defaults, of which `top_k` is 50. None: they are filled already.

    Returns:
        The temperature.

    Raises:
        ValueError: It does not; names the option and how to set it.
    """
    own = getattr(student, "generation_config", None)

    def value(name: str) -> Any:
        given = getattr(generation_config, name, None)
        return getattr(own, name, None) if given is None else given

    for reason in _altered(value, default_top_k=student is not None):
        raise ValueError(reason)
    temperature = value("temperature")
    return 1.0 if temperature is None else float(temperature)


def check_no_processors(processors: Iterable[Any]) -> None:
    """Checks that nothing changes the logits but their temperature.

    Raises:
        ValueError: A processor would; names its class.
    """
    for processor in processors:
        name = type(processor).__name__
        if name not in ("TemperatureLogitsWarper", "InfNanRemoveLogitsProcessor"):
            raise ValueError(
                f"a blended rollout samples mu itself, and the logits processor {name} would change it: leave it out"
            )


def _altered(value: Callable[[str], Any], *, default_top_k: bool) -> Iterator[str]:
    if not value("do_sample"):
        yield "a blended rollout is sampled: set do_sample=True in the generation config"
    if default_top_k and value("top_k") is None:
        yield (
            f"top_k is not set, for which generate takes {_DEFAULT_TOP_K} and the KL budget would be that of another "
            "distribution: set top_k=0 in the generation config"
        )
    for name, plain in PLAIN.items():
        if value(name) not in plain:
            remedy = (
                "leave it out, here and in the model's"
                if plain[0] is None
                else f"set {name}={plain[0]!r} in the generation config"
            )
            yield (
                f"{name}={value(name)!r} changes the distribution that is sampled, and the KL budget would be that of "
                f"another one: {remedy}"
            )
