// Package conformance checks, packet by packet, what a DNS node answers: bin/coredns
// as a process of its own, with a real etcd behind it, over UDP and TCP.
//
// Each reply is written as one line, and compared with the line that is
// expected, so that nothing in a reply goes unseen. Where CoreDNS makes the reply
// and it is not what we would send, the case names its row in
// docs/divergences.md; a test compares the two.
package conformance
