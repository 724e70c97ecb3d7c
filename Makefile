PROTOS := $(shell find api internal -name '*.proto' 2>/dev/null)
TOOLS := bin/tools

# One rule for all pinned tools: rebuilt when tools/ changes, else left alone.
TOOL_buf := github.com/bufbuild/buf/cmd/buf
TOOL_golangci-lint := github.com/golangci/golangci-lint/v2/cmd/golangci-lint
TOOL_benchstat := golang.org/x/perf/cmd/benchstat
TOOL_protoc-gen-go := google.golang.org/protobuf/cmd/protoc-gen-go
TOOL_protoc-gen-go-grpc := google.golang.org/grpc/cmd/protoc-gen-go-grpc
TOOL_protodeps := ./protodeps

GENERATORS := $(addprefix $(TOOLS)/,buf protodeps protoc-gen-go protoc-gen-go-grpc)

.PHONY: generate generate-check

generate: $(GENERATORS) ## write the Go code of the .proto files
	tools/generate.sh

generate-check: $(GENERATORS) ## fail if generated code differs from the .proto files
	tools/generate.sh --check

$(TOOLS)/%: tools/go.mod tools/go.sum $(wildcard tools/protodeps/*.go)
	go -C tools build -o ../$@ $(TOOL_$*)
	@touch $@
