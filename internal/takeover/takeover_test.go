package takeover_test

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/dkimzone/dkimzone/internal/takeover"
)

// tree writes files below a new directory and returns that. In their texts, and in
// names of what is wanted, ROOT is the directory.
func tree(t *testing.T, files map[string]string) string {
	t.Helper()
	root := t.TempDir()
	for name, text := range files {
		path := filepath.Join(root, name)
		if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	return root
}

// check compares an inventory with its lines: "domain selector file" with a * behind those in use, and what is wrong.
func check(t *testing.T, root string, inv takeover.Inventory, err error, want []string) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
	var got []string
	for _, k := range inv.Keys {
		line := fmt.Sprintf("%s %s %s", k.Domain, k.Selector, strings.TrimPrefix(k.File, root))
		if k.InUse {
			line += " *"
		}
		got = append(got, line)
	}
	for _, p := range inv.Problems {
		got = append(got, "! "+strings.ReplaceAll(p.Error(), root, ""))
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("inventory (-want +got):\n%s", diff)
	}
}

func TestOpenDKIM(t *testing.T) {
	tests := []struct {
		name    string
		files   map[string]string
		domains []string
		want    []string
	}{
		{
			name: "tables",
			files: map[string]string{
				"etc/opendkim.conf": "Syslog yes # log\nkeytable\t/etc/opendkim/KeyTable\nSigningTable refile:/etc/opendkim/SigningTable\n",
				"etc/opendkim/KeyTable": "# keys\n\nmail._domainkey.example.com example.com:mail:/etc/dkimkeys/example.com/mail.private\n" +
					"old example.com:2015:/etc/dkimkeys/old\nB\tBüCHER.example:s1:./book.private\nsub a.b.example.org:two.labels:/k/with:colon\n",
				"etc/opendkim/SigningTable": "*@example.com mail._domainkey.example.com\njoe@bücher.example B:%@x\n*@a.b.example.org sub\n*@gone.example gone\n",
			},
			want: []string{
				"example.com mail /etc/dkimkeys/example.com/mail.private *",
				"example.com 2015 /etc/dkimkeys/old",
				"xn--bcher-kva.example s1 /etc/opendkim/book.private *",
				"a.b.example.org two.labels /k/with:colon *",
				`! /etc/opendkim/SigningTable:4: key "gone" is not in the KeyTable`,
			},
		},
		{
			name: "one key file for senders that the SigningTable names",
			files: map[string]string{
				"etc/opendkim.conf": "KeyTable file:/etc/KeyTable\nSigningTable refile:/etc/SigningTable",
				"etc/KeyTable":      "each %:default:/keys/%.private\n",
				"etc/SigningTable":  "*@one.example each\nsomebody@two.example each\n",
			},
			want: []string{"one.example default /keys/one.example.private *", "two.example default /keys/two.example.private *"},
		},
		{
			name: "a directory for each sender",
			files: map[string]string{
				"etc/opendkim.conf":                "KeyTable /etc/KeyTable\nSigningTable refile:/etc/SigningTable",
				"etc/KeyTable":                     "each %:default:/keys/%/default.private\n",
				"etc/SigningTable":                 "* each\n",
				"keys/a.example/default.private":   "",
				"keys/a.example/other.private":     "",
				"keys/b.example/default.private":   "",
				"keys/not_good/default.private":    "",
				"keys/c.example/x/default.private": "",
			},
			domains: []string{"d.example"},
			want: []string{
				"d.example default /keys/d.example/default.private *", "a.example default /keys/a.example/default.private *",
				"b.example default /keys/b.example/default.private *",
				`! /etc/KeyTable:1: domain "not_good" is not valid: it has an underscore; give the name of the domain itself, not of a record below it`,
			},
		},
		{
			name: "senders that nobody names",
			files: map[string]string{
				"etc/opendkim.conf": "KeyTable csl:all=%:default:/keys/default.private\nSigningTable csl:*=all",
			},
			want: []string{`! /etc/opendkim.conf:1: key "all" signs for domains that are named nowhere; name them with --domain`},
		},
		{
			name: "the name of the key is the sender's domain",
			files: map[string]string{
				"etc/opendkim.conf": "KeyTable /etc/KeyTable\nSigningTable refile:/etc/SigningTable",
				"etc/KeyTable":      "a.example a.example:s:/keys/a\nb.example b.example:s:/keys/b\n",
				"etc/SigningTable":  "* %\n",
			},
			want: []string{"a.example s /keys/a *", "b.example s /keys/b *"},
		},
		{
			name:  "one domain",
			files: map[string]string{"etc/opendkim.conf": "Domain a.example, b.example\nSelector mail\nKeyFile /keys/mail\n"},
			want:  []string{"a.example mail /keys/mail *", "b.example mail /keys/mail *"},
		},
		{
			name: "what is wrong",
			files: map[string]string{
				"etc/opendkim.conf": "Include /etc/more.conf\nSigningTable refile:/etc/SigningTable",
				"etc/more.conf":     "KeyTable /etc/KeyTable",
				"etc/KeyTable":      "a a.example:s:/keys/a\na other.example:s:/keys/b\nb b.example:/keys/b\nc com:s:/keys/c\nd a.example:s:/keys/d\ne a.example:s:/keys/a\nf f.example:se_l:/k\n",
				"etc/SigningTable":  "*@a.example\n*@a.example e\n",
			},
			want: []string{
				"a.example s /keys/a *",
				`! /etc/KeyTable:2: key "a" is there twice; the first one counts`,
				"! /etc/KeyTable:3: expected NAME DOMAIN:SELECTOR:KEY",
				`! /etc/KeyTable:4: domain "com" is not valid: it has only one label; give the full name, such as "example.com"`,
				"! /etc/KeyTable:5: selector s of a.example is at /etc/KeyTable:1 with another key",
				`! /etc/KeyTable:7: selector "se_l" is not valid: it has an underscore; give only the part in front of "._domainkey"`,
				"! /etc/SigningTable:1: expected PATTERN KEY",
			},
		},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			root := tree(t, tt.files)
			o := takeover.OpenDKIM{Files: takeover.Files{Root: root}, Domains: tt.domains}
			o.Config = o.Path("/etc/opendkim.conf", "")
			inv, err := o.List()
			check(t, root, inv, err, tt.want)
		})
	}
}

