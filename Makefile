# Set-up is part of every target: each makes the virtual environment it needs.
PYTHON ?= python3
PIP = -q --disable-pip-version-check

.PHONY: demo test lint clean

# The main job, with nothing but the runtime installed.
demo: .venv/demo/installed
	.venv/demo/bin/ovseg segment docs/images/china.jpg $(DEMO_LABELS) --overlay demo.overlay.png

test: .venv/test/installed
	.venv/test/bin/python -m pytest

lint: .venv/test/installed
	.venv/test/bin/ruff check .
	.venv/test/bin/mypy --strict ovseg
	.venv/test/bin/lint-imports

.venv/demo/installed: pyproject.toml
	$(PYTHON) -m venv .venv/demo
	.venv/demo/bin/pip install $(PIP) .
	touch $@

.venv/test/installed: pyproject.toml
	$(PYTHON) -m venv .venv/test
	.venv/test/bin/pip install $(PIP) -e '.[test,lint]'
	touch $@

clean:
	rm -rf .venv build ovseg.egg-info demo.overlay.png

DEMO_LABELS = sky tree temple lake
