"""Trains the two models of the demonstration and writes them as Hugging Face folders into trbext/data.

Both are small Llamas trained with plain supervision on the task's completions. The teacher is trained until it solves
the task; the student is stopped the first time it solves one prompt in ten, so that its rollouts start weak. One thread
and fixed seeds: the same command gives the same bytes on the same machine and library versions. Elsewhere the order of
floating-point sums may differ, which is why the student stops by its accuracy and not at a step.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import math
import sys
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import tokenizers
import torch
import transformers
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn
from tokenizers import Regex, Tokenizer
from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM

from trbext.data.counting_sort import COMPLETION_TOKENS, correct_completion, is_correct, prompts

MODELS = Path(__file__).resolve().parents[1] / "trbext" / "data" / "countsort_models"
PAD, BOS, EOS = "<pad>", "<bos>", "<eos>"
VOCABULARY = [PAD, BOS, EOS, *"0123456789", "=", "#"]
EVALUATION_PROMPTS = 512
EVALUATION_SEED = 0


@dataclass(frozen=True)
class Recipe:
    """One model: a Llama's shape and its supervised training (AdamW after 50 warmup steps)."""

    hidden_size: int
    intermediate_size: int
    layers: int
    seed: int
    batch_size: int
    learning_rate: float
    max_steps: int
    cosine_decay: bool
    check_every: int  # steps between two measurements of the greedy exact match
    stop_at: float | None  # the greedy exact match that ends training; None runs all steps


TEACHER = Recipe(64, 168, 3, 0, 64, 3e-3, 800, cosine_decay=True, check_every=50, stop_at=None)
STUDENT = Recipe(48, 128, 2, 0, 32, 3e-3, 400, cosine_decay=False, check_every=1, stop_at=0.10)


def write_tokenizer(folder: Path) -> None:
    """Writes a tokenizer of one token per character that adds only BOS and rejects characters it does not know."""
    tokenizer = Tokenizer(tokenizers.models.WordLevel({token: i for i, token in enumerate(VOCABULARY)}))
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.Split(Regex("."), behavior="isolated")
    tokenizer.post_processor = tokenizers.processors.TemplateProcessing(
        single=f"{BOS} $A", special_tokens=[(BOS, VOCABULARY.index(BOS))]
    )
    tokenizer.decoder = tokenizers.decoders.Fuse()
    tokenizer.add_special_tokens([PAD, BOS, EOS])
    settings = {
        # Written by hand because transformers 5 saves a class name that transformers 4 cannot load.
        "tokenizer_class": "PreTrainedTokenizerFast",
        "pad_token": PAD,
        "bos_token": BOS,
        "eos_token": EOS,
        "padding_side": "left",
        "clean_up_tokenization_spaces": False,
        "model_input_names": ["input_ids", "attention_mask"],
    }
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "tokenizer.json").write_text(tokenizer.to_str(pretty=True) + "\n", encoding="utf-8")
    (folder / "tokenizer_config.json").write_text(json.dumps(settings, indent=2) + "\n", encoding="utf-8")


def new_model(recipe: Recipe) -> Any:
    """Makes a LlamaForCausalLM in float32 whose random weights depend only on the recipe's seed."""
    torch.manual_seed(recipe.seed)
    config = LlamaConfig(
        vocab_size=len(VOCABULARY),
        hidden_size=recipe.hidden_size,
        intermediate_size=recipe.intermediate_size,
        num_hidden_layers=recipe.layers,
        num_attention_heads=4,
        max_position_embeddings=64,
        initializer_range=0.07,  # the default 0.02 suits wide models; here every layer would start out nearly silent
        tie_word_embeddings=False,
        pad_token_id=VOCABULARY.index(PAD),
        bos_token_id=VOCABULARY.index(BOS),
        eos_token_id=VOCABULARY.index(EOS),
    )
    return LlamaForCausalLM(config)


def solved(tokenizer: Any, questions: list[str]) -> torch.Tensor:
    """Returns BOS, prompt, correct completion, EOS: [N, T] int64. Every prompt of this task has the same length."""
    return torch.tensor(
        tokenizer([question + correct_completion(question) + EOS for question in questions])["input_ids"]
    )


@torch.no_grad()
def exact_match(model: Any, examples: torch.Tensor) -> float:
    """Returns the greedy exact match by one forward pass over solved prompts [N, T].

    Greedy decoding writes the solution if and only if the argmax after each of its prefixes is its next token.
    """
    logits = model(input_ids=examples[:, :-1]).logits[:, -COMPLETION_TOKENS:]
    return float((logits.argmax(-1) == examples[:, -COMPLETION_TOKENS:]).all(-1).float().mean())


@torch.no_grad()
def generated_accuracy(model: Any, tokenizer: Any, questions: list[str], *, sample: bool = False) -> float:
    """Returns the fraction of prompts that transformers' own `generate` solves, greedily or sampled at temperature
    1.

    Args:
        model: The model.
        tokenizer: Its tokenizer.
        questions: The prompts.
        sample: Whether to sample at temperature 1.
    """
    inputs = tokenizer(questions, return_tensors="pt")
    outputs = model.generate(**inputs, max_new_tokens=COMPLETION_TOKENS, do_sample=sample)
    completions = tokenizer.batch_decode(outputs[:, inputs["input_ids"].shape[1] :], skip_special_tokens=True)
    return sum(map(is_correct, questions, completions)) / len(questions)


