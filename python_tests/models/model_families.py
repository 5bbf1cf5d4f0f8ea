"""Tries every family of causal LMs that transformers can build tiny from a config, and judges what trbext does with it.

    python -m python_tests.models.model_families [FAMILY ...]     the rows of these, or of all
    python -m python_tests.models.model_families --write          docs/models.md anew

A family is "right" if each recorded number equals that of an uncached forward of its row by itself, or if its refusal
is shown. Weights are random, layers two; a class is judged by what its code does, not by its size.
"""

from __future__ import annotations

import argparse
import re
import sys
import time
import warnings
from pathlib import Path
from typing import Any

import torch
import transformers
from transformers import AutoModelForCausalLM
from transformers.models.auto.configuration_auto import CONFIG_MAPPING
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

from python_tests.rollout.rollout_cases import left_padded
from trbext.models.completion_states import completion_states
from trbext.models.lm_head import lm_head
from trbext.rollout import Rollout, UnsupportedModel, check_model, lockstep, speculative
from trbext.vocab import Alignment

PAGE = Path(__file__).resolve().parents[2] / "docs" / "models.md"
VOCABULARY = 11
TOLERANCE = 1e-4  # nats
PROMPTS = left_padded([3, 4, 5, 6], [7], [8, 9])

# A config may call its sizes by any of these names.
SMALL: dict[str, Any] = {
    **dict.fromkeys(("hidden_size", "d_model", "n_embd", "dim"), 16),
    **dict.fromkeys(("intermediate_size", "ffn_dim", "n_inner", "d_ff", "moe_intermediate_size"), 16),
    **dict.fromkeys(("num_hidden_layers", "n_layer", "n_layers", "num_layers", "decoder_layers"), 2),
    **dict.fromkeys(("num_attention_heads", "n_head", "n_heads", "decoder_attention_heads", "num_heads"), 2),
    **dict.fromkeys(("max_position_embeddings", "n_positions", "n_ctx", "max_seq_len"), 64),
    **dict.fromkeys(("num_experts", "num_local_experts", "n_routed_experts"), 4),
    "vocab_size": VOCABULARY,
    "num_key_value_heads": 1,
    "head_dim": 8,
    "num_experts_per_tok": 2,
    "sliding_window": 4,
    "is_decoder": True,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
LATENT = {
    "qk_rope_head_dim": 4, "qk_nope_head_dim": 4, "qk_head_dim": 8, "v_head_dim": 8, "kv_lora_rank": 8,
    "q_lora_rank": 8, "head_dim": 4, "num_key_value_heads": 2,
}  # fmt: skip
ONE_GROUP = {"n_group": 1, "topk_group": 1}
INDEXER = {"index_n_heads": 2, "index_head_dim": 8, "index_topk": 4}
STATE = {"mamba_n_heads": 4, "mamba_d_head": 8, "mamba_d_state": 8, "mamba_n_groups": 1}
MIXED = ["linear_attention", "full_attention"]
LINEAR = {
    "linear_num_key_heads": 2, "linear_num_value_heads": 2, "linear_key_head_dim": 8, "linear_value_head_dim": 8,
    "layer_types": MIXED,
}  # fmt: skip
SPECIAL: dict[str, dict[str, Any]] = {
    "axk2": LATENT,
    "bailing_hybrid": LATENT | {"layer_types": MIXED, "linear_head_dim": 8, "linear_num_heads": 2},
    "bamba": STATE | {"attn_layer_indices": [1]},
    "codegen": {"rotary_dim": 4},
    "deepseek_v2": LATENT | ONE_GROUP,
    "deepseek_v3": LATENT | ONE_GROUP,
    "deepseek_v32": LATENT | INDEXER | ONE_GROUP,
    "diffllama": {"num_key_value_heads": 2},
    "dots1": {"n_shared_experts": 1},
    "falcon_h1": {"mamba_d_ssm": 16, "mamba_n_heads": 2, "mamba_d_head": 8, "mamba_d_state": 8, "mamba_chunk_size": 8},
    "gemma3n_text": {
        "hidden_size_per_layer_input": 4, "num_kv_shared_layers": 0, "vocab_size_per_layer_input": 11,
        "laurel_rank": 4, "layer_types": ["sliding_attention", "full_attention"],
        "activation_sparsity_pattern": [0.0, 0.0],
    },
    "gemma4_text": {"hidden_size_per_layer_input": 4, "vocab_size_per_layer_input": 11, "global_head_dim": 8},
    "glm4_moe_lite": LATENT,
    "glm_moe_dsa": LATENT | INDEXER,
    "gpt_neo": {"num_layers": 2, "attention_types": [[["global", "local"], 1]], "window_size": 4},
    "gptj": {"rotary_dim": 4},
    "granitemoehybrid": STATE | {"layer_types": MIXED},
    "jamba": {"attn_layer_period": 2, "attn_layer_offset": 1},
    "kimi_linear": LATENT | {"layer_types": MIXED, "linear_head_dim": 8, "linear_num_heads": 2},
    "lfm2_moe": {"layer_types": ["conv", "full_attention"], "num_dense_layers": 1},
    "longcat_flash": LATENT | {"zero_expert_num": 2, "expert_ffn_hidden_size": 16, "ffn_hidden_size": 16},
    "mamba2": {"num_heads": 4, "head_dim": 8, "state_size": 8, "n_groups": 1},
    "minicpm3": LATENT,
    "phi3": {"original_max_position_embeddings": 64},
    "nemotron_h": {"mamba_num_heads": 2, "mamba_head_dim": 8, "ssm_state_size": 8, "n_groups": 1, "chunk_size": 8},
    "qwen3_5": LINEAR,
    "qwen3_5_moe": LINEAR,
    "qwen3_5_moe_text": LINEAR,
    "qwen3_5_text": LINEAR,
    "qwen3_next": LINEAR,
    "recurrent_gemma": {"num_hidden_layers": 3},
    "roc_bert": {
        "shape_vocab_size": 11, "pronunciation_vocab_size": 11, "shape_embed_dim": 8, "pronunciation_embed_dim": 8,
    },
    "sarvam_mla": LATENT | ONE_GROUP,
    "xmod": {"default_language": "en_XX"},
    "youtu": LATENT,
    "zaya": {"num_experts_per_tok": 1},
}  # fmt: skip
# Their eager attention adds a mask whose lowest float64 number is -inf in the float32 of its softmax.
IN_FLOAT32 = ("bloom", "gemma2", "granite_swa", "granitemoe_swa", "mpt", "vaultgemma")


def families() -> list[str]:
    return list(MODEL_FOR_CAUSAL_LM_MAPPING_NAMES)


def build(family: str, seed: int = 0) -> Any:
    """Builds a tiny random model in float64; raises any error if the config's defaults prevent it."""
    plain = CONFIG_MAPPING[family]()
    text = plain.get_text_config(decoder=True)
    known = {*text.to_dict(), *text.attribute_map}
    arguments = {name: value for name, value in SMALL.items() if name in known} | SPECIAL.get(family, {})
    if text is plain:
        config = CONFIG_MAPPING[family](**arguments)
    else:
        name = next(name for name, value in vars(plain).items() if value is text)
        config = CONFIG_MAPPING[family](**{name: type(text)(**arguments)})
    with torch.device("meta"):
        size = sum(parameter.numel() for parameter in AutoModelForCausalLM.from_config(config).parameters())
    if size > 3e6:
        raise ValueError(f"{size} parameters at the least")
    torch.manual_seed(seed)
    model = AutoModelForCausalLM.from_config(config)
    for switch, value in (("set_attn_implementation", "sdpa"), ("set_experts_implementation", "eager")):
        try:
            getattr(model, switch)(value)
        except (AttributeError, ValueError, TypeError, ImportError, NotImplementedError):
            continue
    for parameter in model.parameters():
        if parameter.dim() > 1:
            parameter.data *= 8  # fresh weights hardly tell one prefix from another
    model = model.to(torch.float32 if family in IN_FLOAT32 else torch.float64).eval()
    with torch.no_grad():
        logits = model(input_ids=torch.arange(3, 10)[None], use_cache=False).logits
    if not logits.isfinite().all():
        raise ValueError("no finite logits")
    return model


def judged(family: str) -> tuple[str, str, str, str] | None:
    """Returns the class, and the judgments of rollouts, drafts and the loss: "right" or the reason that it is not; None
    for a family that cannot be built tiny."""
    try:
        student, teacher = build(family, 1), build(family, 2)
    except Exception:
        return None
    found = [type(student).__name__]
    for decode in (True, False):
        try:
            for name, model in (("student", student), ("teacher", teacher)):
                check_model(model, name, decode=decode, loss=not decode)
        except UnsupportedModel as error:
            found.append(_reason(error, found[0]))
            found += [""] * decode
            continue
        if decode:
            found.append(_of_rollout(student, teacher, lockstep(student, teacher, *PROMPTS, **_settings())))
            with warnings.catch_warnings(record=True) as told:
                warnings.simplefilter("always")
                rollout = speculative(student, teacher, *PROMPTS, **_settings(), draft_length=3)
            fallen_back = [str(one.message) for one in told if "decoding in lockstep" in str(one.message)]
            of_drafts = _of_rollout(student, teacher, rollout)
            found.append(f"lockstep: {_because(fallen_back[0])}" if fallen_back and of_drafts == "right" else of_drafts)
        else:
            found.append(_of_loss(student))
    return tuple(found)  # type: ignore[return-value]


def _settings() -> dict[str, Any]:
    return {
        "epsilon": 0.1,
        "max_new_tokens": 8,
        "alignment": Alignment(VOCABULARY, (2,), (2,)),
        "pad_token_id": 0,
        "generator": torch.Generator().manual_seed(0),
    }


def _of_rollout(student: Any, teacher: Any, rollout: Rollout) -> str:
    worst = 0.0
    for row in range(len(PROMPTS[0])):
        prompt, length = PROMPTS[0][row][PROMPTS[1][row].bool()], int(rollout.lengths[row])
        tokens = rollout.tokens[row, :length]
        for model, recorded in ((student, rollout.student_log_prob), (teacher, rollout.teacher_log_prob)):
            with torch.no_grad():
                logits = model(input_ids=torch.cat([prompt, tokens])[None], use_cache=False).logits[0]
            expected = logits[len(prompt) - 1 : -1].log_softmax(-1).gather(1, tokens[:, None])[:, 0]
            worst = max(worst, float((recorded[row, :length] - expected).abs().max()))
    return "right" if worst < TOLERANCE else f"WRONG by {worst:.1e} nats"


def _of_loss(model: Any) -> str:
    head, worst = lm_head(model), 0.0
    kept = PROMPTS[0].shape[1] - 1
    with torch.no_grad():
        states = completion_states(model, *PROMPTS, kept)
        for row, length in enumerate(PROMPTS[1].sum(1).tolist()):
            logits = model(input_ids=PROMPTS[0][row, -length:][None], use_cache=False).logits[0, :-1]
            if length > 1:
                found = head(states[row, kept - length + 1 :])
                worst = max(worst, float((found.log_softmax(-1) - logits.log_softmax(-1)).abs().max()))
    return "right" if worst < TOLERANCE else f"WRONG by {worst:.1e} nats"


def _reason(error: Exception, kind: str) -> str:
    text = str(error).split(f" {kind} ", 1)[1].split(". Use another model")[0]
    measured = r",? (and those of the loss differ )?by \S+ of their spread"
    return "refused: " + re.sub(measured, "", text).replace("|", "/")


def _because(warning: str) -> str:
    return re.sub(r"by \S+ of their spread", "", warning.split(": ", 1)[1].split(" and ")[0].split(" ", 1)[1]).strip(
        " ,"
    )


def row_of(family: str, found: tuple[str, str, str, str]) -> str:
    return f"| {family} | {' | '.join(found)} |"


HEADER = """# Models

Before the first rollout `TRBTrainer`, `lockstep`, `speculative` and the commands that use them check each model once.
A row by itself, without padding and without a cache, tells what its logits are. The model must give the row the same
logits again beside another row, with padding, from a KV cache, and by the lm_head as the loss applies it. A model that
fails is refused by one line with its class and the reason, and never decoded wrongly. `check_models: false`
(`check=False` in Python) turns the check off.

These are refused as well: encoder-decoders, masked LMs (they read later tokens), models on the meta device,
prompt-tuned models, weights sharded by FSDP2 outside `trbext.rollout.unsharded`, by FSDP1 or by ZeRO-3 that nobody has
gathered, a teacher that shares trained weights with the student (other than [its base](teachers.md)), and rows that
grow past a change of their rotary factors (`rope_type` longrope or dynamic).

The loss moves every row to the left before its forward, so that padding only follows tokens. Absolute positions and
recurrent states are then those of the row by itself, in every family.

`python -m python_tests.models.model_families --write` makes this table, here with transformers {version}, of each
causal LM that it can build tiny from a config. It computes in float64 (in float32 for Bloom, Gemma 2, Granite SWA, MPT
and VaultGemma, whose eager attention overflows in float64). It tries ragged left-padded prompts, rollouts in lockstep,
k = 3 drafts, and the states of the loss. "right" means within 1e-4 nats of an uncached forward of each row by itself.
"lockstep: ..." gives the reason that drafts fall back to lockstep, which is right too. BERT and its relatives are built
with is_decoder.

| family | class | rollouts | drafts | loss |
|---|---|---|---|---|
"""


def page() -> str:
    rows, missing = [], []
    for family in families():
        begin = time.perf_counter()
        found = judged(family)
        rows.append(row_of(family, found)) if found else missing.append(family)
        print(f"{time.perf_counter() - begin:5.1f} s  {family}  {found}", file=sys.stderr, flush=True)
    text = HEADER.format(version=transformers.__version__) + "\n".join(rows)
    untried = "These cannot be built tiny, so they were not tried here; the start-up check tries them"
    return f"{text}\n\n{untried}: {', '.join(missing)}.\n"


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("families", nargs="*", help="families to judge; all of them by default")
    parser.add_argument("--write", action="store_true", help="write docs/models.md anew, of all families")
    options = parser.parse_args(arguments)
    warnings.filterwarnings("ignore")
    transformers.logging.set_verbosity_error()
    torch.set_num_threads(1)
    if options.write:
        PAGE.write_text(page(), encoding="utf-8")
        return
    for family in options.families or families():
        print(family, judged(family))


if __name__ == "__main__":
    main()
