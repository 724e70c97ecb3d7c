#!/bin/sh
# Generates the Go code of the .proto files beside them, and in internal/gateway the REST routes and their description. With --check it only
# says whether that would change anything.
# Run by make from the top of the repository, with the tools built in bin/tools.
set -eu

bin/tools/protodeps build/proto
rm -rf build/_gen # the underscore keeps ./... out of it
bin/tools/buf generate --output build/_gen
bin/tools/buf generate --template buf.gen.rest.yaml --output build/_gen

list() { (cd "$1" && find api internal \( -name '*.pb.go' -o -name '*.pb.gw.go' -o -name '*.swagger.json' \) 2>/dev/null | LC_ALL=C sort); }

if [ "${1:-}" = --check ]; then
	status=0
	for f in $( (list .; list build/_gen) | LC_ALL=C sort -u); do
		if ! cmp -s "$f" "build/_gen/$f"; then
			echo "$f differs from its .proto" >&2
			status=1
		fi
	done
	[ $status -eq 0 ] || echo "run 'make generate' and commit what it changes" >&2
	exit $status
fi

for f in $(list .); do
	[ -e "build/_gen/$f" ] || rm "$f"
done
for f in $(list build/_gen); do
	mkdir -p "$(dirname "$f")"
	cmp -s "$f" "build/_gen/$f" || cp "build/_gen/$f" "$f"
done
