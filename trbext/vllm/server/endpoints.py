"""Adds the calls of a TRB server to vLLM's API server (entry point `vllm.endpoint_plugins`).

vLLM loads it only if VLLM_PLUGINS names it, which `trb vllm-serve` does. A server whose engines cannot be enabled, or
whose flags would break the law of the rollouts, ends before it listens.
"""

from __future__ import annotations

from typing import Any

from ...models.stored_digest import model_digest
from .access import is_allowed, key_digests
from .calls import HTTPAnswer, ServerCalls
from .flags import check_parsed
from .replicas import Replicas
from .stored_alignment import align_stored

PLUGIN = "trbext_http"  # its name in VLLM_PLUGINS


class TRBEndpoints:
    """vLLM's EndpointPlugin."""

    name = PLUGIN
    required_tasks = ("generate",)

    def attach_router(self, app: Any) -> None:
        """Adds GET /trb/handshake and POST /trb/{call} to vLLM's application."""
        from starlette.responses import JSONResponse, Response
        from starlette.routing import Route

        def response(answer: HTTPAnswer) -> Any:
            return Response(answer.body, answer.status, answer.headers, media_type=answer.media_type)

        async def handshake(request: Any) -> Any:
            if not is_allowed(request, request.app.state.trb_api_keys):
                return JSONResponse({"error": "Unauthorized"}, 401)
            return response(request.app.state.trb_calls.handshake())

        async def call(request: Any) -> Any:
            if not is_allowed(request, request.app.state.trb_api_keys):
                return JSONResponse({"error": "Unauthorized"}, 401)
            return response(await request.app.state.trb_calls.answer(request.path_params["name"], await request.body()))

        app.router.routes.append(Route("/trb/handshake", handshake, methods=["GET"]))
        app.router.routes.append(Route("/trb/{name}", call, methods=["POST"]))

    async def init_state(self, engine_client: Any, state: Any, args: Any) -> None:
        """Enables every replica, before the server listens.

        Args:
            engine_client: vLLM's AsyncLLM; None in a server without an engine.
            state: Of the application.
            args: The parsed command line of the server.

        Raises:
            RuntimeError: A flag, an engine or this vLLM is not one with which tokens would follow mu.
            ValueError: The vocabularies of the two models do not fit.
        """
        if engine_client is None:
            return
        check_parsed(args)
        config = engine_client.vllm_config
        if config.speculative_config is None or not config.speculative_config.model:
            raise RuntimeError("a TRB server needs a draft model, the student: start it with trb vllm-serve")
        teacher, student = config.model_config.model, config.speculative_config.model
        models = (config.model_config, config.speculative_config.draft_model_config)
        alignment = align_stored(student, teacher, trust_remote_code=config.model_config.trust_remote_code)
        calls = ServerCalls(
            Replicas(engine_client),
            {
                "teacher": teacher,
                "teacher_files": model_digest(teacher),
                "student": student,
                "replicas": config.parallel_config.data_parallel_size,
                "tensor_parallel_size": config.parallel_config.tensor_parallel_size,
                "max_num_seqs": config.scheduler_config.max_num_seqs,
                "max_num_batched_tokens": config.scheduler_config.max_num_batched_tokens,
            },
            seed=config.model_config.seed or 0,
            sizes=[model.get_vocab_size() for model in models],
        )
        await calls.enable(
            {"width": alignment.width, "stop": alignment.stop, "merged": list(alignment.duplicates), "epsilon": 0.0}
        )
        state.trb_api_keys = key_digests(args)
        state.trb_calls = calls