func TestOpenDKIMInline(t *testing.T) {
	root := tree(t, map[string]string{"KeyTable": "a a.example:s:MC4CAQAw\n"})
	inv, err := takeover.OpenDKIM{KeyTable: filepath.Join(root, "KeyTable")}.List()
	if err != nil || len(inv.Keys) != 1 {
		t.Fatal(inv, err)
	}
	data, info, err := inv.Keys[0].Read()
	if string(data) != "MC4CAQAw" || info != nil || err != nil {
		t.Errorf("Read = %q, %v, %v", data, info, err)
	}
	for _, verb := range []string{"%v", "%+v", "%#v", "%s", "%x", "%q"} {
		if out := fmt.Sprintf(verb, inv.Keys[0]); strings.Contains(out, "MC4") || strings.Contains(out, "4d4334") {
			t.Errorf("%s shows the key: %s", verb, out)
		}
	}
}

func TestOpenDKIMFails(t *testing.T) {
	for _, tt := range []struct{ name, config, want string }{
		{"database", "KeyTable dsn:mysql://x", `data sets of the kind "dsn" cannot be read here`},
		{"no table", "KeyTable /missing", "no such file"},
		{"signing table", "KeyTable csl:a=a.example:s:/k\nSigningTable lua:/x", `data sets of the kind "lua"`},
		{"include loop", "Include /etc/opendkim.conf", "include one another too often"},
		{"nothing", "Syslog yes", takeover.ErrNothing.Error()},
	} {
		t.Run(tt.name, func(t *testing.T) {
			root := tree(t, map[string]string{"etc/opendkim.conf": tt.config})
			o := takeover.OpenDKIM{Files: takeover.Files{Root: root}}
			o.Config = o.Path("/etc/opendkim.conf", "")
			if _, err := o.List(); err == nil || !strings.Contains(err.Error(), tt.want) {
				t.Errorf("error %v, want %s", err, tt.want)
			}
		})
	}
	if _, err := (takeover.OpenDKIM{Config: "/nonexistent"}).List(); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("error %v", err)
	}
}

func TestRspamd(t *testing.T) {
	const dir = "var/lib/rspamd/dkim/"
	tests := []struct {
		name  string
		files map[string]string
		want  []string
	}{
		{
			name: "preset path and selector",
			files: map[string]string{
				"c": "allow_username_mismatch = true;\n", dir + "a.example.dkim.key": "", dir + "b.example.2019.key": "", dir + "b.example.dkim.key": "", dir + "notes.txt": "",
			},
			want: []string{
				"a.example dkim /" + dir + "a.example.dkim.key *", "b.example 2019 /" + dir + "b.example.2019.key", "b.example dkim /" + dir + "b.example.dkim.key *",
			},
		},
		{
			name: "maps",
			files: map[string]string{
				"c":              "path = \"/srv/$domain.$selector.key\"; # all\nselector_map = \"/maps/selectors\";\npath_map = \"file:///maps/paths\"\nselector = 'mail'\n",
				"maps/selectors": "a.example s1\n\"b.example\" \"s2\"\n*.c.example s3\n", "maps/paths": "b.example /other/$domain.key\nd.example /other/d.key\n",
				"srv/a.example.s1.key": "", "srv/a.example.mail.key": "", "srv/e.example.mail.key": "",
			},
			want: []string{
				"a.example s1 /srv/a.example.s1.key *", "b.example s2 /other/b.example.key *", "d.example mail /other/d.key *",
				"a.example mail /srv/a.example.mail.key", "e.example mail /srv/e.example.mail.key *",
				"! /maps/selectors:3: expected one DOMAIN and its value, not a pattern",
			},
		},
		{
			name: "sections",
			files: map[string]string{
				"c": `try_fallback = false;
path = "$DBDIR/keys/$domain.key";
domain {
  a.example {
    selectors [
      { path: "/k/a1"; selector: "s1" },
      { path: "/k/$domain.$selector"; selector: "s2"; }
    ]
  }
  "b.example" { selector = "only"; }
}
domain "c.example" { path = /k/c; selector = c1 }
domain d.example { selector = "d"; path = <<EOD
/k/d
EOD;
}
use_redis = true;
`,
				"var/lib/rspamd/keys/z.example.key": "",
			},
			want: []string{
				"a.example s1 /k/a1 *", "a.example s2 /k/a.example.s2 *", "b.example only /var/lib/rspamd/keys/b.example.key *",
				"c.example c1 /k/c *", "d.example d /k/d *", "z.example dkim /var/lib/rspamd/keys/z.example.key",
				"! /c:17: use_redis: keys that are not in files cannot be read here",
			},
		},
		{
			name:  "JSON",
			files: map[string]string{"c": `{"dkim_signing": {"path": "/x", "domain": {"a.example": {"selector": "s", "path": "/k/a"}}}}`},
			want:  []string{"a.example s /k/a *"},
		},
		{
			name: "tables",
			files: map[string]string{
				"c": "path = \"/x\"; key_table = \"/kt\"; signing_table = \"glob;/st\";", "kt": "one one.example:s:/k/one\ntwo %:t:/k/%\n", "st": "*@one.example one\n*@two.example two\n",
			},
			want: []string{"one.example s /k/one *", "two.example t /k/two.example *"},
		},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			root := tree(t, tt.files)
			inv, err := takeover.Rspamd{Files: takeover.Files{Root: root}, Config: filepath.Join(root, "c")}.List()
			check(t, root, inv, err, tt.want)
		})
	}
}

