from dataclasses import replace

import pytest
from fastapi import FastAPI, Request, Response

from distiller.check_teacher import check_teachers_online
from distiller.finding import FIX, OK, WARN
from distiller.settings import Settings
from proxy.settings import NamedTeacherSettings, TeacherSettings
from router.settings import RivalSettings, RouterSettings
from tests.servers import free_port, serving


class Provider:
    """Lists its models to one key; notes the keys it saw."""

    def __init__(self) -> None:
        self.seen: list[str] = []
        self.date = ""
        self.app = FastAPI(openapi_url=None)
        self.app.add_api_route("/v1/models", self.models)
        self.app.add_api_route("/moved/v1/models", self.moved)

    async def models(self, request: Request) -> Response:
        self.seen.append(request.headers.get("authorization", ""))
        headers = {"date": self.date} if self.date else {}
        return Response('{"data": []}', 200 if self.seen[-1] == "Bearer good" else 401, headers)

    async def moved(self) -> Response:
        return Response(status_code=307, headers={"location": "/v1/models"})


@pytest.fixture(autouse=True)
def keys(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GOOD", "good")
    monkeypatch.setenv("BAD", "bad")


def levels(settings: Settings) -> dict[str, str]:
    return {finding.what: finding.level for finding in check_teachers_online(settings)}


def test_each_is_asked_with_its_own_key() -> None:
    provider = Provider()
    with serving(provider.app) as url:
        teacher = TeacherSettings(
            url=url.removesuffix("/v1"), key_env="GOOD",
            named={"german": NamedTeacherSettings(url.removesuffix("/v1"), "BAD")},
        )  # fmt: skip
        router = RouterSettings(rivals={"cheap": RivalSettings(("t",), "m", url, "GOOD")})
        settings = Settings(teacher=teacher, router=router)
        assert levels(settings) == {"teacher": OK, "teacher.named.german": FIX, "router.rivals.cheap": OK}
        assert sorted(provider.seen) == ["Bearer bad", "Bearer good", "Bearer good"]
        assert levels(replace(settings, teacher=TeacherSettings(url=teacher.url), router=RouterSettings())) == {
            "teacher": OK
        }  # Clients bring the key.
        assert provider.seen[-1] == ""


def test_a_redirect_is_not_followed_with_the_key() -> None:
    provider = Provider()
    with serving(provider.app) as url:
        moved = TeacherSettings(url=f"{url.removesuffix('/v1')}/moved", key_env="GOOD")
        assert levels(Settings(teacher=moved)) == {"teacher": WARN}
    assert provider.seen == []


def test_nobody_there_is_a_fault() -> None:
    silent = TeacherSettings(url=f"http://127.0.0.1:{free_port()}", key_env="GOOD")
    assert levels(Settings(teacher=silent)) == {"teacher": FIX}


def test_a_clock_that_differs_is_seen() -> None:
    provider = Provider()
    provider.date = "Thu, 01 Jan 2026 00:00:00 GMT"
    with serving(provider.app) as url:
        teacher = TeacherSettings(url=url.removesuffix("/v1"), key_env="GOOD")
        assert levels(Settings(teacher=teacher)) == {"teacher": OK, "clock online": FIX}
        provider.date = "no date"
        assert levels(Settings(teacher=teacher)) == {"teacher": OK}
