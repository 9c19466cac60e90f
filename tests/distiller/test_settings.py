from pathlib import Path

import pytest

from distiller.settings import Settings, load_settings
from proxy.errors import BadInput


def written(folder: Path, text: str) -> Path:
    path = folder / "stillroom.toml"
    path.write_text(text)
    return path


def test_home_is_relative_to_the_file(tmp_path: Path) -> None:
    settings = load_settings(written(tmp_path, 'home = "here"'))
    assert settings.folder == tmp_path / "here"
    assert settings.policy.is_relative_to(settings.folder)


def test_without_a_file_there_are_defaults(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert load_settings(None) == Settings()
    written(tmp_path, "[proxy]\nport = 81")
    assert load_settings(None).proxy.port == 81


def test_a_task_may_have_an_evaluator_of_its_own(tmp_path: Path) -> None:
    settings = load_settings(written(tmp_path, '[router.tasks.triage]\nevaluator = "mine.scores:judge"'))
    assert settings.router.tasks["triage"].evaluator == "mine.scores:judge"


def test_a_named_file_must_exist(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="no settings file"):
        load_settings(tmp_path / "missing.toml")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[proxy]\nprot = 1", "did you mean 'port'"),
        ("[router]\nmargin = 1.5", r"router\.margin must lie between 0 and 1"),
        ("[router]\nholdback_share = 2.0", r"router\.holdback_share is a share"),
        ("[router]\ncanary_shares = []", r"router\.canary_shares must be rising shares"),
        ("[router]\ncanary_shares = [0.5, 0.1]", r"router\.canary_shares must be rising shares"),
        ("[router]\ncanary_shares = [0.0, 0.1]", r"router\.canary_shares must be rising shares"),
        ("[router]\ncanary_shares = [0.5, 1.5]", r"router\.canary_shares must be rising shares"),
        ("[router]\njudged_share = 0.0", r"router\.judged_share must be above 0 and at most 1"),
        ("[router]\njudged_share = 1.01", r"router\.judged_share must be above 0 and at most 1"),
        ("[router.tasks.a]\nfirst_tokens = -1", r"router\.tasks\.a\.first_tokens must be 0"),
        ("[router.tasks.a]\nfirst_tokens = 65", r"or at most 64, not 65"),
        ("[router]\nhold_seconds = 0.0", r"router\.hold_seconds must be above 0"),
        ("[router]\nslice_floor = 0.95", r"router\.slice_floor must lie between 0 and 1 - router\.margin"),
        ('[teacher]\nurl = "api.openai.com"', "must start with http"),
        ('[serving]\ndevice = "tpu"', "must be cpu or gpu"),
        ('[signing]\nkey = "a"\nkey_env = "B"', "signing has both key and key_env"),
        ("[edge]\ncontext = 0", r"edge\.context must be at least 1"),
        ("[edge]\nthreads = -1", r"edge\.threads 0"),
        ("[proxy]\nworkers = 0", "at least 1"),
        ("[proxy]\nkeys = true", r"needs teacher\.key_env"),
        ("[distiller]\nrank = 32", r"serving\.max_lora_rank"),
        ("[distiller]\nranks = [8, 32]", r"rank of 32 needs serving\.max_lora_rank"),
        ("[distiller]\nranks = [0]", r"distiller\.ranks are powers of two"),
        ("[distiller]\nhours = -1.0", r"distiller\.hours must be 0"),
        ("[distiller]\nrationale_budget = -1.0", r"distiller\.rationale_budget is US dollars"),
        ("[distiller]\nrationale_share = 0.0", r"distiller\.rationale_share is a share above 0"),
        ("[distiller]\nrationale_budget = 1.0", r'add "explained" to students'),
        ('[distiller]\nrationale_budget = 1.0\nstudents = ["explained"]', r"rationale_budget needs teacher\.key_env"),
        ('[distiller]\ninit = "last"', r'distiller\.init must be "base" or "previous"'),
        ('[distiller]\nterms = "ignore"', r'distiller\.terms must be "warn" or "refuse"'),
        ('[distiller.provider_terms]\nopenai = "no"', r'distiller\.provider_terms\.openai must be "warn" or "refuse"'),
        ('[teacher.named.german]\nurl = "x"', r"teacher\.named\.german\.url must be"),
        ('[teacher.tasks.t]\nteachers = { de = "x" }', r"teacher\.tasks\.t\.teachers names 'x'"),
        ('[distiller]\nsnapshots = "new"', r'distiller\.snapshots must be "all" or "current"'),
        ("[distiller]\nreplay_share = 0.1", r"distiller\.replay_share must be at least 0\.2"),
        ("[distiller]\nhalf_life_days = -1.0", r"distiller\.half_life_days must be 0"),
        ("[distiller]\nrepeat_budget = -1.0", r"distiller\.repeat_budget is US dollars"),
        ("[distiller]\nrepeat_share = 0.0", r"distiller\.repeat_share lies above 0"),
        ("[distiller]\nrepeat_margin = 1.5", r"distiller\.repeat_margin lies above 0"),
        ("[distiller]\nrepeat_budget = 1.0", r"repeat_budget needs teacher\.key_env"),
        ("[distiller]\nclass_balance = 1.5", r"distiller\.class_balance must lie between 0"),
        ("[distiller]\nlanguage_temperature = 0.5", r"distiller\.language_temperature must be 1 .* or more"),
        ("[distiller]\nlanguage_temperature = inf", r"distiller\.language_temperature must be 1 .* or more"),
        ("[serving]\nport = 8101", r"serving\.small_port are both 8101"),
        ('[router.tasks.triage]\nevaluator = "vibes"', r"router\.tasks\.triage: unknown evaluator 'vibes'"),
        ('[router.tasks.triage]\nevaluator = "json"\naliases = {a = "b"}', r"router\.tasks\.triage: aliases are for"),
        ('[router.rivals."a b"]\nmodel = "m"', r"router\.rivals\.a b: name it with"),
        ('[router.rivals.r]\nmodel = "m"', r"router\.rivals\.r needs a model, and tasks"),
        ('[router.rivals.r]\ntasks = ["t"]\nmodel = "m"\nurl = "x"', r"router\.rivals\.r\.url must be the base"),
        ('[router.rivals.r]\ntasks = ["t"]\nmodel = "m"\nurl = "http://k:s@x/v1"', "must not carry a key"),
        ("[money]\nengine_hour = nan", r"money\.engine_hour must be US dollars, 0 or more, not nan"),
        ("[money]\ntraining_hour = -1.0", r"money\.training_hour must be US dollars"),
        ('[money.prices."a/b"]\ninput = nan\noutput = 1.0', r"money\.prices\.'a/b'\.input must be US dollars"),
        ("[money.prices.a]\ninput = 1.0\noutput = 1.0\ncached_input = inf", r"prices\.'a'\.cached_input must be"),
        ("home = ", "is not TOML"),
    ],
)
def test_nonsense_is_refused_with_what_to_do(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(BadInput, match=message):
        load_settings(written(tmp_path, text))
