#!/bin/sh
# Runs every native fuzz target of the repository in turn, each for the time given (20s by default).
set -eu

fuzztime=${1:-20s}
count=0
for file in $(git grep -l --untracked '^func Fuzz' -- '*_test.go'); do
	for target in $(sed -n 's/^func \(Fuzz[A-Za-z0-9_]*\)(.*/\1/p' "$file"); do
		echo "== $target in ./$(dirname "$file")"
		go test -run '^$' -fuzz "^$target\$" -fuzztime "$fuzztime" "./$(dirname "$file")"
		count=$((count + 1))
	done
done
echo "$count fuzz targets, $fuzztime each"
[ "$count" -gt 0 ]
