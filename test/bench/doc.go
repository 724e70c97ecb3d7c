// Package bench measures dkimd as its callers see it: a whole `dkimd
// standalone` with real writes to disk, called over mutual TLS.
package bench
