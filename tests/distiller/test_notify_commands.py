import json
from pathlib import Path

import pytest

import stillroom
from distiller import channels
from tests.distiller.test_channels import Hook
from tests.servers import serving


@pytest.fixture(autouse=True)
def impatient(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(channels, "BACKOFF_SECONDS", (0.01,))
    monkeypatch.chdir(tmp_path)


@pytest.mark.parametrize(("status", "code"), [(200, 0), (404, 1)])
def test_a_test_says_whether_it_was_taken(status: int, code: int, capsys: pytest.CaptureFixture[str]) -> None:
    hook = Hook(status)
    with serving(hook.app) as url:
        Path("stillroom.toml").write_text(f'[notify]\nwebhook = "{url}/hook"\n')
        assert stillroom.main(["notify", "test", "--json"]) == code
        (told,) = json.loads(capsys.readouterr().out)
        assert (told["channel"], told["taken"]) == ("webhook", status == 200)
        assert stillroom.main(["notify", "test"]) == code
        assert ("webhook: taken" in capsys.readouterr().out) == (status == 200)
    assert {json.loads(body)["event"] for _, body in hook.got} == {"test"}


def test_nobody_to_tell_is_said(capsys: pytest.CaptureFixture[str]) -> None:
    Path("stillroom.toml").write_text("")
    assert stillroom.main(["notify", "test"]) == 1
    assert "set notify.webhook" in capsys.readouterr().err
