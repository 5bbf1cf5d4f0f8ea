"""Tests study files: what they make of runs, sweeps and seeds, and one clear line for each fault in one."""

from __future__ import annotations

import errno
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file, save_file

from python_tests.models.tiny_models import saved, tiny_llama, tiny_tokenizer
from python_tests.studies.study_files import BASE, declaration, write
from trbext.cli import main
from trbext.studies.compare.declaration import Study, read_study
from trbext.studies.compare.folder_names import folder_names


def test_a_sweep_makes_a_run_of_every_combination(tmp_path: Path) -> None:
    sweep = {"trb_epsilon": [0.1, 0.5], "trb_warmup_steps": [5, 10]}
    runs = {"OPD": {"rollout_policy": "student"}, "TRB": {"learning_rate": 0.01, "sweep": sweep}}
    study, _ = read_study(write(tmp_path, declaration(tmp_path, runs=runs)))
    assert [run.label for run in study.runs] == [
        "OPD",
        "TRB epsilon=0.1 warmup_steps=5",
        "TRB epsilon=0.1 warmup_steps=10",
        "TRB epsilon=0.5 warmup_steps=5",
        "TRB epsilon=0.5 warmup_steps=10",
    ]
    assert study.runs[2].overrides == {"learning_rate": 0.01, "trb_epsilon": 0.1, "trb_warmup_steps": 10}
    settings = study.settings(study.runs[2], 7)
    assert settings["seed"] == 7
    assert settings["output_dir"] == str(tmp_path / "study/runs/trb-epsilon=0.1-warmup-steps=10/seed-7")
    assert {name: settings[name] for name in BASE} == BASE


