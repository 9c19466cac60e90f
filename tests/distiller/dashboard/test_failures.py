from distiller.dashboard.failures import ALL, EACH, SECONDS, Failures


def test_an_address_that_failed_too_often_waits_a_minute() -> None:
    now = 0.0
    failures = Failures(lambda: now)
    for _ in range(EACH):
        assert failures.wait("a") == 0
        failures.failed("a")
    assert failures.wait("a") == SECONDS
    assert failures.wait("b") == 0
    now = SECONDS / 2
    assert failures.wait("a") == SECONDS / 2
    now = SECONDS
    assert failures.wait("a") == 0


def test_many_addresses_together_wait_too() -> None:
    failures = Failures(lambda: 5.0)
    for number in range(ALL):
        assert failures.wait(str(number)) == 0
        failures.failed(str(number))
    assert failures.wait("one that never asked") == SECONDS


def test_addresses_do_not_pile_up() -> None:
    now = 0.0
    failures = Failures(lambda: now)
    for number in range(3000):
        failures.failed(str(number))
    assert len(failures._of) == 1000
