import re
from collections.abc import Iterable
from datetime import UTC, datetime
from pathlib import Path

from prometheus_client import Metric

from proxy.counters import DROPPED, FALLBACKS, OTHER, REFUSED, Counters
from proxy.failover import Health
from proxy.tracing import Row, attributes
from proxy.vitals import Observed, Vitals

PAGE = (Path(__file__).parent.parent / "deploy" / "metrics.md").read_text(encoding="utf-8")
ROW = re.compile(r"^\| `(stillroom_\w+)` \| (\w+) \|([^|]*)\|([^|]+)\|([^|]+)\|$", re.MULTILINE)


def documented() -> dict[str, tuple[str, set[str]]]:
    return {name: (kind, set(re.findall(r"`(\w+)`", labels))) for name, kind, labels, _, _ in ROW.findall(PAGE)}


def registered(metrics: Iterable[Metric]) -> dict[str, tuple[str, set[str]]]:
    return {
        metric.name + ("_total" if metric.type == "counter" else ""): (
            metric.type,
            {label for sample in metric.samples for label in sample.labels} - {"le"},
        )
        for metric in metrics
    }


def test_the_page_names_every_metric_there_is_and_no_other(tmp_path: Path) -> None:
    everything = Observed(1, 1.0, 1.0, {"shadow": 1}, "up")
    vitals = Vitals(tmp_path, tmp_path, lambda: everything)
    counters = Counters()
    counters.deployments([Health("a.example", "closed", 0)])
    assert documented() == registered(counters.registry.collect()) | registered(vitals.collect())


def test_it_names_every_word_of_a_label() -> None:
    for word in (*FALLBACKS.values(), OTHER, *REFUSED, *DROPPED):
        assert f"`{word}`" in PAGE


def test_it_names_every_attribute_of_a_span() -> None:
    row = Row(
        "01J", datetime(2026, 1, 1, tzinfo=UTC), 1.0, "/v1/responses", "t", "m", "m", "teacher", 500, True, "e", "stop",
        True, 1.0, 1, 1, 1, None, "german", "de",
    )  # fmt: skip
    named = set(re.findall(r"`((?:gen_ai|server|http|error|stillroom)\.[\w.]+)`", PAGE))
    assert named == set(attributes(row, 1.0, "https://api.openai.com"))
