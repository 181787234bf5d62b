# The front door. `make help` lists what there is; continuous integration calls the same targets.

CARGO ?= cargo
MANIFEST ?= examples/boot.yaml
CASES ?= 20000
SOAK_KILLS ?= 500
SOAK_SECONDS ?= 1800
BEGAN := $(shell date +%s)

.DEFAULT_GOAL := help
.NOTPARALLEL:
.PHONY: help run test lint format clippy unit it faults testbed servers python generate fuzz sim guards soak soak-kills soak-storms bench bench-peers deny clean

# $(call stage,what it does,command): says so, runs it, and says how long it took.
define stage
	@began=$$(date +%s); printf '\n==> %s\n' '$(1)'; \
	if $(2); then printf '==> %s: %d s\n' '$(1)' "$$(( $$(date +%s) - began ))"; \
	else printf '==> FAILED after %d s: %s\n' "$$(( $$(date +%s) - began ))" '$(1)' >&2; exit 1; fi
endef

help: ## List the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  %-11s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

run: ## Run a manifest on this machine: no cluster, no NATS (MANIFEST=examples/boot.yaml)
	$(CARGO) run --release -- run $(MANIFEST)

test: format testbed clippy unit it faults ## Everything: the test bed, lints, unit tests, model and real-server tests
	@printf '\n==> all passed in %d s\n' "$$(( $$(date +%s) - $(BEGAN) ))"

lint: format clippy ## Formatting and lints, no warning allowed

format:
	$(call stage,check the formatting,$(CARGO) fmt --check)

clippy:
	$(call stage,lint all targets,$(CARGO) clippy --quiet --all-targets -- -D warnings)

unit: ## The tests beside the code and the examples in its documentation: no server, no network
	$(call stage,run the unit tests,$(CARGO) test --quiet --lib --bins)
	$(call stage,run the examples of the documentation,$(CARGO) test --quiet --doc)

it: testbed ## The model tests, and the tests on real servers
	$(call stage,run the model tests and those on real servers,$(CARGO) test --quiet --test it -- --skip faults::)

faults: testbed ## Kill, stop and cut off the real processes in mid-run; prints what came of each
	$(call stage,make faults in mid-run,list=$$(mktemp) && PMP_FAULTS_LIST=$$list $(CARGO) test --quiet --test it faults:: -- --test-threads 4 && sort $$list && rm $$list)

testbed: servers python ## Build the real servers and the Python environment; does nothing when they are there

servers:
	$(call stage,build the real servers,testbed/build)

python:
	$(call stage,make the Python environment,testbed/python)

generate: ## Write the generated files anew
	@mkdir -p crds
	$(CARGO) run --quiet -- crd > crds/.phasemanifests.yaml && mv crds/.phasemanifests.yaml crds/phasemanifests.yaml
	$(CARGO) run --quiet -- openapi > docs/.openapi.json && mv docs/.openapi.json docs/openapi.json

fuzz: ## The property and model tests with many more cases, optimised (CASES=20000)
	$(call stage,run the property tests with $(CASES) cases each,PROPTEST_CASES=$(CASES) $(CARGO) test --release --quiet --lib)
	$(call stage,run $(CASES) schedules against the engine,PMP_MODEL_SCHEDULES=$(CASES) $(CARGO) test --release --quiet --test it model::)

sim: testbed ## The simulation with many more storms, optimised (CASES=20000)
	$(call stage,play $(CASES) storms over the whole operator,PMP_SIM_SCHEDULES=$(CASES) $(CARGO) test --release --quiet --test it sim::)

guards: ## Break every guard of the engine, one at a time, and demand that the model test notices
	$(call stage,break the guards one at a time,tests/guards.py)

bench: servers ## How fast we are, on real servers, beside Argo where it was built (BENCH="--quick walk"); some 25 minutes
	$(call stage,measure on a machine that should be quiet,benches/run $(BENCH))

bench-peers: ## Build Argo's own controller for `make bench`: ten to twenty minutes, at the lowest priority
	$(call stage,build the peers,benches/peers/build)

soak: soak-kills soak-storms ## The long form of both: the operator killed 500 times, then 200,000 storms

soak-kills: testbed ## The operator killed 500 times within 30 minutes (SOAK_KILLS=500 SOAK_SECONDS=1800)
	$(call stage,kill the operator $(SOAK_KILLS) times within $(SOAK_SECONDS) s,PMP_SOAK_KILLS=$(SOAK_KILLS) PMP_SOAK_SECONDS=$(SOAK_SECONDS) $(CARGO) test --quiet --test it faults::soak::)

soak-storms: CASES = 200000
soak-storms: sim ## The simulation with 200,000 storms

deny: ## Licences, bans and advisories of the dependencies (needs cargo-deny)
	$(call stage,check the dependencies,$(CARGO) deny check)

clean: ## Remove what was built here; the caches outside the checkout stay
	$(CARGO) clean
