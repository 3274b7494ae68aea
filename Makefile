.PHONY: check fix docs wheel floors
check:
	ruff format --check .
	ruff check .
	mypy
	lint-imports
	pytest
	pytest -m slow
fix:
	ruff format .
	ruff check --fix .
docs:
	mkdocs build --strict
wheel:
	.ci/wheel
floors:
	.ci/floors
