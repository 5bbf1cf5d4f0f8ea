"""Adds two calls to vLLM's API server of one model (entry point `vllm.endpoint_plugins`).

They load weights, and report their digest.

| call | body | answer |
|---|---|---|
| POST `/trb/weights` | `path`: a folder with safetensors files, which every worker loads | `digest` |
| POST `/trb/digest` | | `digest` of the weights that answer |
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from typing import Any

from ..interface import RELOAD_USES
from ..server.access import is_allowed, key_digests
from ..server.replicas import ReplicaBusy, Replicas
from ..versions import check_uses, check_version

PLUGIN = "trbext_completions"  # its name in VLLM_PLUGINS
ANSWERS = {ValueError: 400, ReplicaBusy: 409}  # any other error is of an engine: 500


class CompletionEndpoints:
    """vLLM's EndpointPlugin."""

    name = PLUGIN
    required_tasks = ("generate",)

    def attach_router(self, app: Any) -> None:
        """Adds the calls to vLLM's application."""
        from starlette.responses import JSONResponse
        from starlette.routing import Route

        async def call(request: Any) -> Any:
            state = request.app.state
            if not is_allowed(request, state.trb_api_keys):
                return JSONResponse({"error": "Unauthorized"}, 401)
            status, answer = await state.trb_weights.answer(request.path_params["name"], await request.body())
            return JSONResponse(answer, status)

        app.router.routes.append(Route("/trb/{name}", call, methods=["POST"]))

    async def init_state(self, engine_client: Any, state: Any, args: Any) -> None:
        """Prepares the calls, before the server listens.

        Args:
            engine_client: vLLM's AsyncLLM; None in a server without an engine.
            state: Of the application.
            args: The parsed command line of the server.

        Raises:
            RuntimeError: This vLLM is not one whose weights trbext knows how to load.
        """
        if engine_client is None:
            return
        check_version()
        check_uses(RELOAD_USES, {})
        state.trb_api_keys = key_digests(args)
        state.trb_weights = WeightCalls(Replicas(engine_client))


class WeightCalls:
    """Answers the calls of one server.

    Args:
        replicas: Of the server.
    """

    def __init__(self, replicas: Replicas) -> None:
        self._replicas = replicas

    async def answer(self, name: str, body: bytes) -> tuple[int, dict[str, Any]]:
        """Answers POST /trb/`name`.

        Args:
            name: Of the call.
            body: A JSON object, or nothing.

        Returns:
            Status 200; 400 for a body or a folder that is wrong, 404 for another name, 409 if requests are running, 500
            if an engine failed; and a JSON object, which of an error has the key "error".
        """
        try:
            if name == "weights":
                await self._load(json.loads(body or b"{}"))
            elif name != "digest":
                return 404, {"error": f"/trb/{name} is no call of this server, which has weights, digest"}
            return 200, {"digest": await self._digest()}
        except Exception as error:
            status = next((status for kind, status in ANSWERS.items() if isinstance(error, kind)), 500)
            return status, {"error": f"{error or type(error).__name__}"}

    async def _load(self, arguments: Any) -> None:
        path = arguments.get("path") if isinstance(arguments, Mapping) and len(arguments) == 1 else None
        if not isinstance(path, str):
            raise ValueError(f'/trb/weights takes {{"path": folder}}, got {arguments!r:.80}')
        await self._replicas.reset_prefix_cache()  # fails before a weight is changed if requests are running
        answers = await self._replicas.call("trb_load", {"path": path})
        refused = [reason for workers in answers for reason in workers if reason is not None]
        if refused:
            raise ValueError(f"trb_load failed in {len(refused)} workers, for {path}: {refused[0]}")
        await self._replicas.reset_prefix_cache()

    async def _digest(self) -> str:
        """Returns one digest of the parts of the model that the workers have.

        Raises:
            RuntimeError: Two replicas have other weights.
        """
        answers = await self._replicas.call("trb_digest")
        if any(workers != answers[0] for workers in answers):
            raise RuntimeError(f"all replicas must have the same weights, got the digests {answers}")
        parts = answers[0]
        return str(parts[0]) if len(parts) == 1 else hashlib.sha256("".join(parts).encode()).hexdigest()