func TestRspamdFails(t *testing.T) {
	for _, tt := range []struct{ name, config, want string }{
		{"no end", "domain { a {", "line 1: the section has no end"},
		{"quotes", "\npath = \"x", "line 2: the text in quotes has no end"},
		{"deep", strings.Repeat("a {", 100), "too deep"},
		{"deep lists", "a = " + strings.Repeat("[", 100), "too deep"},
		{"name", "= x", "a name is expected"},
		{"map from elsewhere", `selector_map = "http://maps.example/selectors"`, "maps that are not files"},
		{"missing map", `selector_map = "/missing"`, "no such file"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			root := tree(t, map[string]string{"c": tt.config})
			if _, err := (takeover.Rspamd{Files: takeover.Files{Root: root}, Config: filepath.Join(root, "c")}).List(); err == nil || !strings.Contains(err.Error(), tt.want) {
				t.Errorf("error %v, want %s", err, tt.want)
			}
		})
	}
}

func TestDirectory(t *testing.T) {
	root := tree(t, map[string]string{
		"a.example.s1.key": "", "a.example.s2.key": "", "xn--bcher-kva.example.mail.key": "", "bad_name.example.s.key": "", "README": "",
		"by/c.example/mail.private": "", "by/c.example/mail.txt": "", "by/d.example/deep/mail.private": "",
	})
	if err := os.Symlink(filepath.Join(root, "a.example.s1.key"), filepath.Join(root, "l.example.s.key")); err != nil {
		t.Fatal(err)
	}
	inv, err := takeover.Directory(root, "")
	check(t, root, inv, err, []string{
		"a.example s1 /a.example.s1.key", "a.example s2 /a.example.s2.key", "l.example s /l.example.s.key",
		"xn--bcher-kva.example mail /xn--bcher-kva.example.mail.key",
		`! /bad_name.example.s.key: domain "bad_name.example" is not valid: it has an underscore; give the name of the domain itself, not of a record below it`,
	})
	inv, err = takeover.Directory(filepath.Join(root, "by"), "{domain}/{selector}.private")
	check(t, root, inv, err, []string{"c.example mail /by/c.example/mail.private"})
	if _, err := takeover.Directory(root, "{domain}.nothing.{selector}"); !errors.Is(err, takeover.ErrNothing) {
		t.Errorf("error %v, want ErrNothing", err)
	}
	for _, pattern := range []string{"{domain}", "{selector}", "x", "{domain}{domain}{selector}", "{domain}/a/b/{selector}"} {
		if _, err := takeover.Directory(root, pattern); err == nil || errors.Is(err, takeover.ErrNothing) {
			t.Errorf("pattern %s: error %v", pattern, err)
		}
	}
	if _, err := takeover.Directory(filepath.Join(root, "missing"), ""); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("error %v", err)
	}
}

func TestRead(t *testing.T) {
	root := tree(t, map[string]string{"a.example.s.key": "text", "b.example.s.key": strings.Repeat("x", 70_000)})
	inv, err := takeover.Directory(root, "")
	if err != nil {
		t.Fatal(err)
	}
	if data, info, err := inv.Keys[0].Read(); string(data) != "text" || info == nil || info.Mode().Perm() != 0o600 || err != nil {
		t.Errorf("Read = %q, %v, %v", data, info, err)
	}
	if data, _, err := inv.Keys[1].Read(); data != nil || err == nil || !strings.Contains(err.Error(), "larger than 64 KiB") {
		t.Errorf("Read = %d octets, %v", len(data), err)
	}
}
