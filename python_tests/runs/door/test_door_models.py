"""Models that cannot be loaded whole are refused in one line, wherever they are loaded."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from peft import AutoPeftModelForCausalLM, LoraConfig, get_peft_model
from safetensors.torch import load_file, save_file
from transformers import LlamaForCausalLM

from python_tests.models.tiny_models import prompts, saved, tiny_llama, tiny_tokenizer
from python_tests.runs.door.refusals import refusal, write
from trbext.cli import main
from trbext.models.loading import load_for_inference
from trbext.training.config import TRBConfig
from trbext.training.trainer import TRBTrainer

EVAL = ("--prompts", "prompts.jsonl", "--verifier", "numeric", "--limit", "2", "--max-completion-length", "4")


def renamed(tensors: dict[str, Any]) -> dict[str, Any]:
    return {f"_orig_mod.{name}": tensor for name, tensor in tensors.items()}


def without_a_matrix(tensors: dict[str, Any]) -> dict[str, Any]:
    return {name: tensor for name, tensor in tensors.items() if "gate_proj" not in name}


def of_more_layers(tensors: dict[str, Any]) -> dict[str, Any]:
    """Adds the tensors of further layers, as if num_hidden_layers had been lowered in config.json."""
    further = {name.replace(".0.", f".{n}."): weight.clone() for name, weight in tensors.items() for n in range(11)}
    return tensors | {name: weight for name, weight in further.items() if name not in tensors}


def narrower(tensors: dict[str, Any]) -> dict[str, Any]:
    return {name: weight[:-1].clone() if "gate_proj" in name else weight for name, weight in tensors.items()}


def with_tensors(change: Callable[[dict[str, Any]], dict[str, Any]]) -> Callable[[Path], None]:
    def damage(folder: Path) -> None:
        weights = str(folder / "model.safetensors")
        save_file(change(load_file(weights)), weights, metadata={"format": "pt"})

    return damage


def cut_short(folder: Path) -> None:
    path = max(folder.glob("*.safetensors"))
    path.write_bytes(path.read_bytes()[:-9])


def in_shards(folder: Path) -> None:
    LlamaForCausalLM.from_pretrained(folder).save_pretrained(folder, max_shard_size="10KB")
    (folder / "model.safetensors").unlink()


def shard_cut_short(folder: Path) -> None:
    in_shards(folder)
    cut_short(folder)


def shard_lost(folder: Path) -> None:
    in_shards(folder)
    max(folder.glob("*.safetensors")).unlink()


def index_lost(folder: Path) -> None:
    in_shards(folder)
    (folder / "model.safetensors.index.json").unlink()


def generation_config_cut_short(folder: Path) -> None:
    path = folder / "generation_config.json"
    path.write_bytes(path.read_bytes()[:50])


def generation_config_of_a_list(folder: Path) -> None:
    (folder / "generation_config.json").write_text("[1, 2]", encoding="utf-8")


GATE = "'model.layers.0.mlp.gate_proj.weight'"


CHECKPOINTS: list[tuple[Callable[[Path], None], str]] = [
    (with_tensors(renamed), "lacks the weights 'lm_head.weight' (12 of 12 are missing), which would be random; it h"),
    (with_tensors(renamed), "take '_orig_mod.' off the names"),
    (with_tensors(without_a_matrix), f"lacks the weights {GATE} (1 of 12 are missing), which would be random"),
    (with_tensors(of_more_layers), "holds 'model.layers.1.input_layernorm.weight', for which its configuration has no"),
    (with_tensors(of_more_layers), "(90 weights would be dropped): correct its config.json, or load the model that is"),
    (with_tensors(narrower), f"holds {GATE} of shape [31, 16], which its configuration says is [32, 16]"),
    (cut_short, "cannot be loaded: SafetensorError: Error while deserializing header"),
    (shard_cut_short, "cannot be loaded: SafetensorError: Error while deserializing header"),
    (shard_lost, "No such file or directory: "),
    (generation_config_cut_short, "cannot be loaded: generation_config.json is not valid JSON"),
    (generation_config_of_a_list, "cannot be loaded: generation_config.json must hold a JSON object, got list"),
    (index_lost, "no file named model.safetensors, or pytorch_model.bin, found in directory "),
]


@pytest.mark.parametrize(("damage", "message"), CHECKPOINTS)
@pytest.mark.parametrize("role", ["student", "teacher"])
def test_a_checkpoint_of_other_weights_is_refused_wherever_it_is_loaded(
    role: str,
    damage: Callable[[Path], None],
    message: str,
    config: dict[str, Any],
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Each command refuses the checkpoint, and so does the trainer in Python."""
    field = {"student": "model_name_or_path", "teacher": "teacher_model_name_or_path"}[role]
    shutil.copytree(config[field], "damaged")
    damage(Path("damaged"))
    judged = {"eval_verifier": "numeric", "eval_prompts": "prompts.jsonl", "eval_strategy": "steps", "eval_steps": 1}
    path = write(config | {field: "damaged"} | judged)
    commands = [["train", path], ["probe", path, "--output", "probe", "--limit", "4"]]
    if role == "student":
        commands.append(["eval", "damaged", "--prompts", "prompts.jsonl", "--verifier", "numeric", "--output", "out"])
    base = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
    del base["output_dir"]
    runs = {"OPD": {"rollout_policy": "student"}, "TRB": {"rollout_policy": "trb"}}
    metric = {"name": "eval_pass@1", "better": "higher", "final_evaluations": 1}
    study: dict[str, Any] = {"title": "", "output_dir": "study", "reference": "OPD", "seeds": [1, 2], "metric": metric}
    Path("study.yaml").write_text(yaml.safe_dump(study | {"base": base, "runs": runs}), encoding="utf-8")
    commands.append(["compare", "study.yaml"])
    for command in commands:
        line = refusal(capsys, *command)
        assert "damaged" in line
        assert message in line, command
    models = {"student": config["model_name_or_path"], "teacher": config["teacher_model_name_or_path"]}
    args = TRBConfig("run", use_cpu=True)
    with pytest.raises((ValueError, OSError), match=f"damaged.*{re.escape(message)}|{re.escape(message)}.*damaged"):
        TRBTrainer(*(models | {role: "damaged"}).values(), args, train_dataset=prompts(8))


