"""Flags under which a server's rollouts would not follow mu are refused by name, however they are written."""

from __future__ import annotations

import importlib.util
from types import SimpleNamespace

import pytest

from trbext.vllm.server.flags import REFUSED, check_flags, check_parsed, value_of


@pytest.mark.parametrize("flag", REFUSED)
def test_each_is_refused_by_name_with_its_reason(flag: str) -> None:
    spellings = [[f"--{flag}", "x"], [f"--{flag}=x"], [f"--{flag.replace('-', '_')}", "x"], [f"--{flag}.key", "x"]]
    if REFUSED[flag].short:
        spellings.append([REFUSED[flag].short, "x"])
    for words in spellings:
        with pytest.raises(ValueError, match="cannot be given to a TRB server") as error:
            check_flags(["--port", "1", *words])
        assert words[0].partition("=")[0] in str(error.value)
        assert REFUSED[flag].reason in str(error.value)


@pytest.mark.parametrize(
    "words",
    [
        ["--generation-config", "vllm"],
        ["--generation_config=vllm"],
        ["--api-server-count", "1"],
        ["-asc", "1", "-pp", "1"],
        [
            "--tensor-parallel-size",
            "2",
            "-dp",
            "4",
            "--data-parallel-size-local",
            "2",
            "--data-parallel-backend",
            "ray",
        ],
        ["--max-model-len", "4096", "--max-num-seqs", "64", "--max-num-batched-tokens", "8192"],
        ["--no-enable-prefix-caching", "--async-scheduling", "--kv-cache-dtype", "fp8", "--quantization", "fp8"],
        ["--model-impl", "vllm", "--served-model-name", "m", "--api-key", "k", "--weight-transfer-config", "{}"],
    ],
)
def test_what_does_no_harm_passes(words: list[str]) -> None:
    check_flags(words)


@pytest.mark.parametrize("word", ["--spec", "--speculative", "--enable-sleep", "--gen", "--kv-transfer", "--api-s=2"])
def test_the_first_letters_of_a_flag_are_that_flag(word: str) -> None:
    with pytest.raises(ValueError, match="cannot be given"):
        check_flags([word])


def test_parsed_flags_are_refused_wherever_they_came_from() -> None:
    harmless = {
        "generation_config": "vllm",
        "api_server_count": None,
        "pipeline_parallel_size": 1,
        "lora_modules": None,
    }
    ours = {"model": "teacher", "speculative_config": {"model": "student"}, "worker_extension_cls": "trbext"}
    defaults = {"enable_sleep_mode": False, "override_generation_config": {}, "worker_cls": "auto"}
    check_parsed(SimpleNamespace(**harmless, **ours, **defaults))
    for name, value in {
        "generation_config": "auto",
        "api_server_count": 2,
        "enable_sleep_mode": True,
        "kv_transfer_config": {"kv_connector": "x"},
        "data_parallel_external_lb": True,
    }.items():
        with pytest.raises(RuntimeError, match=f"--{name.replace('_', '-')} .* cannot be given to a TRB server"):
            check_parsed(SimpleNamespace(**{**harmless, **ours, **defaults, name: value}))


def test_the_last_value_of_a_flag_counts() -> None:
    words = ["--max_num_seqs=8", "-tp", "2", "--max-num-seqs", "16", "--tensor-parallel-size"]
    assert value_of(words, "--max-num-seqs") == "16"
    assert value_of(words, "-tp") == "2"
    assert value_of(words, "--max-model-len") is None


@pytest.mark.vllm
@pytest.mark.skipif(importlib.util.find_spec("vllm") is None, reason="needs vLLM")
def test_the_flags_are_vllms_and_no_other_of_its_flags_is_taken_for_one() -> None:
    from vllm.entrypoints.launchers.cli_args import make_arg_parser
    from vllm.utils.argparse_utils import FlexibleArgumentParser

    parser = make_arg_parser(FlexibleArgumentParser())
    known = {option for action in parser._actions for option in action.option_strings}
    assert {f"--{flag}" for flag in REFUSED} <= known
    assert {refused.short for refused in REFUSED.values() if refused.short} <= known
    for option in sorted(known):
        named = option.removeprefix("--") in REFUSED or option in {refused.short for refused in REFUSED.values()}
        try:
            check_flags([f"{option}=x"])
        except ValueError:
            assert named, f"{option} is refused"
        else:
            assert not named
