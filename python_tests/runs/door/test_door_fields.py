"""Every invalid field of a configuration is refused in one line. A new fault is a new row of a table."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from python_tests.runs.door.refusals import refusal, write
from trbext.runs.settings import parse_run

EVALUATED = {
    **{"eval_prompts": "prompts.jsonl", "eval_strategy": "steps", "eval_steps": 1},
    **{"save_strategy": "steps", "save_steps": 1, "load_best_model_at_end": True},
}
FIELDS: list[tuple[dict[str, Any], str]] = [
    ({"trb_epsilon": [0.1]}, "trb_epsilon must be one value, got the list [0.1]"),
    ({"trb_epsilon": {"a": 1}}, "trb_epsilon must be one value, got the mapping"),
    ({"trb_epsilon": None}, "trb_epsilon must have a value, got null"),
    ({"trb_epsilon": -1e-5}, "trb_epsilon must be a KL budget in nats, 0 <= epsilon <= inf, got -1e-05"),
    ({"trb_epsilon": True}, "trb_epsilon must be a number, got true"),
    (
        {"rollout_policy": "student", "generation_kwargs": {"num_return_sequences": 2}},
        "generation_kwargs['num_return_sequences'] must be 1, got 2: a step decodes one completion per prompt",
    ),
    (
        {"rollout_policy": "student", "generation_kwargs": {"eos_token_id": 5}},
        "generation_kwargs['eos_token_id'] must be None, got 5: completions end at the EOS ids of both models",
    ),
    (
        {"rollout_policy": "student", "generation_kwargs": {"stop_strings": ["7"]}},
        "generation_kwargs['stop_strings'] must be None, got ['7']: completions end at the EOS ids of both models",
    ),
    (
        {"auto_find_batch_size": True},
        "auto_find_batch_size must be false, got True: the rollouts of a step are made fo",
    ),
    ({"ignore_data_skip": True}, "ignore_data_skip must be false, got True: a resumed run repeats its own steps, on"),
    ({"max_steps": 2.5}, "invalid int value: '2.5'"),
    ({"output_dir": 2026}, "output_dir is text, which YAML reads as 2026: quote it"),
    ({"system_prompt": True}, "system_prompt is text, which YAML reads as True: quote it"),
    ({"prompt_column": 16}, "prompt_column is text, which YAML reads as 16: quote it"),
    ({"lr_scheduler_type": 1}, "lr_scheduler_type is text, which YAML reads as 1: quote it"),
    ({"report_to": [1]}, "report_to is a list of text, of which YAML reads an entry as 1: quote it"),
    ({"chat_template_kwargs": "{a"}, "a mapping on the command line is written as JSON, got '{a'"),
    (
        {"chat_template_kwargs": {"chat_template": "{{ messages }}"}},
        "chat_template_kwargs must hold options of the tokenizer's template, got 'chat_template': save the tokenizer",
    ),
    (
        {"chat_template_kwargs": {"chat_template": "{{ messages }}"}, "system_prompt": "Be brief."},
        "chat_template_kwargs must hold options of the tokenizer's template, got 'chat_template': save the tokenizer",
    ),
    ({"chat_template_kwargs": {"tokenize": True}}, "must hold options of the template, got 'tokenize', which is TRL's"),
    ({"chat_template_kwargs": {1: 2}}, "chat_template_kwargs must have names that are text, got 1"),
    ({"gradient_checkpointing_kwargs": "[1]"}, "gradient_checkpointing_kwargs must be a mapping, got '[1]'"),
    ({"model_init_kwargs": "[1]"}, "model_init_kwargs must be a mapping, got '[1]'"),
    ({"model_init_kwargs": '"abc"'}, "model_init_kwargs must be a mapping, got '\"abc\"'"),
    ({"accelerator_config": "void.json"}, "accelerator_config must be a mapping or a JSON file that holds one, got 'v"),
    (
        {"accelerator_config": "prompts.jsonl"},
        "accelerator_config must be a mapping or a JSON file that holds one, got",
    ),
    ({"accelerator_config": ""}, "accelerator_config must be a mapping or a JSON file that holds one, got ''"),
    ({"lr_scheduler_kwargs": ""}, "lr_scheduler_kwargs must be a mapping, got ''"),
    (
        {"gradient_checkpointing": True, "gradient_checkpointing_kwargs": {"a": 1}},
        "gradient_checkpointing_kwargs must hold options of context_fn, debug, ",
    ),
    ({"dataloader_num_workers": 1025}, "dataloader_num_workers must be a whole number from 0 to 1024, got 1025"),
    (
        {"dataloader_persistent_workers": True},
        "dataloader_persistent_workers needs dataloader_num_workers of at least 1, got 0",
    ),
    ({"trb_schedule": "piecewise", "trb_schedule_points": {0: 0.05, 2.5: 0}}, "each whole step once, got {0: 0.05, 2."),
    ({"accelerator_config": {"splits": 1}}, "unexpected keyword argument 'splits'"),
    ({"per_device_train_batch_size": 0}, "per_device_train_batch_size must be a whole number of at least 1, got 0"),
    ({"per_device_eval_batch_size": 0}, "per_device_eval_batch_size must be a whole number of at least 1, got 0"),
    ({"gradient_accumulation_steps": 0}, "gradient_accumulation_steps must be a whole number of at least 1, got 0"),
    ({"learning_rate": -1}, "learning_rate must be a number >= 0, and finite, got -1"),
    ({"learning_rate": float("nan")}, "learning_rate must be a number >= 0, and finite, got nan"),
    ({"learning_rate": float("inf")}, "learning_rate must be a number >= 0, and finite, got inf"),
    ({"weight_decay": float("nan")}, "weight_decay must be a number >= 0"),
    ({"max_grad_norm": float("nan")}, "max_grad_norm must be a number >= 0"),
    ({"beta": float("nan")}, "beta must be a number from 0 to 1, got nan"),
    ({"neftune_noise_alpha": float("nan")}, "neftune_noise_alpha must be a number >= 0, and finite, got nan"),
    ({"adam_beta2": 1}, "adam_beta2 must be a number with 0 <= x < 1, got 1.0"),
    ({"max_steps": 0}, "max_steps must be a whole number of at least 1, or -1 for num_train_epochs, got 0"),
    ({"max_steps": -1, "num_train_epochs": 0}, "num_train_epochs must be a number > 0, and finite, got 0.0"),
    ({"save_steps": 0}, "save_steps must be a number > 0"),
    ({"logging_steps": -1}, "logging_steps must be a number > 0"),
    ({"seed": -1}, "seed must be a whole number with 0 <= x < 2^32, got -1"),
    ({"temperature": 0}, "temperature must be a number from 1e-6 to 1e6, got 0.0"),
    ({"temperature": 1e-39}, "temperature must be a number from 1e-6 to 1e6, got 1e-39"),
    ({"temperature": 1e7}, "temperature must be a number from 1e-6 to 1e6, got 10000000.0"),
    ({"temperature": float("inf")}, "temperature must be a number from 1e-6 to 1e6, got inf"),
    ({"rollout_policy": "student", "top_p": 0}, "top_p must be a share with 0 < top_p <= 1, got 0.0"),
    ({"prompts_limit": 0}, "prompts_limit must be a whole number of at least 1, got 0"),
    ({"eval_prompts_limit": -1}, "eval_prompts_limit must be a whole number of at least 1, got -1"),
    ({"max_prompt_length": 0}, "max_prompt_length must be a whole number of at least 1, got 0"),
    ({"lr_scheduler_type": "cosine_with_min_lr"}, "lr_scheduler_kwargs {} do not fit lr_scheduler_type"),
    (
        {"lr_scheduler_type": "cosine", "lr_scheduler_kwargs": {"cycles": 2}},
        "do not fit lr_scheduler_type 'cosine': get_cosine_schedule_with_warmup() got an unexpected keyword argument",
    ),
    ({"optim": "adamw_bnb_8bit"}, "optim 'adamw_bnb_8bit' cannot be used here"),
    ({"optim": "galore_adamw"}, "optim 'galore_adamw' cannot be used here: You need to install `galore_torch`"),
    ({"report_to": "clearml"}, "report_to: clearml cannot be used here"),
    ({"report_to": ["clearml"]}, "report_to: clearml cannot be used here"),
    ({"report_to": "nobody"}, "report_to must be none, all, or of"),
    ({"report_to": ["none", "all"]}, "report_to must be none, all, or of"),
    ({1: 2}, "names must be text, got 1: quote it"),
    (
        {"loss_top_k": 65},
        "loss_top_k must be at most the 64 tokens that the models share, got 65: leave it out for the",
    ),
    (
        EVALUATED | {"metric_for_best_model": "nonsense"},
        "metric_for_best_model must be one of eval_loss, eval_runtime, eval_samples_per_second, eval_steps_per_second, "
        "got 'nonsense'",
    ),
    (
        EVALUATED | {"metric_for_best_model": "eval_entropy", "eval_verifier": "numeric"},
        "eval_pass@1, eval_pass@1_runtime, eval_pass@1_tokens_per_second, eval_verifier_errors, got 'eval_entropy'",
    ),
    (EVALUATED | {"metric_for_best_model": "pass@1"}, "metric_for_best_model pass@1 needs eval_verifier, which judges"),
    (
        {"resume_from_checkpoint": "run/checkpoint-1"},
        "is no field of a run, which continues from its last checkpoint wit",
    ),
]


@pytest.mark.parametrize(("change", "message"), FIELDS, ids=lambda value: str(value) if isinstance(value, dict) else "")
def test_a_field_that_cannot_be_is_refused(
    change: dict[Any, Any], message: str, config: dict[str, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    assert message in refusal(capsys, "train", write(config | change))


def test_values_that_begin_with_a_dash_are_no_options(
    config: dict[str, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    path = write(config)
    for words in (["--trb_epsilon", "-1e-5"], ["--trb_epsilon=-1e-5"], ["--trb_epsilon", "-.00001"]):
        assert "trb_epsilon must be a KL budget in nats, 0 <= epsilon <= inf, got -1e-05" in refusal(
            capsys, "train", path, *words
        )
    assert "must be a number >= 0, and finite, got -inf" in refusal(capsys, "train", path, "--learning_rate", "-inf")
    arguments, parsed, _ = parse_run(Path(write(config, system_prompt="-x", output_dir="-runs")), [])
    assert (arguments.system_prompt, parsed.output_dir) == ("-x", "-runs")


def test_null_is_unset_if_a_field_may_be_unset_and_lists_and_mappings_keep_their_types(config: dict[str, Any]) -> None:
    options = {"enable_thinking": "5", "n": 5}
    path = write(
        config, eval_verifier=None, report_to=[], chat_template_kwargs=options, eval_strategy=False, label_names=["a"]
    )
    _, parsed, settings = parse_run(Path(path), [])
    assert (parsed.eval_verifier, parsed.report_to, parsed.eval_strategy.value) == (None, [], "no")
    assert (parsed.chat_template_kwargs, parsed.label_names) == (options, ["a"])
    assert settings["eval_verifier"] is None
    assert parse_run(Path(write(config, report_to=None)), [])[1].report_to == []
