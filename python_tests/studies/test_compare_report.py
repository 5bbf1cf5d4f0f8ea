"""Tests what `trb compare` reports of runs whose numbers were made up, so that the expected report is known."""

from __future__ import annotations

import contextlib
import csv
import errno
import io
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy.integrate import trapezoid

from python_tests.studies import headless_chromium
from python_tests.studies.study_files import declaration, pretend_finished, write
from trbext.cli import main
from trbext.data.yaml_file import read_yaml
from trbext.errors import UsageError
from trbext.runs.folder import RunFolder
from trbext.runs.settings import parse_settings
from trbext.studies.compare.declaration import read_study
from trbext.studies.compare.folder import open_folder

GAIN = {"OPD": 0.0, "TRB epsilon=0.1": 0.1, "TRB epsilon=0.5": 0.0, "Fixed": -0.1}


def noise(run: str, seed: int, step: int) -> float:
    return float(np.random.default_rng([seed, step, len(run), ord(run[-1])]).normal(0, 0.01))


def pass_at_1(run: str, seed: int, step: int) -> float:
    """Returns 0.1 at the start and 0.4 at step 40, plus a level per seed, and after the start a gain and noise."""
    return 0.1 + 0.01 * seed + (0.3 * step / 40 + GAIN[run] + noise(run, seed, step)) * (step > 0)


def made_up(folder: Path) -> Path:
    path = write(folder, declaration(folder))
    pretend_finished(path, pass_at_1, lambda run: {"OPD": 100, "Fixed": 200}.get(run, 300))
    return path


@pytest.fixture
def study(tmp_path: Path) -> Path:
    return made_up(tmp_path)


@dataclass(frozen=True)
class Reported:
    """A study that was reported once, for tests that only read it."""

    study: Path
    folder: Path
    out: str


@pytest.fixture(scope="module")
def reported(tmp_path_factory: pytest.TempPathFactory) -> Reported:
    folder = tmp_path_factory.mktemp("reported")
    path = made_up(folder)
    with contextlib.redirect_stdout(io.StringIO()) as out:
        assert main(["compare", str(path), "--report"]) == 0
    return Reported(path, folder, out.getvalue())


def page(tmp_path: Path) -> str:
    """Returns the page's text, without figures and tags."""
    text = (tmp_path / "study" / "index.html").read_text()
    text = re.sub(r"<(svg|style).*?</\1>", "", text, flags=re.DOTALL)
    return " ".join(re.sub(r"<[^>]*>", " ", text).split())


def test_the_report_says_in_words_what_is_resolved_and_what_is_not(reported: Reported) -> None:
    out = " ".join(reported.out.split())
    text = page(reported.folder)
    for said in (out, text):
        assert re.search(r"TRB epsilon=0.1 is better than OPD: \+(9|10)\.\d points \[\+\d+\.\d, \+\d+\.\d\]", said)
        assert re.search(r"Fixed is worse than OPD: -(9|10)\.\d points", said)
        assert "Not resolved: TRB epsilon=0.5 against OPD." in said
        # It equals OPD at equal steps, so at a third of them, which equal teacher tokens buy, it is behind.
        assert re.findall(r"TRB epsilon=0.5 is [^\[]*", said) == ["TRB epsilon=0.5 is worse than OPD: -19.2 points "]
    assert "corrected by Holm for all 3 comparisons" in text
    assert "Incomplete" not in text
    assert "no difference can be resolved" not in text


