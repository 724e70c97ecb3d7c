package peers

import (
	"errors"
	"net"
)

// FreePort is a port of 127.0.0.1 that nothing listens on, over TCP or UDP.
func FreePort() (int, error) {
	const attempts = 100
	var last error
	for range attempts {
		tcp, err := net.ListenTCP("tcp", &net.TCPAddr{IP: net.IPv4(127, 0, 0, 1)})
		if err != nil {
			return 0, err
		}
		port := tcp.Addr().(*net.TCPAddr).Port //nolint:errcheck,forcetypeassert // a TCP listener has one
		udp, err := net.ListenUDP("udp", &net.UDPAddr{IP: net.IPv4(127, 0, 0, 1), Port: port})
		if err == nil {
			return port, errors.Join(tcp.Close(), udp.Close())
		}
		last = errors.Join(err, tcp.Close())
	}
	return 0, last
}
