import string
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from proxy.glance import Glance
from proxy.patterns import KINDS, Redaction, find, is_secret_name, suspects

ALL = Redaction(emails=True, phones=True, cards=True, ibans=True, ips=True)
RUN = "aB3dE5gH7jK9mN1pQ2rS4tU6vW8xY0zA1bC3dE5f"
PEM = "-----BEGIN RSA PRIVATE KEY-----\nMIIEpAIBAAKCAQEA75\nq83vEjRWeJCrze8=\n-----END RSA PRIVATE KEY-----"
JWT = "eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiIxMjM0In0.dozjgNryP4J3jVmNHl0w5N_XgL0n3I9P"
TOKENS = (
    "sk-" + RUN, "sk-proj-" + RUN, "sk-ant-api03-" + RUN, "sk-still-" + RUN, "ghp_" + RUN, "gho_" + RUN, "ghs_" + RUN,
    "github_pat_11A_" + RUN, "xoxb-123456789012-" + RUN, "xoxp-1-" + RUN, "AKIAIOSFODNN7EXAMPLE",
    "ASIAIOSFODNN7EXAMPLE", "AIza" + RUN[:35], "sk_live_" + RUN, "rk_live_" + RUN, JWT, PEM, PEM[:60],
)  # fmt: skip
PERSONAL = {
    "EMAIL": ("john@example.com", "o'brien+x@mail.example.co.uk", "josé@exämple.de", "john%40example.com"),
    "PHONE": ("+49 30 1234567", "+14155552671", "+1 (415) 555-2671", "(030) 123-4567", "415-555-2671", "030 1234567"),
    "CARD": ("4111111111111111", "5555 5555 5555 4444", "3782-822463-10005", "6011111111111117"),
    "IBAN": ("DE89370400440532013000", "GB29 NWBK 6016 1331 9268 19", "NO93 8601 1117 947",
             "mt84malt011000012345mtlcast001s"),
    "IP": ("192.168.0.1", "2001:db8::1", "::1", "fe80:0:0:0:1:2:3:4", "::ffff:10.0.0.1"),
}  # fmt: skip
SAFE = (
    "123e4567-e89b-42d3-a456-426614174000", "01ARZ3NDEKTSV4RRFFQ69G5FAV", "2024-01-15T10:30:00Z", "15.01.2024 10:30",
    "1234567890", "$1,234.56", "sk-learn", "sk-learn-estimators-and-things", "task-1234567890123456789", "1.2.3.4",
    "data:image/png;base64,iVBORw0KGgoAAAANSUhEUgAAAAUAAAAFCAYAAACNbyblAAAAHElEQVQI12P4", "the bearer of good news",
    "Bearer authentication", "Password: must be at least 8 characters", "password=None", "password=args.password",
    "api_key=os.environ['KEY']", "password=getpass()", "password=${DB_PASSWORD}", "api_key=api_key", "max_tokens: 100",
    '{"required":["password","email"]}', '"password": {"type": "string"}', "the secret: patience", "PASSWORD=<here>",
    "ASIA", "eyJ", "-----BEGIN CERTIFICATE-----\nMIIB\n-----END CERTIFICATE-----", "", "password", "password=",
    "john@example.com +49 30 1234567 4111111111111111 DE89370400440532013000",
)  # fmt: skip


def may_hold(text: str, options: Redaction) -> bool:
    return Glance(suspects(options))(text.encode())


def found(text: str, options: Redaction = ALL) -> list[tuple[str, str]]:
    return [(span.kind, text[span.start : span.end]) for span in find(text, options)]


@pytest.mark.parametrize("token", TOKENS)
@pytest.mark.parametrize("around", ["{}", "use {} now", "({}).", "\\n{}", "key%20{}", "\\u003c{}\\u003e", "id={}&b=1"])
def test_tokens_are_found_whole(token: str, around: str) -> None:
    text = around.format(token)
    assert found(text, Redaction()) == [("SECRET", token)]
    assert may_hold(text, Redaction())


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("password=hunter2", "hunter2"),
        ("passwd: hunter2.", "hunter2"),
        ("DB_PASSWORD='correct horse'", "correct horse"),
        ('{"api_key": "abcd\\"efgh"}', 'abcd\\"efgh'),
        ('{\\"apiKey\\":\\"abcdefgh\\"}', "abcdefgh"),
        ("**Password:** `hunter2`", "hunter2"),
        ("Password: hunter\nnext", "hunter"),
        ("?user=me&pwd=hunter2&x=1", "hunter2"),
        ("client_secret => hunter2", "hunter2"),
        ("x-auth-token: abc123def", "abc123def"),
        ("Api-Key: " + RUN, RUN),
        ("aws_secret_access_key = " + RUN, RUN),
        ("AWS_SECRET_ACCESS_KEY " + RUN, RUN),
        ("Authorization: Bearer " + RUN, RUN),
        ("authorization: bearer " + JWT, JWT),
        ("password=sk-" + RUN, "sk-" + RUN),
    ],
)
def test_assigned_secrets_are_found_without_their_name(text: str, value: str) -> None:
    assert found(text, Redaction()) == [("SECRET", value)]
    assert may_hold(text, Redaction())