def test_every_other_run_is_compared_with_each_reference_once(tmp_path: Path) -> None:
    study, _ = read_study(write(tmp_path, declaration(tmp_path, reference=["OPD", "Fixed"])))
    assert study.contrasts == [
        ("TRB epsilon=0.1", "OPD"),
        ("TRB epsilon=0.5", "OPD"),
        ("Fixed", "OPD"),
        ("TRB epsilon=0.1", "Fixed"),
        ("TRB epsilon=0.5", "Fixed"),
    ]


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"polices": 1}, "unknown key 'polices'; a study has base, "),
        ({"metric": {"name": "eval_f1"}}, "unknown metric 'eval_f1'; a study can be judged by eval_pass@1, eval_loss"),
        ({"metric": {"name": "eval_loss", "better": "more"}}, "better must be higher or lower, got 'more'"),
        ({"metric": {"name": "eval_loss", "final_evaluations": 5}}, "but a run is evaluated only 4 times"),
        ({"metric": "eval_loss"}, "metric must hold fields and values, got 'eval_loss'"),
        ({"secondary_metrics": ["eval_pass@1"]}, "name a metric twice"),
        ({"reference": "opd"}, "reference must name each run once, of OPD, TRB epsilon=0.1,"),
        ({"reference": None}, "reference is not set"),
        ({"seeds": [1, 1]}, "seeds must be at least two different ones, got [1, 1]"),
        ({"seeds": 3}, "seeds must be a list of whole numbers, got 3"),
        ({"seeds": [1, 2**32]}, "seed must be a whole number with 0 <= x < 2^32, got 4294967296"),
        ({"processes": 0}, "processes must be a whole number of at least 1, got 0"),
        ({"runs": {"OPD": {}}}, "a study compares at least two runs, got 1"),
        ({"runs": {"OPD": {}, "B": {"sweep": {"trb_epsilon": [1, 1]}}}}, "two runs are named 'B epsilon=1'"),
        ({"runs": {"OPD": {}, 3: {"trb_epsilon": 1}}}, "names of runs must be text, got 3: quote it"),
        ({"runs": {"OPD": {}, "B": {3: 1}}}, "run 'B': names of fields must be text, got 3: quote it"),
        ({"title": True}, "title is text, which YAML reads as True: quote it"),
        ({"output_dir": 2026}, "output_dir is text, which YAML reads as 2026: quote it"),
        ({"keep_models": "yes, please"}, "keep_models must be true or false, got 'yes, please'"),
        ({"metric": {"name": ["eval_loss"]}}, "unknown metric ['eval_loss']"),
        ({"runs": {"OPD": {}, "B": {"sweep": {"trb_epsilon": 1}}}}, "must map fields to lists of values"),
        ({"runs": {"OPD": {}, "B": {"trb_epsilon": 1, "sweep": {"trb_epsilon": [1]}}}}, "both sets and sweeps"),
        ({"runs": {"OPD": {}, "B": {"trb_epsilonn": 1}}}, "run 'B': unknown field 'trb_epsilonn'; did you mean"),
        ({"runs": {"OPD": {}, "B": {"rollout_policy": "oracle"}}}, "run 'B': rollout_policy must be one of "),
        ({"runs": {"OPD": {}, "B": {"trb_epsilon": -1}}}, "run 'B': trb_epsilon must be a KL budget"),
        ({"runs": {"OPD": {}, "B": {"max_steps": 80}}}, "run 'B' sets max_steps, which must be the same for all runs"),
        (
            {"runs": {"OPD": {}, "B": {"chat_template_kwargs": {"a": 1}}}},
            "run 'B' sets chat_template_kwargs, which must",
        ),
        ({"runs": {"OPD": {}, "B": {"eval_delay": 1}}}, "run 'B' sets eval_delay, which must be the same for all runs"),
        ({"base": BASE | {"eval_delay": 20}}, "eval_delay must be at most eval_steps = 10, got 20"),
        ({"runs": {"OPD": {}, "B": {"seed": 80}}}, "run 'B' sets seed, which must be the same for all runs"),
        ({"base": BASE | {"seed": 3}}, "base must not hold seed: a study sets it for each run"),
        ({"base": BASE | {"max_steps": -1}}, "base must set max_steps"),
        ({"base": BASE | {"eval_steps": 15}}, "eval_steps must divide max_steps = 40"),
        ({"base": BASE | {"eval_strategy": "no"}}, "base must set eval_strategy: steps"),
        ({"base": BASE | {"eval_verifier": None}}, "metric eval_pass@1 needs eval_verifier"),
        ({"base": BASE | {"eval_prompts": None}}, "base must set eval_prompts"),
    ],
)
def test_bad_studies_give_one_line_and_exit_code_2(
    change: dict[str, Any], words: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["compare", str(write(tmp_path, declaration(tmp_path, **change)))]) == 2
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert words in line
    assert not (tmp_path / "study").exists()


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"loss_top_k": 4}, "loss_top_k changes what eval_loss means, and is 4 in run 'Other' and None in run 'OPD'"),
        ({"loss_estimator": "top_k"}, "loss_top_k changes what eval_loss means, and is 16 in run 'Other'"),
        ({"top_p": 0.9}, "altered sampling changes what eval_loss means, and is 'top_p=0.9' in run 'Other'"),
        ({"teacher_model_name_or_path": "demo:student"}, "teacher_model_name_or_path changes what eval_loss means"),
    ],
)
def test_fields_that_change_a_held_out_loss_may_not_differ_if_it_is_judged(
    fields: dict[str, Any], words: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    runs = {"OPD": {"rollout_policy": "student"}, "Other": {"rollout_policy": "student", **fields}}
    read_study(write(tmp_path, declaration(tmp_path, runs=runs)))
    path = write(tmp_path, declaration(tmp_path, runs=runs, secondary_metrics=["eval_loss"]))
    assert main(["compare", str(path)]) == 2
    assert words in capsys.readouterr().err


def test_other_losses_and_caches_leave_the_meaning_of_a_held_out_loss(tmp_path: Path) -> None:
    base: dict[str, Any] = {"rollout_policy": "student"}
    runs = {"OPD": base, "JSD": base | {"beta": 0.5}, "Static": base | {"cache_implementation": "static"}}
    study, _ = read_study(write(tmp_path, declaration(tmp_path, runs=runs, secondary_metrics=["eval_loss"])))
    assert len(study.runs) == 3


def test_a_run_named_twice_is_refused_although_yaml_would_keep_the_second(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = write(tmp_path, declaration(tmp_path))
    path.write_text(path.read_text().replace("  Fixed:", "  OPD:"))
    assert main(["compare", str(path)]) == 2
    assert "names 'OPD' twice" in capsys.readouterr().err


def test_folders_of_runs_are_named_readably_in_any_script_and_never_twice() -> None:
    labels = [
        "TRB epsilon=0.1",
        "基线",
        "教師",
        "दूसरा प्रयास",
        "База №2",
        "OPD (vanilla)",
        "🔥",
        "..",
        "///",
        "A/B",
        "a b",
    ]
    assert folder_names(labels) == [
        "trb-epsilon=0.1",
        "基线",
        "教師",
        "दूसरा-प्रयास",
        "база-№2",
        "opd-vanilla",
        "🔥",
        "run-5ec1f7e7",
        "run-732c4e97",
        "a-b-998d3ed8",
        "a-b-c8687a08",
    ]
    decomposed, composed = "Lo\u0308sung", "L\u00f6sung"
    names = folder_names([decomposed, composed, "x" * 300])
    assert [name[:7] for name in names[:2]] == ["l\u00f6sung-"] * 2
    assert names[0] != names[1]
    assert names[2] == "x" * 200
    assert max(len(name.encode()) for name in folder_names(["教" * 300, "教" * 301])) < 255


def test_a_run_keeps_its_folder_when_the_runs_change_their_order() -> None:
    labels = ["OPD", "b > 1", "b < 1"]
    assert dict(zip(labels, folder_names(labels), strict=True)) == dict(
        zip(labels[::-1], folder_names(labels[::-1]), strict=True)
    )


def test_a_home_folder_is_that_of_a_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    study, _ = read_study(write(tmp_path, declaration(tmp_path, output_dir="~/study")))
    assert study.folder == tmp_path / "study"


def test_a_run_that_could_not_start_is_named_before_the_study_has_a_folder(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    damaged = saved(tmp_path / "damaged", tiny_llama(), tiny_tokenizer())
    tensors = load_file(f"{damaged}/model.safetensors")
    del tensors["model.layers.0.mlp.gate_proj.weight"]
    save_file(tensors, f"{damaged}/model.safetensors", metadata={"format": "pt"})
    for changes, message in (
        ({"base": BASE | {"prompts": "void.jsonl"}}, "no such file of prompts: void.jsonl"),
        ({"base": BASE | {"eval_verifier": "numeric"}}, "the verifier 'numeric' raises on every completion"),
        (
            {"base": BASE | {"teacher_model_name_or_path": damaged}},
            f"the teacher {damaged} lacks the weights 'model.layers.0.mlp.gate_proj.weight'",
        ),
        (
            {"runs": {"OPD": {}, "B": {"rollout_policy": "void:Mine"}}},
            "run 'B': the rollout policy 'void:Mine' could not",
        ),
        ({"runs": {"OPD": {}, "B": {"loss_top_k": 10**6}}}, "run 'B': loss_top_k"),
    ):
        assert main(["compare", str(write(tmp_path, declaration(tmp_path, **changes)))]) == 2
        assert message in capsys.readouterr().err.splitlines()[-1]
        assert not (tmp_path / "study").exists()


def test_what_a_study_could_not_write_is_named_before_a_run_is_trained(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def train(study: Study, *_: Any) -> list[str]:
        raise PermissionError(errno.EACCES, "Permission denied", str(study.folder))

    monkeypatch.setattr("trbext.studies.compare.command.run_study", train)
    (tmp_path / "study" / "results.csv").mkdir(parents=True)
    (tmp_path / "figured").mkdir()
    (tmp_path / "figured" / "figures").touch()
    for folder, words in (
        (tmp_path / ("x" * 300), "output_dir must be a path that can be made, got "),
        (tmp_path / "study", f"{tmp_path}/study/results.csv must be a file, got a folder: move it away"),
        (tmp_path / "figured", f"{tmp_path}/figured/figures must be a folder, got a file: move it away"),
        (tmp_path / "closed", f"Permission denied: '{tmp_path}/closed'"),
    ):
        assert main(["compare", str(write(tmp_path, declaration(tmp_path, output_dir=str(folder))))]) == 2
        assert words in capsys.readouterr().err.strip().splitlines()[-1]
