"""Two stored models are aligned as they would be once they are loaded."""

from __future__ import annotations

from pathlib import Path

import pytest
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig, LlamaForCausalLM

from trbext.data.demo_models import model_path
from trbext.vllm.server.stored_alignment import align_stored
from trbext.vocab import VocabularyMismatch, align


def model_in(
    folder: Path, *, width: int = 20, config_eos: int = 2, eos: int | list[int] | None = None, tokenizer: bool = False
) -> str:
    config = LlamaConfig(
        vocab_size=width,
        hidden_size=8,
        intermediate_size=8,
        num_hidden_layers=1,
        num_attention_heads=1,
        num_key_value_heads=1,
        eos_token_id=config_eos,
    )
    model = LlamaForCausalLM(config)
    assert model.generation_config is not None
    model.generation_config.eos_token_id = eos
    model.save_pretrained(folder)
    if eos is None:
        (folder / "generation_config.json").unlink(missing_ok=True)
    if tokenizer:
        AutoTokenizer.from_pretrained(model_path("demo:student")).save_pretrained(folder)
    return str(folder)


@pytest.mark.parametrize("tokenizer", [False, True])
@pytest.mark.parametrize(("student_eos", "teacher_eos"), [(None, None), (4, [5, 6]), ([7, 4], None), (None, 9)])
def test_the_alignment_is_that_of_the_loaded_models(
    student_eos: int | list[int] | None, teacher_eos: int | list[int] | None, *, tokenizer: bool, tmp_path: Path
) -> None:
    student = model_in(tmp_path / "student", width=20, config_eos=3, eos=student_eos, tokenizer=tokenizer)
    teacher = model_in(tmp_path / "teacher", width=24, config_eos=8, eos=teacher_eos, tokenizer=tokenizer)
    models = [AutoModelForCausalLM.from_pretrained(path) for path in (student, teacher)]
    tokenizers = [AutoTokenizer.from_pretrained(path) if tokenizer else None for path in (student, teacher)]
    assert align_stored(student, teacher) == align(*models, *tokenizers)


def test_vocabularies_that_do_not_fit_and_missing_models_are_named(tmp_path: Path) -> None:
    student = model_in(tmp_path / "student", eos=30)
    with pytest.raises(VocabularyMismatch, match="student's EOS id 30"):
        align_stored(student, student)
    with pytest.raises(ValueError, match=r"configuration of the teacher .*nowhere cannot be read"):
        align_stored(student, str(tmp_path / "nowhere"))