@pytest.mark.parametrize(("kind", "value"), [(kind, value) for kind, values in PERSONAL.items() for value in values])
@pytest.mark.parametrize("around", ["{}", "use {} now", "({}).", '"{}"', "\\n{}\\n", "one {}, two"])
def test_personal_data_is_found_whole_where_wanted_only(kind: str, value: str, around: str) -> None:
    text = around.format(value)
    option = Redaction(**{f"{kind.lower()}s": True})
    assert found(text, option) == [(kind, value)]
    assert found(text) == [(kind, value)]
    assert may_hold(text, option)
    assert found(text, Redaction()) == []


@pytest.mark.parametrize("text", SAFE)
def test_what_only_looks_like_a_secret_stays(text: str) -> None:
    assert found(text, Redaction()) == []


@pytest.mark.parametrize(
    "text",
    [
        *SAFE[:6],
        "order 4111111111111112",  # check digit
        "4111111111111111000000000000",  # too long
        "a1b2c3d4-1234-4123-8111-411111111111",
        "DE88370400440532013000",
        "XX89370400440532013000",
        "1.2.3.256",
        "v1.2.3.4.5",
        "12:30:45",
        "std::vector<int> :: x",
        "@decorator.name",
        "pip install torch@2.13.0",
        "1+12345678901",
        "0.4111111111111111",
        "555-12-3456",
    ],
)
def test_what_only_looks_like_personal_data_stays(text: str) -> None:
    assert found(text) == []


def test_a_card_is_found_among_other_numbers() -> None:
    assert found("7 of 12 4111 1111 1111 1111 2024") == [("CARD", "4111 1111 1111 1111")]


def test_values_that_overlap_become_one_of_the_surest_kind() -> None:
    assert found("a@b.co@c.de") == [("EMAIL", "a@b.co@c.de")]
    assert found("password: 'mail john@example.com'") == [("SECRET", "mail john@example.com")]


@pytest.mark.parametrize("name", ["password", "DB_PASSWORD", "apiKey", "x-api-key", "accessToken", "client_secret"])
def test_names_of_secrets(name: str) -> None:
    assert is_secret_name(name)


@pytest.mark.parametrize("name", ["", "token", "max_tokens", "password_hint", "secret", "content", "0"])
def test_names_of_other_things(name: str) -> None:
    assert not is_secret_name(name)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("around", ["{}", "password={}", "password: '{}'", "Bearer {}", "{}{}", "sk-{}"])
def test_placeholders_are_not_found(kind: str, around: str) -> None:
    assert found(around.format(f"[{kind}_12]", f"[{kind}_1]")) == []


@given(
    st.lists(
        st.sampled_from(["sk-", "ghp_", "AKIA", "AIza", "eyJ", "a@b.co", "Bearer ", "PassWord", "secret", "key"])
        | st.sampled_from(
            ["token", "=", ": ", '"', "api", "access", "client", "_", "-", " ", ".", RUN, "xoxb-", "live_", "K"]
        )
        | st.text(string.printable, max_size=5),
        max_size=12,
    ).map("".join),
    st.booleans(),
)
def test_the_quick_look_misses_nothing(text: str, emails: bool) -> None:
    options = Redaction(emails=emails)
    assert may_hold(text, options) or not find(text, options)


@pytest.mark.parametrize(
    "text",
    [
        "a" * 10**6, "@" * 10**6, "sk-" * 300_000, "eyJ" * 300_000, ":" * 10**6, "a@" + "a." * 500_000, "-" * 10**6,
        "-----BEGIN PRIVATE KEY-----" * 5000, "password=" * 100_000, 'password="' * 30_000, "\\n" * 500_000,
        "1 " * 200_000 + "x", "1." * 200_000, "+1" * 200_000, "DE12" * 100_000, "bearer " * 100_000,
    ],
    ids=lambda text: f"{text[:10]}",
)  # fmt: skip
def test_hostile_texts_come_back(text: str) -> None:
    spans = find(text, ALL)
    assert all(before.end <= after.start for before, after in pairwise(spans))
