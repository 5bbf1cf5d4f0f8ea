"""A plain vLLM server of the teacher tells a `RemoteTeacher` what the model says."""

from __future__ import annotations

import importlib.util
import os
import signal
import time
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from python_tests.vllm.server.plain_server import plain_server
from python_tests.vllm.server.served_models import ALIGNMENT, STOP, TEACHER_STOP, make_models
from python_tests.vllm.server.server_process import SIZES, START_SECONDS
from trbext import RemoteTeacher, TopK, speculative
from trbext.errors import EngineFailed, UsageError

pytestmark = [
    pytest.mark.vllm,
    pytest.mark.nightly,
    pytest.mark.skipif(importlib.util.find_spec("vllm") is None, reason="needs vLLM"),
]


def test_a_vllm_server_tells_what_its_model_says_until_it_is_killed(tmp_path: Path) -> None:
    models = make_models(tmp_path)
    tokenizer = AutoTokenizer.from_pretrained(models.teacher)
    local = AutoModelForCausalLM.from_pretrained(models.teacher)
    student = AutoModelForCausalLM.from_pretrained(models.student)
    prefixes = [[1, 5, 7, 4, 9], [3], [6, 6, 8, 10, 2, 5, 5], [1, 5, 7, 4, 9, 11]]
    with plain_server(models.teacher, tmp_path / "log", *SIZES) as (url, process):
        for _ in range(int(START_SECONDS)):  # it has to import vLLM first
            try:
                teacher = RemoteTeacher(url, top_k=20, tokenizer=tokenizer, eos_token_ids=[3], tries=1)
                break
            except UsageError as error:
                if "no teacher is served" not in str(error) or process.poll() is not None:
                    raise AssertionError((tmp_path / "log").read_text(encoding="utf-8")[-4000:]) from error
                time.sleep(1)
        # 1. The next tokens, and those of whole sequences.
        told = teacher.next_tokens(prefixes, ALIGNMENT)
        for row, prefix in enumerate(prefixes):
            compare(TopK(*(part[row] for part in told)), local, prefix)
        scored = teacher.score([prefixes[2]], [3], ALIGNMENT)
        for row, place in enumerate(range(3, 7)):
            compare(TopK(*(part[row] for part in scored)), local, prefixes[2][:place])
        given = torch.tensor([[4, 2, 9, 5], [8, 10, 1, 0], [7, 6, 2, 14], [11, 12, 13, 14]])
        asked = teacher.log_probs_of(prefixes, given, ALIGNMENT)
        for row, prefix in enumerate(prefixes):
            with torch.no_grad():
                law = local(torch.tensor([prefix]), use_cache=False).logits[0, -1].log_softmax(-1)
            law[STOP] = law[[STOP, TEACHER_STOP]].logsumexp(0)
            torch.testing.assert_close(asked[row], law[given[row]], atol=0.02, rtol=0)
        with pytest.raises(UsageError, match=r"refuses /v1/completions: .*logprobs"):
            RemoteTeacher(url, top_k=21, tries=1)
        with pytest.raises(UsageError, match="takes 256 tokens, and a prefix has 256"):
            teacher.next_tokens([[5] * 256], ALIGNMENT)
        # 2. A rollout, whose law other tests check: here its budget, and what comes along for the loss.
        prompts = torch.tensor([prefixes[0], prefixes[0]]), torch.ones(2, 5, dtype=torch.int64)
        rollout = speculative(
            student,
            teacher,
            *prompts,
            epsilon=0.1,
            max_new_tokens=12,
            alignment=ALIGNMENT,
            pad_token_id=0,
            draft_length=3,
            generator=torch.Generator().manual_seed(3),
        )
        assert 0 < float(rollout.kl.max()) <= 0.1 * (1 + 1e-4)
        assert rollout.teacher_top_ids is not None
        assert rollout.teacher_top_log_prob is not None
        for place in range(3):
            prefix = prefixes[0] + rollout.tokens[0, :place].tolist()
            compare(TopK(rollout.teacher_top_ids[0, place], rollout.teacher_top_log_prob[0, place]), local, prefix)
        # 3. The server is killed.
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        with pytest.raises(EngineFailed, match="continues from its last checkpoint"):
            teacher.next_tokens(prefixes, ALIGNMENT)


def compare(told: TopK, model: torch.nn.Module, prefix: list[int]) -> None:
    """Checks the told log-probs against the model's over the common vocabulary, up to the few that are not told."""
    with torch.no_grad():
        logits = model(torch.tensor([prefix]), use_cache=False).logits[0, -1]
    law = ALIGNMENT.canonical(logits).log_softmax(-1)
    known = told.ids >= 0
    torch.testing.assert_close(told.log_probs[known], law[told.ids[known]], atol=0.02, rtol=0)
    assert len(known) - int(known.sum()) < 15