def test_a_run_does_not_continue_with_other_weights(config: dict[str, Any], capsys: pytest.CaptureFixture[str]) -> None:
    path = write(config, save_strategy="steps", save_steps=1, lr_scheduler_type="constant")
    assert main(["train", path]) == 0
    weights = "run/checkpoint-1/model.safetensors"
    save_file(renamed(load_file(weights)), weights, metadata={"format": "pt"})
    line = refusal(capsys, "train", path, "--resume", "--max_steps", "2")
    assert "checkpoint-1 cannot be resumed exactly: it lacks the weights 'lm_head.weight'" in line
    assert "take '_orig_mod.' off the names" in line


def no_tokenizer(folder: Path) -> None:
    for path in folder.glob("tokenizer*"):
        path.unlink()


def broken_tokenizer(folder: Path) -> None:
    (folder / "tokenizer.json").write_text("{}", encoding="utf-8")


def broken_config(folder: Path) -> None:
    (folder / "config.json").write_text("{", encoding="utf-8")


def no_positions(folder: Path) -> None:
    path = folder / "config.json"
    path.write_text(
        json.dumps(json.loads(path.read_text(encoding="utf-8")) | {"max_position_embeddings": 0}), encoding="utf-8"
    )


def eos_as_text(folder: Path) -> None:
    (folder / "generation_config.json").write_text('{"eos_token_id": "2"}', encoding="utf-8")


FILES: list[tuple[Callable[[Path], None] | None, dict[str, Any], str]] = [
    (no_tokenizer, {}, "student"),
    (broken_tokenizer, {}, "student"),
    (broken_config, {}, "student/config.json"),
    (
        eos_as_text,
        {},
        "eos_token_id in the generation_config.json of the student student must be a number or several, ",
    ),
    (no_positions, {}, "max_position_embeddings in the configuration of student must be at least 1, got 0"),
    (None, {"model_init_kwargs": {"layers": 3}}, "got an unexpected keyword argument 'layers'"),
    (None, {"model_init_kwargs": {"dtype": "float99"}}, "got float99"),
    (None, {"teacher_model_init_kwargs": {"layers": 3}}, "got an unexpected keyword argument 'layers'"),
    (None, {"model_name_or_path": "nowhere"}, "nowhere"),
    (None, {"output_dir": "o" * 300}, "output_dir must be a path that can be made, got oooo"),
    (None, {"output_dir": "prompts.jsonl"}, "output_dir prompts.jsonl must be a folder, got a file"),
]


@pytest.mark.parametrize(("damage", "change", "message"), FILES)
def test_models_that_cannot_be_loaded_are_refused(
    damage: Callable[[Path], None] | None,
    change: dict[str, Any],
    message: str,
    config: dict[str, Any],
    capsys: pytest.CaptureFixture[str],
) -> None:
    shutil.copytree(config["model_name_or_path"], "student")
    if damage is not None:
        damage(Path("student"))
    assert message in refusal(capsys, "train", write(config | {"model_name_or_path": "student"} | change))


@pytest.mark.parametrize(
    ("file", "change", "message"),
    [
        ("config.json", {"output_attentions": True}, "the student's config.json must be one that transformers saves"),
        (
            "generation_config.json",
            {"do_sample": False, "temperature": 0.5},
            "the student's generation_config.json must be one that transformers saves",
        ),
    ],
)
@pytest.mark.parametrize("fields", [{}, {"lora_rank": 2}])
def test_a_student_that_could_not_be_saved_is_refused_before_it_is_trained(
    file: str,
    change: dict[str, Any],
    message: str,
    fields: dict[str, Any],
    config: dict[str, Any],
    capsys: pytest.CaptureFixture[str],
) -> None:
    shutil.copytree(config["model_name_or_path"], "student")
    held = json.loads(Path("student", file).read_text(encoding="utf-8"))
    Path("student", file).write_text(json.dumps(held | change), encoding="utf-8")
    shutil.copytree(config["teacher_model_name_or_path"], "teacher")
    # A teacher's further EOS id alters the student's generation config, which is judged more strictly then.
    stops = Path("teacher", "generation_config.json")
    held = json.loads(stops.read_text(encoding="utf-8")) | {"eos_token_id": [1, 2]}
    stops.write_text(json.dumps(held), encoding="utf-8")
    models = {"model_name_or_path": "student", "teacher_model_name_or_path": "teacher"}
    line = refusal(capsys, "train", write(config | models | fields))
    assert message in line
    assert "or the trained model would be lost, got " in line


