"""Tests `trb probe`: the stated model keeps and continues each prefix; numbers agree with theory or brute force."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml

from python_tests.models.tiny_models import VOCABULARY, prompts, tiny_llama, tiny_tokenizer
from python_tests.runs.test_cli import config  # noqa: F401  (a fixture)
from trbext.cli import main
from trbext.data.encoding import encode_prompts, left_padded
from trbext.rollout import lockstep
from trbext.runs.inputs import load_inputs, sample_prompts
from trbext.runs.pair import load_pair
from trbext.runs.settings import parse_settings
from trbext.studies.probe.intervals import auroc, mean, paired_difference, share
from trbext.studies.probe.rollouts import Probe
from trbext.vocab import align

LONGEST = 12


@pytest.fixture
def judged() -> list[str]:
    """Returns the completions that the probe's verifier was shown."""
    return []


@pytest.fixture
def probe(judged: list[str]) -> Probe:
    student, teacher, tokenizer = tiny_llama(1), tiny_llama(2, hidden=32), tiny_tokenizer()

    def verifier(prompt: Any, completion: str, row: Mapping[str, Any]) -> bool:
        judged.append(completion)
        return completion.count("a") > 0

    return Probe(
        student=student,
        teacher=teacher,
        tokenizer=tokenizer,
        alignment=align(student, teacher, tokenizer, tokenizer),
        rows=list(prompts(20)),
        verifier=verifier,
        max_new_tokens=LONGEST,
        temperature=1.0,
        batch_size=8,
        seed=3,
        chat_template={},
    )


def test_at_budget_0_the_rollouts_are_the_students_own_with_the_teachers_opinion(probe: Probe) -> None:
    completions = probe.roll_out(0.0)
    assert [len(ids) for ids in completions.tokens] != [LONGEST] * 20  # some end by themselves
    ids = encode_prompts(probe.tokenizer, [row["prompt"] for row in probe.rows])
    for index, tokens in enumerate(completions.tokens):
        for model, found in (
            (probe.student, completions.student_log_prob),
            (probe.teacher, completions.teacher_log_prob),
        ):
            with torch.no_grad():
                log_probs = model(torch.tensor([ids[index] + tokens])).logits[0].log_softmax(-1)
            steps = range(len(ids[index]) - 1, len(ids[index]) + len(tokens) - 1)
            expected = np.mean([float(log_probs[at, token]) for at, token in zip(steps, tokens, strict=True)])
            assert found[index] == pytest.approx(expected, abs=1e-4)
    again = lockstep(
        probe.student,
        None,
        *left_padded(ids[:8], 0, "cpu"),
        epsilon=0.0,
        max_new_tokens=LONGEST,
        alignment=probe.alignment,
        pad_token_id=0,
        generator=torch.Generator().manual_seed(int(np.random.SeedSequence((3, 0, 0)).generate_state(1, np.uint64)[0])),
    )
    assert completions.tokens[:8] == [row[kept].tolist() for row, kept in zip(again.tokens, again.mask, strict=True)]


def test_a_larger_budget_makes_the_teacher_find_the_rollouts_likelier(probe: Probe) -> None:
    means = [float(np.mean(probe.roll_out(epsilon).teacher_log_prob)) for epsilon in (0.0, 0.1, 1.0)]
    assert means[0] < means[1] < means[2]
    assert probe.roll_out(1e39).tokens == probe.roll_out(math.inf).tokens


@pytest.mark.parametrize("by", ["teacher", "student"])
def test_a_continuation_keeps_its_prefix_and_what_had_ended(probe: Probe, judged: list[str], by: Any) -> None:
    completions = probe.roll_out(0.1)
    whole = list(judged)
    ended = [f and len(ids) <= 5 for f, ids in zip(completions.finished, completions.tokens, strict=True)]
    assert 0 < sum(ended) < 20
    judged.clear()
    right = probe.continued(completions, 5, by)
    changed = 0
    for index, text in enumerate(judged):
        assert right[index] == ("a" in text)
        prefix = str(probe.tokenizer.decode(completions.tokens[index][:5], skip_special_tokens=True))
        assert text.startswith(prefix)
        if ended[index]:
            assert text == whole[index]
        changed += text != whole[index]
    assert changed > 0


