package dkim

// Ready implements ready.Readiness: all zones are loaded.
func (d *DKIM) Ready() bool {
	for _, z := range d.zones {
		if rep := z.replica.Load(); rep == nil || !rep.Loaded() {
			return false
		}
	}
	return true
}
