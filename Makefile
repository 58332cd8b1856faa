GO ?= go
TOOL = $(GO) tool -modfile=tools/go.mod
VERSION ?= $(shell git describe --tags --always --dirty 2>/dev/null || echo dev)
LDFLAGS = -ldflags "-X main.version=$(VERSION)"

.PHONY: help
help: ## show this list
	@awk 'BEGIN {FS = ":.*## "} /^[a-z-]+:.*## / {printf "  %-16s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

.PHONY: build
build: ## build fanoutd and fanoutctl into bin/
	@mkdir -p bin
	$(GO) build $(LDFLAGS) -o bin/ ./cmd/...

.PHONY: demo
demo: build ## run a whole fabric of nine sites on this machine until Ctrl-C
	./bin/fanoutctl demo

.PHONY: test
test: ## run all tests
	$(GO) test -timeout 25m -parallel 4 ./... # tests with processes of their own mostly wait
	$(GO) test -C deploy/prometheus ./... # a module of its own: see there

.PHONY: race
race: ## run all tests under the race detector
	$(GO) test -race -timeout 60m ./...

SEED ?= $(shell od -An -N4 -tu4 /dev/urandom | tr -d ' ')
DURATION ?= 5m
.PHONY: soak
soak: ## a randomised fault run of SEED (default: any) and DURATION=5m, then the checker
	$(GO) test -run '^TestSoak$$' -count 1 -timeout 120m -v -artifacts ./integration -soak.seed=$(SEED) -soak.duration=$(DURATION)

.PHONY: linear
linear: ## clients at all members of headquarters while its roots are killed, for SEED (default: any) and DURATION=5m, then the history checker
	$(GO) test -run '^TestLinear$$' -count 1 -timeout 120m -v -artifacts ./integration -linear.seed=$(SEED) -linear.duration=$(DURATION)

.PHONY: mutants
mutants: ## break each guarantee on purpose, and see that the test named for it fails
	$(GO) run ./internal/mutants

FUZZTIME ?= 20s
.PHONY: fuzz
fuzz: ## run every fuzz target, one after another, each for FUZZTIME=20s
	@GO="$(GO)" .ci/fuzz $(FUZZTIME)

.PHONY: bench
bench: ## measure; figures as ratios within one run
	$(GO) test -run '^$$' -bench . -benchmem -benchtime 2x -timeout 60m ./pkg/transfer ./pkg/store ./pkg/catalog ./pkg/agent ./pkg/view ./pkg/web ./integration

.PHONY: lint
lint: ## vet, staticcheck, gofmt, buf lint
	$(GO) vet ./...
	$(TOOL) staticcheck ./...
	@test -z "$$(git ls-files '*.go' | xargs gofmt -l)" || { echo "gofmt would change:"; git ls-files '*.go' | xargs gofmt -l; exit 1; }
	$(TOOL) buf lint

AGAINST ?= main
.PHONY: breaking
breaking: ## compare the protos with those of an earlier commit: AGAINST=main
	$(TOOL) buf breaking --against '.git#ref=$(shell git rev-parse $(AGAINST))'

.PHONY: generate
generate: ## make the Go code of the protos anew
	$(TOOL) buf generate

.PHONY: check-generate
check-generate: generate ## fail when the committed generated code is not current
	@git diff --exit-code -- proto || { echo "run 'make generate' and commit what it changes"; exit 1; }

.PHONY: fmt
fmt: ## format all Go code
	gofmt -w $$(git ls-files '*.go' | grep -v '\.pb\.go$$')
