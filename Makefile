# `make demo` and `make test` do everything on a fresh machine: virtual environment, torch, the package, what the target
# needs. Stamp files in .venv remember what is done, so the second call starts at once.

PYTHON ?= python3
VENV   ?= .venv
TORCH  ?= torch==2.13.0
JOBS   ?= 2

python := $(VENV)/bin/python
pip    := $(python) -m pip --disable-pip-version-check -qq

# torch with two threads beside another busy process waits for itself; tests run as several processes instead
one_thread := OMP_NUM_THREADS=1 MKL_NUM_THREADS=1 TOKENIZERS_PARALLELISM=false HF_HUB_OFFLINE=1

.PHONY: demo test test-all lint format clean help

help:
	@echo "make demo      train on the packaged pictures and draw before/after, on the embedded base"
	@echo "make test      the tests (about twelve minutes on two cores)"
	@echo "make test-all  the same and the slow ones"
	@echo "make lint      ruff, mypy, and the list of what may only get better"

demo: $(VENV)/.package
	$(VENV)/bin/studio demo

test: $(VENV)/.test
	$(one_thread) $(python) -m pytest -n $(JOBS) -m "not slow"

test-all: $(VENV)/.test
	$(one_thread) $(python) -m pytest -n $(JOBS) -m ""

lint: $(VENV)/.dev
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	$(python) tests/support/ratchet.py
	$(VENV)/bin/mypy

format: $(VENV)/.dev
	$(VENV)/bin/ruff check --fix .
	$(VENV)/bin/ruff format .
	$(python) tests/support/ratchet.py --lower

clean:
	rm -rf $(VENV) build dist *.egg-info

$(python):
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10))' || \
		{ echo "Python 3.10 or newer is needed, and $(PYTHON) is older: make PYTHON=/path/to/python3" >&2; exit 1; }
	$(PYTHON) -m venv $(VENV)

# torch goes first and alone, so that no other package brings a build for hardware that is not there. On a Linux machine
# without an NVIDIA driver that is the CPU build of torch's own index. Where pip is set up to take packages from somewhere
# else (a mirror, a folder), that setting is followed.
$(VENV)/.torch: $(python)
	@if [ "$$(uname -s)" = Linux ] && ! command -v nvidia-smi >/dev/null 2>&1 \
			&& ! $(python) -m pip config list | grep -E '(index-url|find-links|no-index)=' >/dev/null; then \
		echo "installing the CPU build of $(TORCH)"; \
		$(pip) install --index-url https://download.pytorch.org/whl/cpu --retries 1 --timeout 15 "$(TORCH)" \
			|| $(pip) install "$(TORCH)"; \
	else \
		echo "installing $(TORCH)"; \
		$(pip) install "$(TORCH)"; \
	fi
	@touch $@

$(VENV)/.package: $(VENV)/.torch pyproject.toml constraints.txt
	@echo "installing adapter-studio"
	@$(pip) install -c constraints.txt -e .
	@touch $@

$(VENV)/.test: $(VENV)/.package
	@echo "installing what the tests need"
	@$(pip) install -c constraints.txt -e '.[test]'
	@touch $@

$(VENV)/.dev: $(VENV)/.test
	@echo "installing what development needs"
	@$(pip) install -c constraints.txt -e '.[dev]'
	@touch $@
