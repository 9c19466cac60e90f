import pytest

from distiller.terms import Terms, check, providers, terms_of
from proxy.errors import Refused
from proxy.settings import DeploymentSettings, NamedTeacherSettings, TeacherSettings
from tests.distiller.test_curate import row

OPENAI = TeacherSettings()
OWN = TeacherSettings(url="http://127.0.0.1:9000")


@pytest.mark.parametrize(
    ("asked", "answered", "teacher", "wanted"),
    [
        ("gpt-4o", "gpt-4o-2024-08-06", OPENAI, ("openai",)),
        ("gpt-4o", "", OWN, ("openai",)),  # Whoever passes it on.
        ("ft:gpt-4o:mine", "ft:gpt-4o:mine", OWN, ("openai",)),
        ("o3-mini", "o3-mini", OWN, ("openai",)),
        ("my-model", "my-model", OPENAI, ("openai",)),
        ("claude-sonnet", "", OWN, ("anthropic",)),
        ("openrouter/gemini-2", "", OWN, ("google",)),
        ("bedrock/claude", "claude", TeacherSettings(translate=("bedrock/",)), ("bedrock",)),
        ("gpt-oss-20b", "openai/gpt-oss-20b", OWN, ()),  # Its weights are open.
        ("smollm2", "smollm2", OWN, ()),
        ("smollm2", "", TeacherSettings(url="http://vllm.llms.internal:8000"), ()),
        ("smollm2", "", TeacherSettings(url="http://10.1.2.3:8000"), ()),
        ("mistral", "", TeacherSettings(url="https://api.example.com"), ("api.example.com",)),
        (
            "mistral", "",
            TeacherSettings(url="http://gpu", deployments=(DeploymentSettings(url="https://api.example.com"),)),
            ("api.example.com",),
        ),
    ],
)  # fmt: skip
def test_whose_terms_a_row_is_under(asked: str, answered: str, teacher: TeacherSettings, wanted: tuple[str]) -> None:
    assert providers(row(0, request={"model": asked}, model=answered), teacher) == wanted


@pytest.mark.parametrize(
    ("teacher", "asked", "wanted"),
    [
        ("german", "mistral", ("api.example.com",)),
        ("german", "gpt-4o", ("openai",)),
        ("near", "mistral", ()),
        ("gone", "mistral", ("gone",)),
        (None, "mistral", ("openai",)),
        ("german", "bedrock/mistral", ("api.example.com",)),
    ],
)
def test_terms_go_by_the_teacher_that_was_asked(teacher: str | None, asked: str, wanted: tuple[str]) -> None:
    near = NamedTeacherSettings("http://127.0.0.1:8000")
    named = {"german": NamedTeacherSettings("https://api.example.com"), "near": near}
    settings = TeacherSettings(named=named, translate=("bedrock/",))
    assert providers(row(0, request={"model": asked}, teacher=teacher), settings) == wanted


def test_what_nobody_acknowledged_is_refused_only_where_that_is_wanted() -> None:
    rows = [row(0, model="gpt-4o"), row(1, model="gpt-4o"), row(2, model="claude-x")]
    found = terms_of(rows, OPENAI, ["anthropic"])
    assert found == (Terms("anthropic", 1, True), Terms("openai", 2, False))
    check(found, "warn", {"anthropic": "refuse"}, "triage")
    check(found[:1], "refuse", {}, "triage")
    check(found, "refuse", {"openai": "warn"}, "triage")
    with pytest.raises(Refused, match="answers of openai"):
        check(found, "warn", {"openai": "refuse"}, "triage")
    with pytest.raises(Refused, match=r"2 rows are answers of openai, whose terms.*compete.*add \"openai\" to"):
        check(found, "refuse", {}, "triage")
