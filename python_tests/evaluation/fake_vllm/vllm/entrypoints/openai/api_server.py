"""Stands in for vLLM's API server: completions follow from the seed of a request, as `fake_completions.ids_of` says.

FAKE_VLLM_NOTES names a file, to which each line that a server says of itself is added, as JSON. FAKE_VLLM_FAILS ends it
as vLLM's end looks when its engine fails.
"""

import argparse
import json
import os
import subprocess
import sys
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer

LOCK = threading.Lock()


def note(**fields: Any) -> None:
    with LOCK, Path(os.environ["FAKE_VLLM_NOTES"]).open("a", encoding="utf-8") as file:
        file.write(json.dumps(fields) + "\n")


def ids_of(seed: int) -> list[int]:
    return [5 + seed // 7**place % 7 for place in range(seed % 4)] + [2]


class Handler(BaseHTTPRequestHandler):
    weights = ""
    tokenizer: Any = None

    def do_GET(self) -> None:
        if self.path == "/v1/models":
            self.answer({"data": [{"id": "trb-eval", "root": self.weights, "owned_by": "vllm", "max_model_len": 64}]})
        else:
            self.answer({})

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        if self.headers["Authorization"] != f"Bearer {os.environ['VLLM_API_KEY']}":
            self.answer({"error": "Unauthorized"}, 401)
        elif self.path == "/tokenize":
            self.answer({"tokens": self.tokenizer.encode(body["prompt"], add_special_tokens=False).ids})
        elif self.path == "/trb/weights":
            note(loads=body["path"])
            type(self).weights = body["path"]
            self.answer({"digest": self.weights})
        elif self.path == "/trb/digest":
            self.answer({"digest": f"digest of {Path(self.weights).name}"})
        else:
            note(draws=body["seed"], weights=self.weights)
            time.sleep(float(os.environ.get("FAKE_VLLM_SECONDS", "0")))
            choice = {"text": "", "token_ids": ids_of(body["seed"]), "finish_reason": "stop"}
            self.answer({"choices": [choice]})

    def answer(self, content: Any, status: int = 200) -> None:
        self.send_response(status)
        body = json.dumps(content).encode()
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: Any) -> None:
        """Writes nothing."""


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--model")
    parser.add_argument("--port", type=int)
    options, _ = parser.parse_known_args()
    # vLLM's engine is a process that the API server starts, and that does not end with it.
    engine = subprocess.Popen([sys.executable, "-S", "-c", "import time; time.sleep(1000)"])
    note(starts=sys.argv[1:], pids=[os.getpid(), engine.pid], key=os.environ["VLLM_API_KEY"])
    if os.environ.get("FAKE_VLLM_FAILS"):
        print("ValueError: the model has no layers")
        raise RuntimeError("Engine core initialization failed. See root cause above.")
    Handler.weights, Handler.tokenizer = options.model, Tokenizer.from_file(f"{options.model}/tokenizer.json")
    ThreadingHTTPServer.request_queue_size = 512
    ThreadingHTTPServer(("127.0.0.1", options.port), Handler).serve_forever()


if __name__ == "__main__":
    main()
