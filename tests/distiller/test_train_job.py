import json
import os
import socket
import subprocess
import sys
from dataclasses import asdict, replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from distiller.examples import Encoded
from distiller.projection import Target
from distiller.train_job import Job, main, read_job, read_rows, run_job, write_rows
from proxy.errors import BadInput
from tests.distiller.test_train import SETTINGS, rows
from tests.distiller.toy import build_toy

ROOT = Path(__file__).parent.parent.parent


@pytest.fixture(scope="module")
def job(tmp_path_factory) -> Job:
    folder = tmp_path_factory.mktemp("job")
    build_toy(folder / "base", ["any text will do"])
    write_rows(folder / "rows.jsonl", rows(40))
    return Job(str(folder / "base"), str(folder / "rows.jsonl"), str(folder / "out"), replace(SETTINGS, epochs=2))


def put(folder: Path, job: Job) -> Path:
    path = folder / "job.json"
    path.write_text(json.dumps(asdict(job)))
    return path


def test_a_job_and_its_rows_come_back_as_they_were_written(job, tmp_path):
    soft = Encoded([5, 7, 2], 1, (Target((7, 8), (0.1 + 0.2, 0.5), 0.2), None), weight=0.25)
    write_rows(tmp_path / "rows.jsonl", [soft, *rows(2)])
    assert read_rows(tmp_path / "rows.jsonl") == [soft, *rows(2)]
    assert read_job(put(tmp_path, job)) == job
    kept = replace(job, settings=replace(SETTINGS, layers=1), checkpoints="kept", every=7)
    assert read_job(put(tmp_path, kept)) == kept


@pytest.mark.parametrize(
    ("text", "says"),
    [("{", "cannot read"), ("{}", "lacks base, rows, out"), ('{"bse": "x"}', "'base'"), ("[]", "lacks")],
)
def test_a_job_that_is_not_understood_is_refused(tmp_path, capsys, text: str, says: str):
    path = tmp_path / "job.json"
    path.write_text(text)
    assert main([str(path)]) == 1
    assert says in capsys.readouterr().err
    with pytest.raises(BadInput, match=says):
        read_job(path)


def test_one_file_is_asked_for(capsys):
    assert main([]) == 1
    assert "JOB.json" in capsys.readouterr().err


def test_two_processes_learn_what_one_does(job, tmp_path, monkeypatch):
    """Under the real launcher, talking over gloo; in float32, where only the order of sums differs."""
    monkeypatch.setattr("distiller.train.compute_dtype", lambda: "float32")
    monkeypatch.setattr("distiller.base.compute_dtype", lambda: "float32")
    lora = replace(job, out=str(tmp_path / "lora"), checkpoints=str(tmp_path / "kept"), every=5)
    full = replace(job, out=str(tmp_path / "full"), settings=replace(job.settings, method="full"))
    light = [replace(row, weight=0.25) if place % 3 else row for place, row in enumerate(rows(40))]
    write_rows(tmp_path / "light.jsonl", light)
    weighed = replace(job, out=str(tmp_path / "weighed"), rows=str(tmp_path / "light.jsonl"))
    lanes = replace(weighed, out=str(tmp_path / "lanes"), settings=replace(job.settings, threads=2))
    jobs = [lora, full, weighed, lanes]
    for one, line in zip(jobs, launched(tmp_path, jobs), strict=True):
        alone, shared = run_job(replace(one, out=f"{one.out}-alone", checkpoints="")), json.loads(line)
        assert shared["losses"] == pytest.approx(alone.losses, abs=1e-3)
        assert (shared["steps"], shared["tokens"]) == (alone.steps, alone.tokens)
        ours, theirs = (load_file(next(Path(out).glob("*.safetensors"))) for out in (f"{one.out}-alone", one.out))
        torch.testing.assert_close(theirs, ours, atol=1e-3, rtol=0)
    assert list((tmp_path / "kept").iterdir()) == []


# The computing format of this machine is not what is tested.
IN_FLOAT32 = """
import sys
import distiller.base, distiller.train
from distiller.train_job import main

distiller.base.compute_dtype = distiller.train.compute_dtype = lambda: "float32"
sys.exit(max(main([path]) for path in sys.argv[1:]))
"""


def launched(folder: Path, jobs: list[Job]) -> list[str]:
    """What the first of two processes prints for each of `jobs`."""
    script, files = folder / "in_float32.py", [folder / f"job-{number}.json" for number, _ in enumerate(jobs)]
    script.write_text(IN_FLOAT32)
    for file, job in zip(files, jobs, strict=True):
        file.write_text(json.dumps(asdict(job)))
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    launcher = ["accelerate.commands.launch", "--multi_gpu", "--num_processes", "2", "--num_machines", "1"]
    options = ["--mixed_precision", "no", "--dynamo_backend", "no", "--main_process_port", str(port)]
    command = [sys.executable, "-m", *launcher, *options, str(script), *map(str, files)]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()
