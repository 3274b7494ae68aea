.PHONY: check fix
check:
	ruff format --check .
	ruff check .
	mypy
	pytest
fix:
	ruff format .
	ruff check --fix .
