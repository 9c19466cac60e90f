"""Owns how each proxy is set up and started: what its user would do, and nothing to make it look good or bad.

Must not know what is measured.
"""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from tests.bench.canned import MODEL
from tests.bench.processes import ROOT, Failed
from tests.servers import free_port

LITELLM = "1.106.2"
KEPT = ROOT / ".bench"  # what is worth keeping between runs: LiteLLM's installation

_NGINX = """
daemon off;
worker_processes 1;
pid "{folder}/nginx.pid";
error_log stderr warn;
events {{ worker_connections 1024; }}
http {{
  access_log off;
  client_body_temp_path "{folder}/body";
  proxy_temp_path "{folder}/proxy";
  fastcgi_temp_path "{folder}/fastcgi";
  uwsgi_temp_path "{folder}/uwsgi";
  scgi_temp_path "{folder}/scgi";
  client_body_buffer_size 64k;
  keepalive_requests 1000000000;
  upstream teacher {{
    server 127.0.0.1:{upstream};
    keepalive 64;
    keepalive_requests 1000000000;
  }}
  server {{
    listen 127.0.0.1:{port};
    location / {{
      proxy_pass http://teacher;
      proxy_http_version 1.1;
      proxy_set_header Connection "";
      proxy_buffering off;
    }}
  }}
}}
"""
_STILLROOM = """
home = "home"
[proxy]
port = {port}
{more}
[admin]
port = {admin}
[teacher]
url = "http://127.0.0.1:{upstream}"
"""
# Called with a folder of its own, the port to listen on and the upstream's: writes settings, returns the command.
Prepare = Callable[[Path, int, int], list[str]]


@dataclass(frozen=True, slots=True)
class Peer:
    """A row of the table; without `prepare`, the upstream itself.

    `exact`: answers are passed through byte by byte. `captures`: every exchange has to be in the spool afterwards.
    """

    name: str
    title: str
    prepare: Prepare | None
    cores: int = 1
    exact: bool = True
    captures: bool = False
    environment: Mapping[str, str] = field(default_factory=dict)


def all_peers() -> list[Peer]:
    """The rows, in the order of the table."""
    return [
        Peer("direct", "direct, no proxy", None),
        Peer("nginx", "nginx, reverse proxy", _nginx),
        Peer("stillroom", "Stillroom, with capture", _stillroom(""), captures=True),
        Peer("stillroom-2", "Stillroom, with capture, 2 workers", _stillroom("workers = 2"), cores=2, captures=True),
        Peer(
            "litellm",
            f"LiteLLM proxy {LITELLM}, no capture",
            _litellm,
            exact=False,
            environment={
                "LITELLM_LOCAL_MODEL_COST_MAP": "True",
                "LITELLM_DANGEROUSLY_PERMIT_WEAK_OR_UNSET_MASTER_KEY": "true",  # as ours, it asks for no key here
            },
        ),
    ]


def missing(peer: Peer) -> str | None:
    """What keeps a peer from being measured here, or None; installs what is installed at run time."""
    if peer.name == "nginx" and _nginx_program() is None:
        return "nginx is not installed: `apt-get install nginx-light` adds its row"
    if peer.name == "litellm" and not _litellm_installed():
        return "LiteLLM's proxy could not be installed from the package registry: see the messages above"
    return None


def settled(folder: Path) -> bool:
    """Whether all that was captured is in the log, so that the controller rests again."""
    spool = folder / "home" / "spool"
    return not any(file for kind in ("*.open", "*.ndjson") for file in spool.glob(kind))


def check_captured(folder: Path, requests: int) -> None:
    """After the stop: one record a request, no record twice. Failed otherwise."""
    records, names = 0, set()
    for segment in (folder / "home" / "spool").rglob("*.ndjson"):
        with segment.open("rb") as lines:
            for line in lines:
                records += 1
                names.add(line.partition(b",")[0])  # the id comes first
    if not records == len(names) == requests:
        raise Failed(f"{requests} requests were answered, {records} captured, {len(names)} of them different")


def _nginx(folder: Path, port: int, upstream: int) -> list[str]:
    config = folder / "nginx.conf"
    config.write_text(_NGINX.format(folder=folder, port=port, upstream=upstream))
    return [_nginx_program() or "nginx", "-e", "stderr", "-c", str(config)]


def _nginx_program() -> str | None:
    return shutil.which("nginx", path=os.environ.get("PATH", "") + ":/usr/sbin")


def _stillroom(more: str) -> Prepare:
    def prepare(folder: Path, port: int, upstream: int) -> list[str]:
        config = folder / "stillroom.toml"
        config.write_text(_STILLROOM.format(port=port, admin=free_port(), upstream=upstream, more=more))
        return [sys.executable, "-m", "stillroom", "serve", "--config", str(config)]

    return prepare


def _litellm(folder: Path, port: int, upstream: int) -> list[str]:
    config = folder / "litellm.yaml"
    parameters = {"model": f"openai/{MODEL}", "api_base": f"http://127.0.0.1:{upstream}/v1", "api_key": "sk-bench"}
    models = [{"model_name": MODEL, "litellm_params": parameters}]
    config.write_text(json.dumps({"model_list": models}))  # JSON is YAML.
    program = str(_litellm_folder() / "bin" / "litellm")
    return [program, "--config", str(config), "--host", "127.0.0.1", "--port", str(port), "--num_workers", "1"]


def _litellm_folder() -> Path:
    return KEPT / f"litellm-{LITELLM}"


def _litellm_installed() -> bool:
    folder = _litellm_folder()
    ready = folder / ".ready"
    if ready.exists():
        return True
    print(f"installing litellm[proxy]=={LITELLM} in {folder} (once)", file=sys.stderr, flush=True)
    pip = [str(folder / "bin" / "python"), "-m", "pip", "install", "--quiet", f"litellm[proxy]=={LITELLM}"]
    for command in ([sys.executable, "-m", "venv", "--clear", str(folder)], pip):
        if subprocess.run(command).returncode:
            return False
    ready.touch()
    return True
