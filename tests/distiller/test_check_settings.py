from dataclasses import replace

import pytest

from distiller.check_settings import _IDLE, check_settings
from distiller.finding import OK, WARN
from distiller.settings import DistillerSettings, Settings
from proxy.settings import LogSettings, TeacherSettings
from router.settings import JudgeSettings


def test_the_defaults_are_in_order() -> None:
    assert [(one.what, one.level) for one in check_settings(Settings())] == [("settings in use", OK)]


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        (Settings(judge=JudgeSettings(url="http://x")), "judge.url has no effect: judge.model is empty"),
        (Settings(distiller=DistillerSettings(repeat_share=0.5)), "distiller.repeat_share has no effect"),
        (Settings(distiller=DistillerSettings(students=("head",), rank=8)), "distiller.rank has no effect"),
        (Settings(log=LogSettings(keep_days=3)), "log.keep_days = 3 counts as spool.keep_days = 7"),
        (
            Settings(
                teacher=TeacherSettings(logprobs_share=0.5), distiller=DistillerSettings(students=("adapter",)),
            ),
            "teacher.logprobs_share has no effect: \"soft\" is not in distiller.students",
        ),
    ],
)  # fmt: skip
def test_a_changed_setting_without_effect_is_told(settings: Settings, told: str) -> None:
    (finding,) = check_settings(settings)
    assert (finding.level, finding.detail.startswith(told)) == (WARN, True)


def test_with_what_it_needs_the_same_setting_is_in_order() -> None:
    judged = Settings(judge=JudgeSettings(url="http://x", model="m"))
    assert [one.level for one in check_settings(judged)] == [OK]


def test_every_name_is_a_setting_and_every_condition_can_be_asked() -> None:
    defaults = Settings()
    for idle in _IDLE:
        for name in idle.names:
            table, _, key = name.partition(".")
            assert hasattr(getattr(defaults, table), key)
        assert idle.counts(defaults) in (True, False)
        everything = replace(defaults, distiller=DistillerSettings(students=("head", "encoder", "soft", "cascade")))
        assert idle.counts(everything) in (True, False)