def test_the_continuation_is_by_the_model_that_is_named(probe: Probe) -> None:
    completions = probe.roll_out(0.1)
    with torch.no_grad():
        for model, constant in ((probe.teacher, 20), (probe.student, 21)):  # each writes one token forever
            model.lm_head.weight.zero_()
            model.model.norm.weight.zero_()
            head = torch.nn.Linear(model.config.hidden_size, model.config.vocab_size, bias=True)
            head.weight.zero_()
            head.bias.fill_(-100.0)
            head.bias[constant] = 100.0
            model.lm_head = head
    shown: list[str] = []
    object.__setattr__(probe, "verifier", lambda prompt, text, row: bool(shown.append(text)))
    tokenizer = probe.tokenizer
    for by, constant in (("teacher", 20), ("student", 21)):
        shown.clear()
        probe.continued(completions, 5, by)  # type: ignore[arg-type]
        going_on = [i for i, ids in enumerate(completions.tokens) if not (completions.finished[i] and len(ids) <= 5)]
        tail = str(tokenizer.decode([constant] * (LONGEST - 5)))
        assert going_on
        assert all(shown[i].endswith(tail) for i in going_on)


def test_wilson_intervals_against_known_values() -> None:
    found = share([True] * 8 + [False] * 2)
    assert (found.value, found.low, found.high) == pytest.approx((0.8, 0.4902, 0.9433), abs=1e-4)
    assert share([False] * 10).low == 0.0
    assert share([False] * 10).high == pytest.approx(0.2775, abs=1e-4)


def test_auroc_is_the_share_of_pairs_in_the_right_order() -> None:
    rng = np.random.default_rng(0)
    scores, right = rng.integers(0, 8, 60).astype(float), rng.random(60) < 0.4  # with ties
    scores[0], right[0] = -np.inf, False  # a token that the teacher excludes
    pairs = [(a > b) + 0.5 * (a == b) for a in scores[right] for b in scores[~right]]
    found = auroc(scores.tolist(), right.tolist())
    assert found.value == pytest.approx(np.mean(pairs))
    assert found.low < found.value < found.high
    assert found.high - found.low < 0.4
    assert np.isnan(auroc([1.0, 2.0], [True, True]).value)
    assert auroc([1.0, 2.0, 3.0, 4.0], [False, False, True, True]).value == 1.0


def test_paired_differences_against_known_values() -> None:
    right, reference = [True] * 12 + [False] * 8, [True] * 4 + [False] * 16
    found, p = paired_difference(right, reference)
    assert found.value == pytest.approx(0.4)
    assert p == pytest.approx(2 * 0.5**8)  # 8 prompts gained, none lost
    assert 0.15 < found.low < 0.4 < found.high < 0.65
    same, p = paired_difference(right, right)
    assert (same.value, same.low, same.high, p) == (0.0, 0.0, 0.0, 1.0)


def test_means_leave_out_what_the_teacher_excludes() -> None:
    assert mean([-1.0, -3.0, float("-inf")]).value == pytest.approx(-2.0)


def write(tmp_path: Path, fields: dict[str, Any]) -> str:
    path = tmp_path / "run.yaml"
    path.write_text(yaml.safe_dump(fields))
    return str(path)


