package archtest

import (
	"fmt"
	"maps"
	"path"
	"slices"
	"strings"
)

// pkg is one package of the import graph.
type pkg struct {
	imports   []string // without those of tests
	name      string
	comment   string // the package comment
	mainLines int    // lines of main.go in a package main, else 0
}

// graph maps import paths to packages: all of the module and all that they depend on.
type graph map[string]pkg

// own returns the import paths of this module's packages, sorted.
func (g graph) own() []string {
	var list []string
	for p := range g {
		if rel(p) != "" {
			list = append(list, p)
		}
	}
	slices.Sort(list)
	return list
}

// chain returns a shortest import chain from one package to the first one that bad accepts, or nil.
func (g graph) chain(from string, bad func(string) bool) []string {
	cameFrom := map[string]string{from: ""}
	for queue := []string{from}; len(queue) > 0; queue = queue[1:] {
		for _, imp := range g[queue[0]].imports {
			if _, seen := cameFrom[imp]; seen {
				continue
			}
			cameFrom[imp] = queue[0]
			if !bad(imp) {
				queue = append(queue, imp)
				continue
			}
			var list []string
			for p := imp; p != ""; p = cameFrom[p] {
				list = append(list, p)
			}
			slices.Reverse(list)
			return list
		}
	}
	return nil
}

// rel returns the path of a package below the module, "internal/schema", or "" if it is not in the module.
func rel(importPath string) string {
	r, ok := strings.CutPrefix(importPath, module+"/")
	if !ok {
		return ""
	}
	return r
}

// below reports whether p is root or a package under it.
func below(p, root string) bool {
	return p == root || strings.HasPrefix(p, root+"/")
}

func belowAny(p string, roots []string) bool {
	return slices.ContainsFunc(roots, func(root string) bool { return below(p, root) })
}

// unit returns the name of the package of internal/ that p is or lies under, or "".
func unit(p string) string {
	r, ok := strings.CutPrefix(rel(p), "internal/")
	if !ok {
		return ""
	}
	u, _, _ := strings.Cut(r, "/")
	return u
}

// checkTiers finds packages of internal/ without a tier and imports that do not go down.
func checkTiers(g graph) []string {
	var found []string
	for _, p := range g.own() {
		from := unit(p)
		if from == "" {
			continue
		}
		tier, ok := tiers[from]
		if !ok {
			found = append(found, fmt.Sprintf("%s has no tier: add it to the table of archtest, where the design puts it", rel(p)))
			continue
		}
		for _, imp := range g[p].imports {
			to := unit(imp)
			if to == "" || to == from {
				continue
			}
			switch toTier, known := tiers[to]; {
			case !known: // said above
			case toTier > tier:
				found = append(found, fmt.Sprintf("%s (tier %d) imports %s (tier %d): a tier imports lower tiers only, so that each can be understood and tested without those above it",
					rel(p), tier, rel(imp), toTier))
			case toTier == tier && tier > 0 && shared[to] == "":
				found = append(found, fmt.Sprintf("%s imports %s, both of tier %d: packages of one tier are joined by the tier above, not by each other",
					rel(p), rel(imp), tier))
			}
		}
	}
	return found
}

// checkPure finds imports by which a tier 0 package could get at time, files, the network or a log.
func checkPure(g graph) []string {
	var found []string
	for _, p := range g.own() {
		if tier, ok := tiers[unit(p)]; !ok || tier != 0 {
			continue
		}
		for _, imp := range g[p].imports {
			if slices.Contains(pureForbidden, imp) && pureExceptions[unit(p)] != imp {
				found = append(found, fmt.Sprintf("%s imports %s: tier 0 takes values and returns values, without context, log or I/O", rel(p), imp))
			}
		}
	}
	return found
}

// checkRoots finds imports between the top folders that the layout has no arrow for.
func checkRoots(g graph) []string {
	var found []string
	for _, p := range g.own() {
		for _, imp := range g[p].imports {
			from, to := rel(p), rel(imp)
			switch {
			case below(to, "cmd"):
				found = append(found, fmt.Sprintf("%s imports %s: a command is an end, what others need of it belongs in a package", from, to))
			case below(to, "test") && !below(from, "test"):
				found = append(found, fmt.Sprintf("%s imports %s: what tests need is not for the product", from, to))
			case strings.HasSuffix(to, "test") && !strings.HasSuffix(from, "test") && !below(from, "test"):
				found = append(found, fmt.Sprintf("%s imports %s: a package for tests is imported by tests only", from, to))
			}
		}
	}
	return found
}

// checkNames finds folders with names that say nothing.
func checkNames(g graph) []string {
	var found []string
	for _, p := range g.own() {
		for part := range strings.SplitSeq(rel(p), "/") {
			if slices.Contains(forbiddenNames, part) {
				found = append(found, fmt.Sprintf("%s: a package called %q gathers what belongs elsewhere; name it after its one noun", rel(p), part))
			}
		}
	}
	return found
}

// checkOwners finds direct imports of a dependency by a package that does not own it.
func checkOwners(g graph) []string {
	var found []string
	for _, p := range g.own() {
		for _, imp := range g[p].imports {
			for _, o := range owners {
				if !below(imp, o.dependency) || below(p, o.dependency) {
					continue
				}
				if !belowAny(rel(p), o.owners) {
					found = append(found, fmt.Sprintf("%s imports %s, which only %s may: %s", rel(p), imp, strings.Join(o.owners, ", "), o.reason))
				}
			}
		}
	}
	return found
}

// checkReaches finds packages that a package must not depend on even through others.
func checkReaches(g graph) []string {
	var found []string
	for _, r := range reaches {
		for _, p := range g.own() {
			if !below(rel(p), r.from) {
				continue
			}
			allowed := append([]string{r.from}, r.only...)
			bad := func(imp string) bool {
				own := rel(imp)
				return belowAny(imp, r.forbidden) || len(r.only) > 0 && own != "" && !belowAny(own, allowed)
			}
			if c := g.chain(p, bad); c != nil {
				found = append(found, fmt.Sprintf("%s must not reach %s: %s\n\t%s", rel(p), c[len(c)-1], r.reason, strings.Join(c, "\n\t-> ")))
			}
		}
	}
	return found
}

// checkComments finds packages that do not say what they are.
func checkComments(g graph) []string {
	var found []string
	for _, p := range g.own() {
		want := "Package " + strings.TrimSuffix(g[p].name, "_test") + " "
		if g[p].name == "main" {
			want = "Command " + path.Base(p) + " "
		}
		if !strings.HasPrefix(g[p].comment, want) {
			found = append(found, fmt.Sprintf("%s has no comment that begins %q: the first thing a reader wants to know is what a package is for", rel(p), want))
		}
	}
	return found
}

// checkMains finds commands with more than wiring in them.
func checkMains(g graph) []string {
	var found []string
	for _, p := range g.own() {
		if n := g[p].mainLines; below(rel(p), "cmd") && n > maxMainLines {
			found = append(found, fmt.Sprintf("%s/main.go has %d lines, more than %d: tests can start a package, not a command", rel(p), n, maxMainLines))
		}
	}
	return found
}

// checks are all rules by name.
var checks = map[string]func(graph) []string{
	"tiers":    checkTiers,
	"pure":     checkPure,
	"roots":    checkRoots,
	"names":    checkNames,
	"owners":   checkOwners,
	"reaches":  checkReaches,
	"comments": checkComments,
	"mains":    checkMains,
}

var checkOrder = slices.Sorted(maps.Keys(checks))
