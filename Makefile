# Everything here needs Go, make, a POSIX shell and the Go module proxy, nothing else: the tools are pinned in tools/go.mod
# and built into bin/tools on first use.

.DEFAULT_GOAL := help
SHELL := /bin/sh

VERSION ?= $(shell git describe --tags --always --dirty 2>/dev/null || echo dev)
FUZZTIME ?= 20s
FAULT ?= 30s
TIMEOUT ?= 30m
BENCH ?= .
BENCHCOUNT ?= 1
BENCHTIME ?= 1s
RECORDS ?= 10000,200000,2000000
KEYS ?= 200000
ROUNDS ?= 3
BENCHDOC ?=
SCALE ?= 200000
PART ?= etcd,list,fanout,storm,resync,served,transfer,start,export
QUERIES ?= 100000
SEED ?= 1
DOMAINS ?= 100000
ROTATIONS ?= 30
MESSAGES ?= 3000

TOOLS := bin/tools
TOOL_benchstat := golang.org/x/perf/cmd/benchstat
TOOL_buf := github.com/bufbuild/buf/cmd/buf
TOOL_golangci-lint := github.com/golangci/golangci-lint/v2/cmd/golangci-lint
TOOL_protoc-gen-go := google.golang.org/protobuf/cmd/protoc-gen-go
TOOL_protoc-gen-go-grpc := google.golang.org/grpc/cmd/protoc-gen-go-grpc
TOOL_protoc-gen-grpc-gateway := github.com/grpc-ecosystem/grpc-gateway/v2/protoc-gen-grpc-gateway
TOOL_protoc-gen-openapiv2 := github.com/grpc-ecosystem/grpc-gateway/v2/protoc-gen-openapiv2
TOOL_protodeps := ./protodeps
GENERATORS := $(addprefix $(TOOLS)/,buf protodeps protoc-gen-go protoc-gen-go-grpc protoc-gen-grpc-gateway protoc-gen-openapiv2)

.PHONY: help build run test race e2e interop robustness simulate fuzz bench bench-go bench-publish bench-provision bench-sign bench-agent bench-index bench-scale lint fmt generate generate-check tidy-check stock-build clean

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z0-9-]+:.*## / { printf "  %-15s %s\n", $$1, $$2 }' Makefile

build: ## build bin/dkimd, bin/dkimctl and bin/coredns
	@mkdir -p bin
	CGO_ENABLED=0 go build -trimpath -ldflags '-s -w -X main.version=$(VERSION)' -o bin/ ./cmd/dkimd ./cmd/dkimctl ./cmd/coredns

run: build ## build and run everything in one process, with its data in ./data
	bin/dkimd standalone

# The last two watch processes, and want the machine for themselves.
RUN_TESTS = go test -timeout $(TIMEOUT) $(1) $$(go list ./... | grep -v -e /test/e2e$$ -e /test/robustness$$) && \
	go test -timeout $(TIMEOUT) $(1) -p 1 ./test/e2e ./test/robustness

test: ## run all tests
	$(call RUN_TESTS)

race: ## run all tests under the race detector
	$(call RUN_TESTS,-race)

e2e: ## run the end-to-end tests only: separate processes on loopback
	go test -count=1 -v ./test/...

interop: ## compare our replies with those of other name servers, have them as secondaries, validate signed answers, judge CNAMEs that they serve, let mail servers sign and verifiers judge their mail, keep the key-encryption key in a Vault, and rotate keys while mail goes through unbound and MESSAGES (3000) are signed by all kinds of signers; Debian, installs them as root
	go run ./test/interop/differential -queries $(QUERIES) -seed $(SEED)
	@tools/install-interop.sh
	go test -tags interop -count=1 -timeout 90m -v ./test/interop -rotations $(ROTATIONS) -messages $(MESSAGES)
	go test -tags interop -count=1 -timeout 20m -v ./test/e2e -run 'TestPostfix|TestSendmail|TestOpenDKIM|TestExim|TestRspamd|TestVaultTransit'

robustness: ## take etcd, network, disk and clients away from DNS nodes, each for FAULT (30s)
	go test -count=1 -timeout 2h -v ./test/robustness -fault $(FAULT)

simulate: ## let DOMAINS (100000) rotate for two years of virtual time, with everything that customers do; prints a table
	GOGC=400 go test -count=1 -timeout 1h -run TestSimulation ./test/simulation -domains $(DOMAINS) -check 168h -seed $(SEED) -print

