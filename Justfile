# pilocal's chores; `just` alone lists them.

set shell := ["bash", "-euo", "pipefail", "-c"]

python := env("PYTHON", "python3")
bin := ".venv/bin"

# A folder of wheels that pip was told of serves uv as well.
export UV_FIND_LINKS := env("UV_FIND_LINKS", env("PIP_FIND_LINKS", ""))

# PyTorch for this machine: its GPU's build or the CPU's, unless a folder of wheels decides.
torch := if UV_FIND_LINKS == "" { "--torch-backend=auto" } else { "" }

# llama.cpp is compiled without its command-line and multimodal tools, in a third of the time.
export CMAKE_ARGS := env("CMAKE_ARGS", "") + " -DLLAVA_BUILD=OFF -DCMAKE_PROJECT_INCLUDE=" + quote(justfile_directory() / ".ci/llama_cpp.cmake")
export SKBUILD_BUILD_TARGETS := "llama;ggml"

[private]
default:
    @just --list --unsorted

# Run the main job on the bundled starter model and print the arms side by side
demo: (install ".")
    {{ bin }}/pilocal run examples/smart-home --schedule examples/smart-home/schedule.toml

# Train SmolLM2 on NL2Bash and print the arms side by side; DATA holds all.nl and all.cm, fetched if it is left out
demo-real data="": (install if os() == "linux" { ".[smollm2,torch]" } else { ".[smollm2]" })
    [ -n "{{ data }}" ] || [ -d runs/nl2bash-data ] || git clone --depth 1 https://github.com/TellinaTool/nl2bash runs/nl2bash-data
    [ -d runs/nl2bash ] || {{ bin }}/python examples/nl2bash/prepare.py "{{ if data == "" { "runs/nl2bash-data/data/bash" } else { data } }}" runs/nl2bash --train 1500 --valid 20 --test 60
    {{ bin }}/pilocal run runs/nl2bash/task.smollm2.toml --schedule examples/nl2bash/schedule.smollm2.toml --run runs/nl2bash/run {{ if os() == "linux" { "--backend torch" } else { "" } }}

# Run every test, in two processes; those that train in several of their own come last
test: setup
    {{ bin }}/pytest -n 2 --dist loadfile --no-loadscope-reorder -m "not processes"
    {{ bin }}/pytest -m processes $(grep --files-with-matches mark.processes tests/test_*.py)

# Lint and types
lint: setup
    {{ bin }}/ruff check .
    {{ bin }}/ruff format --check .
    {{ bin }}/mypy
    {{ bin }}/mypy examples/text-to-query/make.py
    {{ bin }}/mypy examples/two-hop/make.py

# Run the tests that take a moment: while you work
quick: setup
    {{ bin }}/pytest -x -n 2 --dist loadfile -m "not slow and not browser and not processes"

# Lint, types, known vulnerabilities and tests
check: lint audit test

# Known vulnerabilities of what is installed; those that tests/accepted.toml accepts are no fault
audit: setup
    {{ bin }}/python -m tests.audit

# Mend what can be mended automatically
fix: setup
    {{ bin }}/ruff check --fix .
    {{ bin }}/ruff format .
    {{ bin }}/python -m tests.documents

# Kill, interrupt and starve every command that works for long, and see what is left: `just faults [--moments N]`
faults *options: setup
    {{ bin }}/python -m tests.faults {{ options }}

# Measure the starter's gate: 20 unseen tasks, full prompt against bare query
gate: setup
    {{ bin }}/python tests/bench/starter_gate.py

# Measure pilocal beside what it replaces, ratios with their range: `just bench [NAME...]`
bench *names: setup
    {{ bin }}/python -m tests.bench {{ names }}

# Give broken inputs to every door for some minutes: `just fuzz MINUTES [DOOR...]`; faults go to fuzz-found.jsonl
fuzz minutes *doors: setup
    {{ bin }}/python -m tests.fuzz {{ minutes }} {{ doors }}

# Check everything that needs an NVIDIA GPU: tests, parity, the 8B shape's table
cuda: setup (gpu bin)

# The same with an environment that is there already, such as /venv/bin, on any device: torch, transformers, peft, numpy,
# safetensors, click, rich, gguf and pytest do
gpu environment device="cuda":
    {{ environment }}/python -m pytest -rs tests/test_cuda.py
    {{ environment }}/python -m pilocal parity --reference tests/parity/starter --device {{ device }}
    {{ environment }}/python -m tests.bench backends

# Build wheel, sdist and a bill of materials into dist/, try each in an empty environment, and audit this one
release: setup
    rm -rf dist
    {{ bin }}/uv build --python {{ bin }}/python --out-dir dist
    {{ bin }}/python -m tests.sbom dist
    {{ bin }}/python -m tests.release dist
    {{ bin }}/python -m tests.audit --strict

# Create the environment and install everything into it
setup: (install ".[dev]")

[private]
install what:
    @test -x {{ bin }}/uv || { echo "creating .venv" && {{ python }} -m venv .venv && {{ bin }}/python -m pip install --quiet uv; }
    @{{ bin }}/python -c "import llama_cpp" 2>/dev/null || echo "installing; llama.cpp is compiled, which takes a few minutes"
    @{{ bin }}/uv pip install --compile-bytecode --python {{ bin }}/python {{ torch }} --editable {{ quote(what) }}