def train(recipe: Recipe, tokenizer: Any, progress: Progress, name: str) -> tuple[Any, int]:
    """Trains one model, and returns it with the number of its steps.

    Args:
        recipe: The shape and the training.
        tokenizer: Of both models.
        progress: Shows a bar.
        name: Of the bar.
    """
    model = new_model(recipe)
    examples = solved(tokenizer, prompts(recipe.max_steps * recipe.batch_size, recipe.seed))
    held_out = solved(tokenizer, prompts(EVALUATION_PROMPTS, EVALUATION_SEED, "eval"))
    optimizer = torch.optim.AdamW(model.parameters(), recipe.learning_rate, betas=(0.9, 0.98), weight_decay=0.01)

    def rate(step: int) -> float:
        decay = 0.5 * (1 + math.cos(math.pi * step / recipe.max_steps)) if recipe.cosine_decay else 1.0
        return min(1.0, (step + 1) / 50) * decay

    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, rate)
    bar = progress.add_task(name, total=recipe.max_steps, accuracy="")
    for step, batch in enumerate(examples.view(recipe.max_steps, recipe.batch_size, -1), start=1):
        labels = batch.clone()
        labels[:, :-COMPLETION_TOKENS] = -100  # learn to write the completion, not to guess the prompt
        model(input_ids=batch, labels=labels).loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        schedule.step()
        progress.advance(bar)
        if step % recipe.check_every == 0:
            accuracy = exact_match(model, held_out)
            progress.update(bar, accuracy=f"solves {accuracy:.1%}")
            if recipe.stop_at is not None and accuracy >= recipe.stop_at:
                progress.update(bar, total=step)
                return model.eval(), step
    if recipe.stop_at is not None:
        raise RuntimeError(f"{name}: greedy exact match stayed below {recipe.stop_at} for {recipe.max_steps} steps")
    return model.eval(), recipe.max_steps


def build(output: Path, console: Console) -> None:
    """Trains both models into `output`/{teacher,student}, and last writes `output`/provenance.json, which says how."""
    # 1. Make the build reproducible.
    torch.set_num_threads(1)  # the order of sums, and so the bytes, would depend on the number of threads
    torch.use_deterministic_algorithms(True)
    questions = prompts(EVALUATION_PROMPTS, EVALUATION_SEED, "eval")
    # 2. Train, save and measure each model.
    models: dict[str, dict[str, Any]] = {}
    columns = [TextColumn("{task.description:8}"), BarColumn(), TextColumn("step {task.completed:.0f}")]
    columns += [TextColumn("{task.fields[accuracy]}"), TimeElapsedColumn()]
    with Progress(*columns, console=console) as progress:
        for name, recipe in (("teacher", TEACHER), ("student", STUDENT)):
            folder = output / name
            write_tokenizer(folder)
            tokenizer = AutoTokenizer.from_pretrained(folder)
            model, steps = train(recipe, tokenizer, progress, name)
            model.save_pretrained(folder)
            weights = folder / "model.safetensors"
            weights.chmod(0o644)  # save_pretrained makes it readable by its owner only, also inside a wheel
            torch.manual_seed(0)
            greedy = generated_accuracy(model, tokenizer, questions)
            sampled = generated_accuracy(model, tokenizer, questions, sample=True)
            models[name] = {
                "parameters": model.num_parameters(),
                "recipe": asdict(recipe),
                "steps": steps,
                "greedy_exact_match": greedy,
                "sampled_exact_match": sampled,
                "sha256": hashlib.sha256(weights.read_bytes()).hexdigest(),
            }
            console.print(
                f"{name}: solves {greedy:.1%} of {len(questions)} held-out prompts, {sampled:.1%} sampled at T = 1"
            )
    # 3. Say how they were made.
    provenance = {
        "command": "python recipes/countsort_models.py",
        "task": "counting sort of 8 digits, trbext/data/counting_sort.py",
        "versions": {"torch": torch.__version__, "transformers": transformers.__version__},
        "evaluation": {"prompts": EVALUATION_PROMPTS, "seed": EVALUATION_SEED, "split": "eval"},
        "models": models,
    }
    (output / "provenance.json").write_text(json.dumps(provenance, indent=2) + "\n", encoding="utf-8")
    console.print(f"wrote {output}")


def main(arguments: list[str] | None = None) -> int:
    """Builds the models into the folder that the command line names."""
    parser = argparse.ArgumentParser(
        prog="python recipes/countsort_models.py", description=(__doc__ or "").split("\n\n")[0]
    )
    parser.add_argument("--output", type=Path, default=MODELS, help="folder for teacher/, student/ and provenance.json")
    output: Path = parser.parse_args(arguments).output
    transformers.utils.logging.disable_progress_bar()
    build(output, Console())
    return 0


if __name__ == "__main__":
    sys.exit(main())
