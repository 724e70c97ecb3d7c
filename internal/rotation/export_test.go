package rotation

import "time"

// GateNames are the gates that a test can switch off.
var GateNames = map[string]gateID{
	"served": gateServed, "alias": gateAlias, "lead": gateLead, "signers": gateSigners, "paused": gatePaused, "frozen": gateFrozen,
	"fresh": gateFresh, "due": gateDue, "silent": gateSilent, "drain": gateDrain, "gap": gateGap,
}

// NumGates is how many gates there are.
const NumGates = int(numGates) - 1

// NextWithout is Next with a gate that is always open; "": none.
func NextWithout(gate string, p Policy, d Domain, e Evidence, now time.Time) Decision {
	return (&look{p: &p, d: &d, e: &e, now: now, off: GateNames[gate]}).next()
}

// ResolveWithout is Resolve with a gate that is always open; "": none.
func ResolveWithout(gate string, mode Mode, p Policy, own, shared, def *View, now time.Time) Resolution {
	return resolve(GateNames[gate], mode, &p, own, shared, def, now)
}
