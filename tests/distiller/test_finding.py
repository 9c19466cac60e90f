from distiller.finding import FIX, OK, WARN, Finding, worst


def test_the_worst_level_counts() -> None:
    fine, odd, wrong = (Finding("x", level, "") for level in (OK, WARN, FIX))
    assert worst([]) == OK
    assert worst([fine, odd]) == WARN
    assert worst([wrong, odd, fine]) == FIX