fuzz: ## run every fuzz target in turn, each for FUZZTIME (20s)
	@tools/fuzz.sh $(FUZZTIME)

bench: ## measure NSD, Knot, BIND, PowerDNS and CoreDNS beside ours, with zones of RECORDS (long); Debian, installs them as root
	go run ./test/bench/peers -records $(RECORDS) -rounds $(ROUNDS) -doc '$(BENCHDOC)'

bench-go: $(TOOLS)/benchstat ## run the Go benchmarks that match BENCH; with BENCHCOUNT over 1, summarise the runs
	@mkdir -p build
	@{ go test -run '^$$' -bench '$(BENCH)' -benchmem -benchtime $(BENCHTIME) -count $(BENCHCOUNT) -p 1 \
		$$(git grep -l --untracked '^func Benchmark' -- '*_test.go' | xargs -n 1 dirname | sort -u | sed 's|^|./|'); \
		echo $$? >build/bench.status; } | tee build/bench.txt
	@[ "$$(cat build/bench.status)" = 0 ]
	@[ $(BENCHCOUNT) -eq 1 ] || $(TOOLS)/benchstat build/bench.txt

bench-publish: ## publish a file of KEYS (200000) public keys, into dkimd standalone and into dkimd serve with an etcd
	go test -run '^$$' -bench PublishFile -benchtime $(KEYS)x -timeout 1h ./test/bench

bench-provision: ## provision a file of DOMAINS (100000) domains with Ed25519, into dkimd standalone and into dkimd serve with an etcd
	go test -run '^$$' -bench ProvisionFile -benchtime $(DOMAINS)x -timeout 2h ./test/bench

bench-sign: ## measure what signers ask of a dkimd with DOMAINS (100000) domains, and mail filters beside OpenDKIM; two CPUs, Debian, installs it as root
	@command -v opendkim >/dev/null || DEBIAN_FRONTEND=noninteractive apt-get install -y opendkim
	go test -run '^$$' -bench 'Signing$$' -benchtime 1x -timeout 1h ./test/bench -signing-domains $(DOMAINS)

bench-agent: ## measure dkimd agent's files with DOMAINS (100000) domains, in FILES (a temporary directory)
	go test -run '^$$' -bench Agent -benchtime 1x -timeout 1h ./internal/agent -agent-domains $(DOMAINS) -agent-dir '$(FILES)'

bench-scale: ## measure what a zone of SCALE (200000) records asks of etcd and of DNS nodes; PART=start,resync for some of it; Linux
	go run ./test/bench/scale -records $(SCALE) -part '$(PART)'

bench-index: ## compare designs for the replica's index, with 10 000, 200 000 and 2 000 000 records (some minutes, 4 GiB)
	go test -run '^$$' -bench Designs -timeout 1h ./internal/replica -designs 10000,200000,2000000

lint: $(TOOLS)/golangci-lint $(TOOLS)/buf $(TOOLS)/protodeps ## check Go code and .proto files
	$(TOOLS)/golangci-lint run ./...
	cd tools && ../$(TOOLS)/golangci-lint run --config ../.golangci.yml ./...
	$(TOOLS)/protodeps build/proto
	$(TOOLS)/buf lint
	$(TOOLS)/buf format --diff --exit-code api
	$(TOOLS)/buf format --diff --exit-code internal/schema

fmt: $(TOOLS)/golangci-lint $(TOOLS)/buf $(TOOLS)/protodeps ## format Go code and .proto files
	$(TOOLS)/golangci-lint fmt ./...
	cd tools && ../$(TOOLS)/golangci-lint fmt --config ../.golangci.yml ./...
	$(TOOLS)/protodeps build/proto
	$(TOOLS)/buf format --write api
	$(TOOLS)/buf format --write internal/schema

generate: $(GENERATORS) ## write the Go code of the .proto files beside them, and the REST routes
	tools/generate.sh

generate-check: $(GENERATORS) ## fail if the generated code differs from the .proto files
	tools/generate.sh --check

tidy-check: ## fail if go.mod or go.sum is not tidy
	go mod tidy -diff
	go mod verify

stock-build: ## build the plugin into a stock CoreDNS through plugin.cfg (long), in build/stock
	tools/stock-build.sh

clean: ## remove what the other targets built; leaves ./data
	rm -rf bin build

# Rebuilt when tools/ changes. Go's build cache makes that short.
$(TOOLS)/%: tools/go.mod tools/go.sum $(wildcard tools/protodeps/*.go)
	go -C tools build -o ../$@ $(TOOL_$*)
	@touch $@
