import pytest

from proxy.deciding import TEACHER, Asked, CandidateFailed, Decision, always_teacher


@pytest.mark.parametrize("asked", [Asked("/v1/chat/completions", b"{}", "triage"), Asked("/v1/models", b"\xff", None)])
def test_without_a_router_the_teacher_answers_everything(asked: Asked) -> None:
    assert always_teacher(asked) == Decision(TEACHER, "no router", None)


def test_a_failures_text_is_its_reason() -> None:
    failed = CandidateFailed("unsure", 0.2)
    assert (str(failed), failed.confidence) == ("unsure", 0.2)
    assert CandidateFailed("timed out").confidence is None