def test_the_command_writes_what_it_found(
    tmp_path: Path,
    config: dict[str, Any],  # noqa: F811
    capsys: pytest.CaptureFixture[str],
) -> None:
    path = write(tmp_path, config | {"eval_verifier": "numeric", "max_completion_length": LONGEST})
    output = tmp_path / "probe"
    words = ["probe", path, "--epsilon", "0.1", "0.5", "--lengths", "3", "6", "--limit", "16", "--output", str(output)]
    assert main([*words, "--seed", "4"]) == 0
    found = json.loads((output / "probe.json").read_text())
    assert [entry["epsilon"] for entry in found["rollouts"]] == [0.0, 0.1, 0.5]
    assert {(c["epsilon"], c["length"], c["by"]) for c in found["continuations"]} == {
        (epsilon, length, by) for epsilon in (0.0, 0.1, 0.5) for length in (3, 6) for by in ("teacher", "student")
    }
    assert all(("minus_opd" in entry) == (entry["epsilon"] > 0) for entry in found["continuations"])
    assert found["seed"] == 4
    assert (output / "probe.png").stat().st_size > 10_000
    assert "AUROC" in (output / "probe.svg").read_text()
    assert "Wilson" in " ".join(capsys.readouterr().out.split())
    assert main(words) == 2
    assert "holds a probe already" in capsys.readouterr().err


def test_the_prompts_are_those_of_the_run(tmp_path: Path, config: dict[str, Any]) -> None:  # noqa: F811
    """Without held-out ones, those that the run trains on: chosen, shuffled, not too long."""
    rows = [{"question": "+".join("1" * (1 + n % 4)), "kind": "odd" if n % 2 else "even"} for n in range(40)]
    file = tmp_path / "rows.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    chosen = {"prompts": str(file), "prompt_column": "question", "prompts_where": "kind=odd"}
    fields = config | chosen | {"prompts_shuffle_seed": 3, "max_prompt_length": 6}
    arguments, trb_config, _ = parse_settings(fields)
    found = sample_prompts(arguments, trb_config, 3)["prompt"][:]
    assert found == load_inputs(arguments, trb_config).prompts["prompt"][:3]
    assert set(found) == {"1+1"}
    few, trb_config, _ = parse_settings(fields | {"prompts_limit": 2})
    assert len(sample_prompts(few, trb_config, 5)) == 2
    held_out, trb_config, _ = parse_settings(fields | {"eval_prompts": "demo:eval"})
    assert len(sample_prompts(held_out, trb_config, 5)) == 5


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--epsilon", "0"], "--epsilon must be finite KL budgets above 0"),
        (["--lengths", "8"], "--lengths must lie between 1 and max_completion_length - 1 = 7, got [8]"),
        ([], "eval_verifier is not set: a probe counts right completions"),
        (["--trb_epsilonn", "1"], "unknown field 'trb_epsilonn'; did you mean 'trb_epsilon'?"),
    ],
)
def test_bad_probes_give_one_line_and_exit_code_2(
    words: list[str],
    message: str,
    tmp_path: Path,
    config: dict[str, Any],  # noqa: F811
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert main(["probe", write(tmp_path, config), *words]) == 2
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert message in line


def test_fields_of_from_pretrained_may_be_those_that_a_run_sets_itself(config: dict[str, Any]) -> None:  # noqa: F811
    arguments, parsed, _ = parse_settings(config | {"model_init_kwargs": {"trust_remote_code": True}})
    assert load_pair(arguments, parsed).student.config.vocab_size == len(VOCABULARY)


def test_a_probe_makes_its_folder_first_and_keeps_its_numbers(
    tmp_path: Path,
    config: dict[str, Any],  # noqa: F811
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    path, output = tmp_path / "config.yaml", tmp_path / "at" / "probe"
    path.write_text(yaml.safe_dump(config | {"eval_verifier": "numeric"}))
    words = ["probe", str(path), "--epsilon", "0.5", "--lengths", "2", "--limit", "2", "--output", str(output)]

    def fails(*_: Any) -> Any:
        assert output.is_dir()
        raise ValueError("no more")

    for name, left in (("measure", []), ("plot_probe", ["probe.json"])):
        with monkeypatch.context() as patch:
            patch.setattr(f"trbext.studies.probe.command.{name}", fails)
            assert main(words) == 2
        assert capsys.readouterr().err.splitlines()[-1] == "trb: no more"
        assert output.exists() == bool(left)
        assert [file.name for file in output.glob("*")] == left