def test_results_csv_holds_every_view_of_every_run_with_its_cost(reported: Reported) -> None:
    with (reported.folder / "study" / "results.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 4 * 8 * 5
    found = {row["view"]: row for row in rows if row["run"] == "TRB epsilon=0.1" and row["seed"] == "3"}
    curve = [pass_at_1("TRB epsilon=0.1", 3, step) for step in range(0, 41, 10)]
    assert float(found["final"]["value"]) == pytest.approx((curve[3] + curve[4]) / 2)
    assert float(found["best"]["value"]) == pytest.approx(max(curve))
    assert float(found["area"]["value"]) == pytest.approx(trapezoid(curve, dx=0.25))
    # It spends three times the cheapest run's teacher tokens, so it is read at a third of its steps.
    expected = curve[1] + (40 / 3 - 10) / 10 * (curve[2] - curve[1])
    assert float(found["equal_teacher_tokens"]["value"]) == pytest.approx(expected)
    assert float(found["equal_seconds"]["value"]) == pytest.approx(curve[4])
    assert (found["final"]["seconds"], found["final"]["teacher_tokens"]) == ("20", "12000")


def test_a_report_of_an_unfinished_study_warns_and_compares_seeds_that_both_runs_have(
    study: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for seed in (2, 3):
        (tmp_path / f"study/runs/opd/seed-{seed}/finished.json").unlink()
    assert main(["compare", str(study), "--report"]) == 0
    assert "Incomplete: 2 of 32 runs are missing" in " ".join(capsys.readouterr().out.split())
    row = next(r for r in re.findall(r"<tr class.*?</tr>", (tmp_path / "study/index.html").read_text(), re.DOTALL))
    assert "OPD" in row
    text = page(tmp_path)
    assert re.search(r"OPD 6 \d+\.\d % ± ", text)
    assert "With 6 seeds and 3 comparisons the smallest corrected p that exists is 0.094" in text


def test_a_run_that_diverged_is_named_and_left_out(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = write(tmp_path, declaration(tmp_path))
    diverged = ("Fixed", 5)
    pretend_finished(path, lambda run, seed, step: float("nan") if (run, seed) == diverged else pass_at_1(run, seed, 1))
    metrics = tmp_path / "study/runs/fixed/seed-5/metrics.jsonl"
    metrics.write_text(metrics.read_text().replace("NaN", "null"))  # as a run writes it
    assert main(["compare", str(path), "--report"]) == 0
    text, out = page(tmp_path), capsys.readouterr().out
    assert "Without a finite value in some view, and left out of its differences: Fixed seed 5." in text
    found = re.search(r"Fixed (\d+\.\d %) -?\d+\.\d points", text)
    assert found is not None
    assert re.search(rf"Fixed +│ +{found[1]} ", out), "the console and the page disagree on the mean of the other seeds"


def test_a_study_with_nothing_finished_has_nothing_to_report(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["compare", str(write(tmp_path, declaration(tmp_path))), "--report"]) == 2
    assert "no run of" in capsys.readouterr().err
    assert not (tmp_path / "study").exists()  # nothing is declared yet: the file may still change


def test_a_study_continues_in_its_own_folder_only(
    study: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def refused(**change: Any) -> str:
        path = write(tmp_path, declaration(tmp_path, **change))
        assert main(["compare", str(path), "--report"]) == 2
        (line,) = capsys.readouterr().err.strip().splitlines()
        return line

    assert "study of another configuration (seeds: [1, 2, 3, 4, 5, 6, 7, 8] -> [1, 2])" in refused(seeds=[1, 2])
    changed = declaration(tmp_path)["base"] | {"learning_rate": 0.1}
    assert "(base.learning_rate: unset -> 0.1)" in refused(base=changed)
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "thesis.txt").write_text("precious")
    assert "full is not empty and holds no study" in refused(output_dir=str(tmp_path / "full"))
    capsys.readouterr()
    assert main(["compare", str(write(tmp_path, declaration(tmp_path, processes=7))), "--report"]) == 0


def test_equal_results_give_an_equal_page(reported: Reported) -> None:
    first = (reported.folder / "study/index.html").read_bytes()
    assert main(["compare", str(reported.study), "--report"]) == 0
    assert (reported.folder / "study/index.html").read_bytes() == first


@pytest.mark.skipif(headless_chromium.missing() is not None, reason=str(headless_chromium.missing()))
def test_the_page_is_readable_on_a_phone_and_a_desktop_without_a_network(reported: Reported, tmp_path: Path) -> None:
    file = reported.folder / "study" / "index.html"
    with headless_chromium.Page(file, tmp_path / "profile") as browser:
        for name, width, height, phone in (("phone", 360, 780, True), ("desktop", 1280, 900, False)):
            browser.load(width, height, phone=phone)
            assert browser.ask("document.documentElement.scrollWidth") <= width, "the page scrolls sideways"
            assert browser.requests() == [file.resolve().as_uri()]
            assert browser.complaints() == []
            boxes = browser.ask(
                "[...document.querySelectorAll('figure svg')].map(s => s.getBoundingClientRect().width)"
            )
            assert len(boxes) == 3 + 5 + 2  # curves, contrasts, diagnostics
            assert all(0.8 * min(width, 400) < box <= width for box in boxes)
            smallest = browser.ask(
                "Math.min(...[...document.querySelectorAll('figure text')].map(t => t.getBoundingClientRect().height))"
            )
            assert smallest > 6, "text in the figures is too small to read"
            browser.screenshot(tmp_path / f"{name}.png")
            browser.ask("document.querySelector('figure svg').scrollIntoView()")
            browser.screenshot(tmp_path / f"{name}-figure.png")
            assert colors(tmp_path / f"{name}.png") > 20  # text on white
            assert "#0072b2" in drawn(tmp_path / f"{name}-figure.png"), "the first curve's color is not on the screen"


def pixels(path: Path) -> np.ndarray[Any, Any]:
    from matplotlib.image import imread

    return (imread(path)[..., :3] * 255).round().astype(int).reshape(-1, 3)


def colors(path: Path) -> int:
    return len(np.unique(pixels(path), axis=0))


def drawn(path: Path) -> set[str]:
    values, counts = np.unique(pixels(path), axis=0, return_counts=True)
    return {"#{:02x}{:02x}{:02x}".format(*value) for value, count in zip(values, counts, strict=True) if count > 20}


def test_a_full_disk_is_one_line_that_names_the_file(
    study: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def full(*_: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")  # the system names no file

    monkeypatch.setattr("trbext.studies.compare.command.write_csv", full)
    assert main(["compare", str(study), "--report"]) == 1
    results = study.parent / "study" / "results.csv"
    assert capsys.readouterr().err == f"trb: [Errno 28] No space left on device: '{results}'\n"


def test_names_in_brackets_are_no_markup(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    runs = {"OPD [/theirs]": {"rollout_policy": "student"}, "TRB [ours]": {"trb_epsilon": 0.5}}
    changes = {"title": "Both [/b]", "reference": "OPD [/theirs]", "runs": runs, "seeds": [1, 2]}
    path = write(tmp_path, declaration(tmp_path, **changes))
    pretend_finished(path, lambda run, seed, step: 0.1)
    assert main(["compare", str(path), "--report"]) == 0
    out = capsys.readouterr().out
    assert "Both [/b]: pass@1" in out
    assert "Differences are to OPD [/theirs]," in out
    assert "TRB [ours]" in out.split("Differences are to")[0]


def test_names_with_dollars_are_no_formulas(tmp_path: Path) -> None:
    names = ["a$_$", "b$x$"]
    runs = {name: {"trb_epsilon": number} for number, name in enumerate(names)}
    path = write(tmp_path, declaration(tmp_path, reference=names[0], runs=runs, seeds=[1, 2]))
    pretend_finished(path, lambda run, seed, step: 0.1)
    assert main(["compare", str(path), "--report"]) == 0
    figures = (tmp_path / "study" / "figures").glob("*.svg")
    text = " ".join(path.read_text(encoding="utf-8") for path in figures)
    assert all(f">{name}<" in text for name in names)
    assert "difference to a$_$<" in text


def test_a_report_of_no_finished_run_declares_no_study(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = write(tmp_path, declaration(tmp_path))
    folder = tmp_path / "study"
    for _ in range(2):
        assert main(["compare", str(path), "--report"]) == 2
        assert capsys.readouterr().err == f"trb: no run of {folder} is finished\n"
        assert not list(folder.glob("*"))
        folder.mkdir(exist_ok=True)


def test_a_study_is_declared_anew_until_a_run_begins(tmp_path: Path) -> None:
    path = write(tmp_path, declaration(tmp_path))
    open_folder(*read_study(path))
    study, declared = read_study(write(tmp_path, declaration(tmp_path, seeds=[1, 2])))
    open_folder(study, declared)
    assert read_yaml(tmp_path / "study" / "study.yaml")["seeds"] == [1, 2]
    study.run_folder(study.runs[0], 1).mkdir(parents=True)
    open_folder(study, declared)
    with pytest.raises(UsageError, match=r"holds a study of another configuration \(seeds: "):
        open_folder(*read_study(write(tmp_path, declaration(tmp_path))))


def test_a_study_keeps_the_names_of_its_runs(tmp_path: Path) -> None:
    def declared(sweep: dict[str, Any]) -> Path:
        runs = {"OPD": {"rollout_policy": "student"}, "TRB": {"sweep": sweep}}
        return write(tmp_path, declaration(tmp_path, runs=runs))

    sweep = {"trb_epsilon": [0.5, 1], "trb_warmup_steps": [2]}
    study, contents = read_study(declared(sweep))
    open_folder(study, contents)
    study.run_folder(study.runs[0], 1).mkdir(parents=True)
    open_folder(*read_study(declared(sweep)))
    for other in (sweep | {"trb_epsilon": [0.5, 1.0]}, dict(reversed(sweep.items()))):
        words = (
            r"holds a study of another configuration \(runs are named OPD, TRB epsilon=0.5 warmup_steps=2, TRB epsil"
        )
        with pytest.raises(UsageError, match=words):
            open_folder(*read_study(declared(other)))


def test_a_folder_of_another_run_is_no_result(study: Path, capsys: pytest.CaptureFixture[str]) -> None:
    declared, _ = read_study(study)
    run = declared.runs[1]
    folder = RunFolder(declared.run_folder(run, 3))
    _, _, settings = parse_settings(declared.settings(run, 3))
    folder.write_settings(settings)
    assert main(["compare", str(study), "--report"]) == 0
    folder.write_settings(settings | {"trb_epsilon": 0.5})
    assert main(["compare", str(study), "--report"]) == 2
    assert f"{folder.config} must hold the settings of run 'TRB epsilon=0.1', got others (trb_epsilon: 0.5 -> 0.1)" in (
        capsys.readouterr().err
    )