@pytest.mark.parametrize("role", ["student", "teacher"])
def test_an_adapter_is_no_model_to_train_with(
    role: str, adapter: str, config: dict[str, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    field = {"student": "model_name_or_path", "teacher": "teacher_model_name_or_path"}[role]
    line = refusal(capsys, "train", write(config | {field: adapter}))
    assert f"the {role} {adapter} is a PEFT adapter of {config['model_name_or_path']}, and training needs a" in line
    models = {"student": config["model_name_or_path"], "teacher": config["teacher_model_name_or_path"]}
    with pytest.raises(ValueError, match=f"the {role} {adapter} is a PEFT adapter of .*merge_and_unload"):
        TRBTrainer(*(models | {role: adapter}).values(), TRBConfig("run", use_cpu=True), train_dataset=prompts(8))


def test_an_adapter_is_merged_if_nothing_is_trained(
    adapter: str, config: dict[str, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    tokens = torch.arange(3, 12)[None]
    expected = AutoPeftModelForCausalLM.from_pretrained(adapter).eval()(tokens).logits
    assert torch.allclose(load_for_inference(adapter, "model", "cpu")(tokens).logits, expected, atol=1e-5)
    base = load_for_inference(config["model_name_or_path"], "model", "cpu")(tokens).logits
    assert not torch.allclose(base, expected, atol=1e-2)
    assert main(["eval", adapter, *EVAL]) == 0

    shutil.copytree(adapter, "damaged")
    weights = "damaged/adapter_model.safetensors"
    save_file({name: weight for name, weight in load_file(weights).items() if "lora_B" not in name}, weights)
    line = refusal(capsys, "eval", "damaged", *EVAL)
    assert (
        "the model damaged cannot be loaded: its adapter must hold 'base_model.model.model.layers.0.self_attn" in line
    )


def test_an_adapter_in_the_folder_of_its_own_base_is_refused(
    adapter: str, config: dict[str, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(config["model_name_or_path"], "both")
    held = json.loads(Path(adapter, "adapter_config.json").read_text(encoding="utf-8"))
    Path("both/adapter_config.json").write_text(
        json.dumps(held | {"base_model_name_or_path": "both"}), encoding="utf-8"
    )
    shutil.copy(f"{adapter}/adapter_model.safetensors", "both")
    taught = {"model_name_or_path": "both", "teacher_model_name_or_path": "self"}
    for words in (["eval", "both", *EVAL], ["train", write(config | taught)]):
        assert "must be another folder than the adapter's, got both: save the adapter" in refusal(capsys, *words)


@pytest.fixture
def adapter(config: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> str:
    """Saves a LoRA adapter of the student with a tokenizer beside it, and returns the folder."""
    folder = str(tmp_path_factory.mktemp("adapter"))
    student = LlamaForCausalLM.from_pretrained(config["model_name_or_path"])
    lora = get_peft_model(student, LoraConfig(r=2, target_modules=["q_proj"], init_lora_weights=False))
    lora.save_pretrained(folder)
    tiny_tokenizer().save_pretrained(folder)
    return folder


def test_tied_weights_and_shared_tokens_are_no_loss(config: dict[str, Any], tmp_path: Path) -> None:
    model = tiny_llama(3)
    model.config.tie_word_embeddings = True
    model.tie_weights()
    path = saved(tmp_path / "tied", model, tiny_tokenizer())
    assert "lm_head.weight" not in load_file(f"{path}/model.safetensors")
    assert load_for_inference(path, "model", "cpu").lm_head.weight is not None


def test_a_hub_that_cannot_be_used_is_one_line(
    config: dict[str, Any], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def unreachable(*_: Any, **__: Any) -> None:
        raise RuntimeError("[Errno 111]\nConnection refused")  # what an HTTP client raises is no OSError

    monkeypatch.setattr("transformers.Trainer.init_hf_repo", unreachable)
    error = refusal(capsys, "train", write(config | {"push_to_hub": True}))
    assert "push_to_hub needs a repository on the Hub, which cannot be made: RuntimeError: [Errno 111] Conn" in error
    assert not Path("run").exists()


def of_rope(path: Path, **rope: Any) -> str:
    model = tiny_llama(4)
    model.config.rope_parameters = {"rope_theta": 10000.0, **rope}
    return saved(path, type(model)(model.config), tiny_tokenizer())


def test_a_model_of_stretched_positions_uses_them(config: dict[str, Any], tmp_path: Path) -> None:
    yarn = of_rope(tmp_path / "yarn", rope_type="yarn", factor=4.0, original_max_position_embeddings=64)
    fields = config | {"model_name_or_path": yarn, "teacher_model_name_or_path": yarn, "max_completion_length": 100}
    assert main(["train", write(fields)]) == 0


def test_rows_that_grow_past_a_change_of_the_rotary_factors_are_refused_before_the_run(
    config: dict[str, Any], capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    dynamic = of_rope(tmp_path / "dynamic", rope_type="dynamic", factor=4.0, original_max_position_embeddings=64)
    fields = config | {"model_name_or_path": dynamic, "teacher_model_name_or_path": dynamic}
    line = refusal(capsys, "train", write(fields | {"max_completion_length": 61}))
    assert "the student of type llama rotates all positions by other factors past 64 tokens (rope_type 'dyn" in line
    # TRL decodes what altered sampling writes, but the loss reads it.
    line = refusal(
        capsys, "train", write(fields | {"rollout_policy": "student", "top_p": 0.9, "max_completion_length": 61})
    )
    assert "the student of type llama rotates all positions by other factors past 64 tokens (rope_type 'dyn" in line


def test_a_teacher_of_the_loss_whose_rows_would_be_rotated_by_one_another_is_refused_before_the_run(
    config: dict[str, Any], capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    factors = {"short_factor": [1.0] * 4, "long_factor": [4.0] * 4, "original_max_position_embeddings": 16}
    long = of_rope(tmp_path / "long", rope_type="longrope", factor=4.0, **factors)
    fields = config | {"teacher_model_name_or_path": long, "rollout_policy": "student", "loss_top_k": 4}
    words = "the teacher of type llama rotates all positions by other factors past 16 tokens (rope_type 'longrope')"
    assert words in refusal(capsys, "train", write(fields | {"max_completion_length": 13}))
    # No row grows past the change, but a short one is beside a long one.
    rows = [{"prompt": "1+1="}, {"prompt": "1+1+1+1+1+1+1+1+1+1="}] * 4
    Path("prompts.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    line = refusal(capsys, "train", write(fields))
    assert "max_completion_length 8 for prompts of 4 to 20 tokens" in line
    assert words in line
    assert main(["train", write(fields | {"per_device_train_batch_size": 1})]) == 0


def test_a_token_that_a_model_does_not_embed_is_refused_in_prompts(
    config: dict[str, Any], capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    tokenizer = tiny_tokenizer()
    size = len(tokenizer)
    tokenizer.add_tokens(["<tool>"])
    added = saved(tmp_path / "added", tiny_llama(5), tokenizer)
    fields = config | {"model_name_or_path": added, "teacher_model_name_or_path": added}
    rows = Path("prompts.jsonl").read_text(encoding="utf-8")
    Path("prompts.jsonl").write_text('{"prompt": "<tool>1+1="}\n' + rows, encoding="utf-8")
    line = refusal(capsys, "train", write(fields))
    assert f"every id must be one of the {size} that the student embeds, got {size} ('<tool>') in row 1" in line


def test_a_padding_token_that_a_model_does_not_embed_is_refused(
    config: dict[str, Any], capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    tokenizer = tiny_tokenizer()
    size = len(tokenizer)
    tokenizer.add_special_tokens({"pad_token": "[added]"})
    padded = saved(tmp_path / "padded", tiny_llama(5), tokenizer)
    fields = config | {"model_name_or_path": padded, "teacher_model_name_or_path": padded}
    line = refusal(capsys, "train", write(fields))
    assert f"pad_token_id must be one of the {size} ids that the student embeds, got {size}: set the token" in line
