# make demo   train MCN on built-in videos and see what it learned   (5 minutes on 2 quiet cores)
# make test   everything that must hold                              (15 to 25 minutes on 2 cores)
# make help   all targets

PYTHON ?= python3
VENV   ?= .venv
BIN     = $(VENV)/bin
PIP_ARGS ?=
PROFILE ?= laptop
DEMO   ?= runs/demo
DATA   ?= data/synthetic
SET    ?= []

export PIP_DISABLE_PIP_VERSION_CHECK = 1

.PHONY: help demo test lint types unit notebooks-test notebooks book browser-test data tables bench gpu learn clean

help:            ## this list
	@grep -hE '^[a-z-]+: .*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 18

# Plain pip in a virtual environment: nothing but python3-venv is asked for.
install: $(VENV)/.installed   ## make .venv with everything in it
$(VENV)/.installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install $(PIP_ARGS) --quiet --constraint constraints.txt --editable '.[book,data,cluster,test]'
	@touch $@

demo: install    ## built-in data, contrast and MCN, one table, pictures, the book
	$(BIN)/mcn demo --out $(DEMO)
	@$(MAKE) --no-print-directory book

test: install lint types unit notebooks-test   ## ruff, mypy, pytest with doctests, notebooks in smoke mode

lint: install
	$(BIN)/ruff check .
	$(BIN)/ruff format --check --quiet mcn data_scripts tests

types: install
	$(BIN)/mypy

unit: install
	$(BIN)/python -m pytest

notebooks-test: install   ## every chapter in smoke mode
	MCN_PROFILE=smoke $(BIN)/python -m pytest --nbval-lax -o testpaths= book

notebooks: install        ## run every chapter and store its outputs: PROFILE=smoke|laptop|paper
	MCN_PROFILE=$(PROFILE) $(BIN)/python book/run_notebooks.py

book: install    ## build the book from clean, warnings are errors
	@rm -rf _build/.doctrees _build/html
	$(BIN)/jupyter-book build --quiet -W --keep-going .
	@echo "the book: $(CURDIR)/_build/html/index.html"

# The book is built first where a page is missing or older than what it is made of.
BUILT = _build/html/index.html
$(BUILT): _config.yml _toc.yml $(shell find book mcn -type f ! -name '*.pyc')
	@$(MAKE) --no-print-directory book

$(VENV)/.browser: $(VENV)/.installed
	$(BIN)/pip install $(PIP_ARGS) --quiet --constraint constraints.txt --editable '.[browser]'
	@touch $@

browser-test: $(VENV)/.browser $(BUILT)   ## open every page of the book in headless Chromium, offline (2 to 4 minutes)
	$(BIN)/python -m pytest -m browser tests/book/test_browser.py

data: install    ## write the built-in data set: DATA=data/synthetic
	$(BIN)/python data_scripts/synthetic.py get $(DATA)

bench: install   ## timed comparisons, as ratios (minutes)
	$(BIN)/python -m pytest -m benchmark -s tests/benchmarks

gpu: install     ## is this GPU ready? exactness, steps, loader, largest batches, recorded (10 minutes)
	$(BIN)/python tests/benchmarks/gpu.py

tables: install  ## all evaluations of one trained and one untrained network, recorded: DATA=... SET=[epochs=12]
	$(BIN)/mcn ablate table5 --data $(DATA) --seeds 1 --rows '[untrained,from-scratch,mcn]' --set '$(SET)' \
	  --evaluate '[probe,headline,retrieval,finetune,motion]' --out runs/tables --results book/results

robust: install  ## a thousand damaged files, every real clip, ten thousand opens (half an hour)
	$(BIN)/python -m pytest -m robust -s tests/integration/test_robust.py

learn: install   ## does it learn? three seeds of the demo's settings against the control (about 20 minutes)
	$(BIN)/python -m pytest -m slow -s tests

clean:           ## what builds and tests leave behind (keeps runs/ and data/)
	rm -rf _build build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache
