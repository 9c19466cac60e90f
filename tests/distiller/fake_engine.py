"""A small HTTP server that speaks the few endpoints of vLLM the supervisor uses. Answers `<model>:<last message>`."""

import json
import os
import subprocess
import sys
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

loaded: set[str] = set()
sick: list[bool] = []


class Handler(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        if self.path == "/health":
            self._answer(500 if sick else 200, {})
        elif self.path == "/sicken":
            sick.append(True)
            self._answer(200, {})
        else:
            self._answer(
                200, {"pid": os.getpid(), "child": child.pid, "loaded": sorted(loaded), "env": dict(os.environ)}
            )

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        if self.path == "/v1/load_lora_adapter":
            if not Path(body["lora_path"]).is_dir():
                self._answer(404, {"error": {"message": f"no adapter found for {body['lora_name']}"}})
                return
            loaded.add(body["lora_name"])
            self._answer(200, {})
        elif self.path == "/v1/unload_lora_adapter":
            loaded.discard(body["lora_name"])
            self._answer(200, {})
        elif body["model"] in loaded and body["temperature"] == 0:
            text = f"{body['model']}:{body['messages'][-1]['content']}"
            self._answer(200, {"choices": [{"message": {"role": "assistant", "content": text}}]})
        else:
            self._answer(404, {"error": {"message": "no such model"}})

    def _answer(self, status: int, body: object) -> None:
        data = json.dumps(body).encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, *args: object) -> None:
        pass


if __name__ == "__main__":
    # vLLM too has a process of its own below the server: it must not survive.
    child = subprocess.Popen([sys.executable, "-S", "-c", "import time; time.sleep(600)"])
    ThreadingHTTPServer(("127.0.0.1", int(sys.argv[1])), Handler).serve_forever()
