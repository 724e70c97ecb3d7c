#!/bin/sh
# Runs every native fuzz target of the repository in turn, each for the time given (20s by default).
set -eu

fuzztime=${1:-20s}
mkdir -p build
log=build/fuzz.txt
count=0
for file in $(git grep -l --untracked '^func Fuzz' -- '*_test.go'); do
	for target in $(sed -n 's/^func \(Fuzz[A-Za-z0-9_]*\)(.*/\1/p' "$file"); do
		echo "== $target in ./$(dirname "$file")"
		if ! go test -run '^$' -fuzz "^$target\$" -fuzztime "$fuzztime" "./$(dirname "$file")" >"$log" 2>&1; then
			cat "$log"
			# Go sometimes fails a run for nothing but that its time was up.
			if grep -q 'Failing input written' "$log" || ! grep -q 'context deadline exceeded' "$log"; then
				exit 1
			fi
		fi
		tail -n 1 "$log"
		count=$((count + 1))
	done
done
echo "$count fuzz targets, $fuzztime each"
[ "$count" -gt 0 ]
