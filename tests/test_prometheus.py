"""The files for Prometheus and Grafana, against what a real Stillroom tells at /metrics, and by Prometheus itself."""

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml
from prometheus_client.parser import text_string_to_metric_families

from distiller.sample_traffic import MODEL, sample_traffic
from tests.deployment import Deployment, deployed
from tests.servers import eventually, free_port

DEPLOY = Path(__file__).parents[1] / "deploy"
RULES, CONFIG = DEPLOY / "prometheus" / "alerts.yml", DEPLOY / "prometheus" / "prometheus.yml"
BOARDS = sorted((DEPLOY / "grafana" / "dashboards").glob("*.json"))
TOKEN = "a token for the test"
SETTINGS = """
[[teacher.deployments]]
url = "http://127.0.0.1:9"
key_env = "TEST_KEY"
[[teacher.sunsets]]
model = "gpt-4o"
shutdown = 2199-01-01
[proxy]
workers = 1
[spool]
rotate_seconds = 0.2
[serving]
port = 1
"""
VARIABLES = {
    "$job": "stillroom", "$instance": ".*", "$__rate_interval": "1m", "$__range": "1h", "${datasource}": "prometheus",
}  # fmt: skip
BY_PROMETHEUS = {"job", "instance", "le", "alertname", "alertstate", "severity"}
# Metrics that only Prometheus has: its own, and what a rule records.
ITS_OWN = {"up", "ALERTS", "stillroom:capture_gap"}
SELECTOR = re.compile(r"\b(stillroom[\w:]*|up|ALERTS)\b(?:\{([^}]*)\})?")
MATCHER = re.compile(r'(\w+)\s*(?:=~|!~|!=|=)\s*"([^"]*)"')
GROUPING = re.compile(r"\bby\s*\(([^)]*)\)")


def program(name: str) -> str:
    """Prometheus' own, where `make install` could get it or the system has it."""
    found = shutil.which(name, path=os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]]))
    if found is None:
        pytest.skip(f"{name} is not installed: `apt-get install prometheus` brings it")
    return found


def rules() -> list[dict[str, Any]]:
    return [rule for group in yaml.safe_load(RULES.read_text())["groups"] for rule in group["rules"]]


def panels(board: Path) -> list[dict[str, Any]]:
    return [panel for panel in json.loads(board.read_text())["panels"] if panel["type"] != "row"]


def filled(expression: str) -> str:
    """As Grafana sends it."""
    for name, value in VARIABLES.items():
        expression = expression.replace(name, value)
    return expression


def expressions() -> dict[str, str]:
    """Every rule's and every panel's, by where it stands."""
    found = {f"rule {rule.get('alert', rule.get('record'))}": rule["expr"] for rule in rules()}
    for board in BOARDS:
        for panel in panels(board):
            for target in panel["targets"]:
                found[f"{board.stem}: {panel['title']} {target['refId']}"] = filled(target["expr"])
    return found


pytestmark = pytest.mark.timeout(900)


@pytest.fixture(scope="module")
def system(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Deployment]:
    """With traffic, two deployments, a key with a budget and a model that will end."""
    rows, folder = sample_traffic(20, 1), tmp_path_factory.mktemp("system")
    with deployed(folder, rows, SETTINGS, {"ADMIN": TOKEN}, 'token_env = "ADMIN"', 240) as stillroom:
        stillroom.run("keys", "create", "team", "--budget", "10")
        for row in rows[:5]:
            asked = {"model": MODEL, "messages": list(row.messages)}
            httpx.post(f"{stillroom.url}/chat/completions", json=asked, timeout=60)
        yield stillroom


def scraped(system: Deployment) -> str:
    return httpx.get(f"{system.admin}/metrics", headers={"authorization": f"Bearer {TOKEN}"}, timeout=60).text


@pytest.fixture(scope="module")
def told(system: Deployment) -> Mapping[str, Mapping[str, set[str]]]:
    """Every sample's name there is, with its labels and the values they had."""
    eventually(lambda: '\nstillroom_budget_used_ratio{budget="key"}' in scraped(system), 240)
    eventually(lambda: 'stillroom_exchanges_total{served_by="teacher",status="2xx"} 5.0' in scraped(system), 120)
    found: dict[str, dict[str, set[str]]] = {}
    for family in text_string_to_metric_families(scraped(system)):
        found.setdefault(family.name, {})  # One without a sample now is known by its head.
        for sample in family.samples:
            labels = found.setdefault(sample.name, {})
            for name, value in sample.labels.items():
                labels.setdefault(name, set()).add(value)
    return found


def test_every_name_label_and_value_in_a_query_is_there_in_reality(
    told: Mapping[str, Mapping[str, set[str]]],
) -> None:
    assert len(expressions()) > 60
    for where, expression in expressions().items():
        known = set(BY_PROMETHEUS)
        for name, matchers in SELECTOR.findall(re.sub(r"\bby\s*\([^)]*\)", "", expression)):
            assert name in told or name in ITS_OWN, f"{where}: {name}"
            labels = told.get(name, {})
            known |= set(labels)
            for label, value in MATCHER.findall(matchers):
                assert label in labels or label in BY_PROMETHEUS, f"{where}: {name} has no label {label}"
                if label in labels:
                    assert set(value.split("|")) <= labels[label], f"{where}: {name} has no {label} {value}"
        for group in GROUPING.findall(expression):
            assert {label.strip() for label in group.split(",")} <= known, f"{where}: {group}"


def test_every_alert_says_what_is_and_what_to_do_by_labels_it_has() -> None:
    wanted = {
        "StillroomDropped", "StillroomUnpriced", "StillroomParityLost", "StillroomStudentDown", "StillroomBudget80",
        "StillroomDiskLow", "StillroomTeacherSunset", "StillroomSpoolNotIngested", "StillroomRoundsStalled",
        "StillroomScheduleFailed",
    }  # fmt: skip
    alerts = [rule for rule in rules() if "alert" in rule]
    assert wanted <= {alert["alert"] for alert in alerts}
    for alert in alerts:
        assert alert["labels"]["severity"] in ("critical", "warning", "info")
        assert len(alert["annotations"]["description"]) > 60
        groups = [label.strip() for group in GROUPING.findall(alert["expr"]) for label in group.split(",")]
        for label in re.findall(r"\$labels\.(\w+)", str(alert["annotations"])):
            assert label in {*groups, "instance", "budget"}, alert["alert"]


def test_dashboards_are_whole_and_find_each_other() -> None:
    assert {board.stem for board in BOARDS} == {
        f"stillroom-{name}" for name in ("overview", "money", "students", "operations")
    }
    for board in BOARDS:
        content = json.loads(board.read_text())
        assert content["uid"] == board.stem
        places = [tuple(panel["gridPos"].values()) for panel in content["panels"]]
        assert len(set(places)) == len(places)
        assert [panel["id"] for panel in content["panels"]] == list(range(1, len(places) + 1))
        assert {variable["name"] for variable in content["templating"]["list"]} == {"datasource", "job", "instance"}
        for panel in panels(board):
            assert panel["datasource"]["uid"] == "${datasource}"
            assert all(panel["fieldConfig"]["defaults"]["unit"] and target["expr"] for target in panel["targets"])
    provisioning = DEPLOY / "grafana" / "provisioning"
    (source,) = yaml.safe_load((provisioning / "datasources" / "stillroom.yml").read_text())["datasources"]
    assert source["type"] == "prometheus"
    (provider,) = yaml.safe_load((provisioning / "dashboards" / "stillroom.yml").read_text())["providers"]
    assert provider["type"] == "file"


def test_promtool_finds_the_rules_right_and_their_tests_pass() -> None:
    for command in (["check", "rules", "alerts.yml"], ["test", "rules", "alerts_test.yml"]):
        done = subprocess.run([program("promtool"), *command], cwd=RULES.parent, capture_output=True, text=True)
        assert done.returncode == 0, done.stdout + done.stderr


@contextmanager
def prometheus(folder: Path, admin: str) -> Iterator[str]:
    """A Prometheus with our files, for this admin port and in a hurry; its URL."""
    config = CONFIG.read_text().replace("127.0.0.1:8081", admin.removeprefix("http://")).replace("15s", "3s")
    (folder / "prometheus.yml").write_text(config)
    shutil.copy(RULES, folder)
    (folder / "stillroom.token").write_text(TOKEN)
    check = [program("promtool"), "check", "config", "prometheus.yml"]
    done = subprocess.run(check, cwd=folder, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    address = f"127.0.0.1:{free_port()}"
    command = [program("prometheus"), "--config.file=prometheus.yml", "--storage.tsdb.path=data",
               f"--web.listen-address={address}"]  # fmt: skip
    with (folder / "prometheus.log").open("w") as out:
        process = subprocess.Popen(command, cwd=folder, stdout=out, stderr=out)
        try:
            yield f"http://{address}"
        finally:
            process.terminate()
            process.wait(60)


def asked(url: str, expression: str) -> list[dict[str, Any]]:
    answer = httpx.post(f"{url}/api/v1/query", data={"query": expression}, timeout=60).json()
    assert answer["status"] == "success", f"{expression}: {answer}"
    return list(answer["data"]["result"])


def ready(url: str) -> bool:
    """Whether it has scraped twice at least, and evaluated every rule."""
    try:
        if httpx.get(f"{url}/-/ready", timeout=60).status_code != 200:
            return False
        return bool(asked(url, "count_over_time(up[1m]) >= 4 and up == 1")) and all(
            rule["health"] == "ok" for rule in evaluated(url)
        )
    except httpx.TransportError:
        return False


def evaluated(url: str) -> list[dict[str, Any]]:
    groups = httpx.get(f"{url}/api/v1/rules", timeout=60).json()["data"]["groups"]
    return [rule for group in groups for rule in group["rules"]]


def test_a_real_prometheus_scrapes_a_real_stillroom_and_answers_every_query(
    system: Deployment, told: Mapping[str, Mapping[str, set[str]]], tmp_path: Path
) -> None:
    with prometheus(tmp_path, system.admin) as url:
        eventually(lambda: ready(url), 180)
        eventually(lambda: not empty(url), 120)  # A scrape that took too long leaves nothing for a moment.
        assert [rule["lastError"] for rule in evaluated(url) if rule.get("lastError")] == []
        assert asked(url, "stillroom:capture_gap")[0]["value"][1] == "0"
        firing = {alert["metric"]["alertname"] for alert in asked(url, 'ALERTS{alertstate="firing"}')}
        assert firing <= {"StillroomUnpriced", "StillroomDiskLow", "StillroomCaptureGap"}


def empty(url: str) -> set[str]:
    """Panels that show nothing, but those that cannot yet: there is no student, no run, nothing that waits."""
    found = {where for where, expression in expressions().items() if not asked(url, expression)}
    may = ("Retired", "Runs", "Fallbacks", "Engines", "Waiting for the log B", "Net", "Avoided")
    return {one for one in found if not one.startswith("rule ") and not one.partition(": ")[2].startswith(may)}
