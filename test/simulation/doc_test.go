// Package simulation lets internal/rotation run a provider for years of virtual time: customers who add their CNAMEs,
// forget, remove and mistype them, signers that come and go, a day without etcd, a freeze, limits on how much may rotate
// in an hour. Messages are signed with what Resolve says and verified against what the zone served, by receivers whose
// resolvers hold the worst answer that their caches could hold. docs/rotation.md has what a long run printed.
package simulation_test
