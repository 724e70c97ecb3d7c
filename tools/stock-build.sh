#!/bin/sh
# Builds plugin/dkim of this checkout into an unmodified CoreDNS through its plugin.cfg, as docs describe it for a release,
# and leaves the result in build/stock/coredns. The CoreDNS source is the version that go.mod requires.
set -eu

top=$(pwd)
src=build/stock/src

go mod download github.com/coredns/coredns
rm -rf build/stock
mkdir -p build/stock
cp -R "$(go list -m -f '{{.Dir}}' github.com/coredns/coredns)" $src
chmod -R u+w $src
cd $src

# The order in plugin.cfg is the order of the chain: after cache and the rewriting plugins, before the other sources of zones.
awk '$0 == "file:file" { print "dkim:github.com/dkimzone/dkimzone/plugin/dkim" } { print }' plugin.cfg >plugin.cfg.new
mv plugin.cfg.new plugin.cfg
grep -q '^dkim:' plugin.cfg || { echo "plugin.cfg has no line file:file to stand before" >&2; exit 1; }

# A released version is fetched with "go get github.com/dkimzone/dkimzone@VERSION"; here this checkout stands in for it.
go mod edit -require=github.com/dkimzone/dkimzone@v0.0.0 -replace=github.com/dkimzone/dkimzone="$top"
go generate coredns.go
GOFLAGS=-mod=mod CGO_ENABLED=0 go build -o ../coredns .

../coredns -plugins | grep -Eq '^ *(dns\.)?dkim$' || { echo "the plugin is not in the built CoreDNS" >&2; exit 1; }
echo "build/stock/coredns has the plugin dkim"
