"""A task of lighteval over the prompts that recipes/smollm2_pruned.py has written: nothing is downloaded.

lighteval accelerate "model_name=runs/smollm2-vllm/model,generation_parameters={temperature:1.0}" \\
    "gsm_symbolic_local|0" --custom-tasks recipes/harnesses/gsm_symbolic_lighteval.py

GSM_SYMBOLIC_PROMPTS names another folder of prompts, whose file eval.jsonl has the columns `prompt` (messages) and
`answer`. lighteval has its own sampling: give the temperature, because its default of 0 decodes greedily.
"""

from __future__ import annotations

import os
from typing import Any

import numpy as np
from lighteval.metrics.metrics_sample import SampleLevelComputation
from lighteval.metrics.utils.metric_utils import SampleLevelMetric
from lighteval.models.model_output import ModelResponse
from lighteval.tasks.lighteval_task import LightevalTaskConfig
from lighteval.tasks.requests import Doc, SamplingMethod

from trbext.evaluation.verifiers import numeric


class LastNumber(SampleLevelComputation):
    """Judges a completion by our verifier `numeric`."""

    def compute(self, doc: Doc, model_response: ModelResponse, **_: Any) -> float:
        return float(numeric(doc.query, model_response.final_text[0], {"answer": doc.choices[0]}))


def problem(row: dict[str, Any], task_name: str) -> Doc:
    """Returns a row as lighteval reads it, which makes a message of the query if the model has a chat template."""
    return Doc(task_name=task_name, query=row["prompt"][0]["content"], choices=[row["answer"]], gold_index=0)


TASKS_TABLE = [
    LightevalTaskConfig(
        name="gsm_symbolic_local",
        prompt_function=problem,
        hf_repo=os.environ.get("GSM_SYMBOLIC_PROMPTS", "runs/smollm2-models/prompts"),
        hf_subset="default",
        hf_avail_splits=["train", "test"],
        evaluation_splits=["test"],  # `datasets` counts eval.jsonl as one
        generation_size=256,
        metrics=[
            SampleLevelMetric(
                metric_name="last_number",
                higher_is_better=True,
                category=SamplingMethod.GENERATIVE,
                sample_level_fn=LastNumber(),
                corpus_level_fn=np.mean,
            )
        ],
    )
]
