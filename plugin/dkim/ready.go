package dkim

// Ready implements ready.Readiness: the server listens and all zones are loaded.
// The ready plugin answers some milliseconds before CoreDNS opens its sockets.
func (d *DKIM) Ready() bool {
	if d.deaf.Load() {
		return false
	}
	for _, z := range d.zones {
		if rep := z.replica.Load(); rep == nil || !rep.Loaded() {
			return false
		}
	}
	return true
}
