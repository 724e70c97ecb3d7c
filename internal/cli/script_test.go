package cli_test

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"testing"
	"time"

	"filippo.io/age"
	"github.com/rogpeppe/go-internal/testscript"
	"google.golang.org/grpc/codes"
	"google.golang.org/protobuf/types/known/timestamppb"

	dkimv1 "github.com/dkimzone/dkimzone/api/dkim/v1"
	"github.com/dkimzone/dkimzone/internal/cli"
	"github.com/dkimzone/dkimzone/internal/config"
)

func TestMain(m *testing.M) {
	testscript.Main(m, map[string]func(){"dkimctl": func() {
		ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt)
		context.AfterFunc(ctx, stop)
		program := cli.Program{Version: "v0-test", Stdin: os.Stdin, Stdout: os.Stdout, Stderr: os.Stderr}
		os.Exit(program.Run(ctx, os.Args[1:]))
	}})
}

type fixtureKey struct{}

// TestScripts runs each script of testdata/script against an installation of its
// own. Besides the commands of testscript they have:
//
//	fails STATUS command…      the command must end with this exit status
//	faults METHOD CODE N       the next N calls of a method fail
//	keys N | dry | any         make N more keys; wait until somebody waits for one; make any number
//	dns NS MODE [N]            make a name server answer in another way
//	dns NS asked               wait until the name server is asked again
//	over-tcp NS                fail unless the name server was asked over TCP
//	caught-up NS               fail unless the name server was asked until it was no longer behind
//	large N FILE               write a file of N letters
//	domains N FILE             write a file of N domains
//	later DURATION             let time pass in dkimd
//	customer OWNER REASON      make a customer's CNAME look bad in DNS, or ok
//	signer NAME BRAND DOMAIN   register a signer and let it report the keys of a domain
//	seal                       really seal private keys from now on, with $WORK/old.key
//	meet-challenge             do what the last command's output asks for
//	token-file FILE            write the secret in the last command's JSON to a file
//	without-certificate CONFIG PKI TOKEN  let a configuration use a token file instead of a certificate
//	revoke-listed command…     run dkimctl with the first id in the last command's table
func TestScripts(t *testing.T) {
	testscript.Run(t, testscript.Params{
		Dir: "testdata/script",
		Setup: func(env *testscript.Env) error {
			f, err := newFixture(env.WorkDir)
			if err != nil {
				return err
			}
			env.Defer(f.stop)
			env.Values[fixtureKey{}] = f
			env.Setenv("ADDRESS", f.address)
			if err := backupKeys(env); err != nil {
				return err
			}
			env.Setenv("GORACE", "atexit_sleep_ms=0 "+os.Getenv("GORACE")) // else each dkimctl takes a second to end
			env.Setenv("XDG_CONFIG_HOME", env.WorkDir+"/xdg")
			env.Setenv("NS1", f.nameServers["ns1"].address.String())
			env.Setenv("NS2", f.nameServers["ns2"].address.String())
			return nil
		},
		Cmds: map[string]func(*testscript.TestScript, bool, []string){
			"fails": fails, "faults": setFaults, "keys": limitKeys, "dns": setNameServer, "over-tcp": overTCP, "caught-up": caughtUp,
			"large": large, "domains": domains, "later": later, "customer": customer, "signer": signer, "meet-challenge": meetChallenge, "seal": seal,
			"token-file": tokenFile, "without-certificate": withoutCertificate, "revoke-listed": revokeListed,
		},
		UpdateScripts: os.Getenv("UPDATE_SCRIPTS") != "",
	})
}

// backupKeys makes a key pair of age: its recipient is $RECIPIENT, and its identity
// stands in $WORK/identity.txt.
func backupKeys(env *testscript.Env) error {
	id, err := age.GenerateX25519Identity()
	if err != nil {
		return err
	}
	env.Setenv("RECIPIENT", id.Recipient().String())
	return os.WriteFile(filepath.Join(env.WorkDir, "identity.txt"), []byte(id.String()+"\n"), 0o600)
}

// seal runs the command "seal".
func seal(ts *testscript.TestScript, _ bool, _ []string) {
	ts.Check(fixtureOf(ts).sealer.begin(context.Background()))
}

func fixtureOf(ts *testscript.TestScript) *fixture {
	f, ok := ts.Value(fixtureKey{}).(*fixture)
	if !ok {
		ts.Fatalf("there is no fixture")
	}
	return f
}

func number(ts *testscript.TestScript, text string) int {
	n, err := strconv.Atoi(text)
	ts.Check(err)
	return n
}

func fails(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) < 2 {
		ts.Fatalf("usage: fails STATUS command…")
	}
	err := ts.Exec(args[1], args[2:]...)
	ended, ok := errors.AsType[*exec.ExitError](err)
	if !ok || strconv.Itoa(ended.ExitCode()) != args[0] {
		ts.Fatalf("ended with %v, want exit status %s", err, args[0])
	}
}

func setFaults(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) != 3 {
		ts.Fatalf("usage: faults METHOD CODE N")
	}
	var code codes.Code
	ts.Check(code.UnmarshalJSON([]byte(strconv.Quote(args[1]))))
	fixtureOf(ts).faults.set(args[0], code, number(ts, args[2]))
}

func limitKeys(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) != 1 {
		ts.Fatalf("usage: keys N | dry | any")
	}
	switch keys := fixtureOf(ts).keys; args[0] {
	case "dry":
		keys.awaitDry()
	case "any":
		keys.limit(-1)
	default:
		keys.limit(number(ts, args[0]))
	}
}

func nameServerOf(ts *testscript.TestScript, name string) *nameServer {
	ns := fixtureOf(ts).nameServers[name]
	if ns == nil {
		ts.Fatalf("there is no name server %s", name)
	}
	return ns
}

func setNameServer(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) < 2 {
		ts.Fatalf("usage: dns NS MODE [N]")
	}
	n := 0
	if args[1] == "asked" {
		nameServerOf(ts, args[0]).awaitQuestion()
		return
	}
	if len(args) == 3 {
		n = number(ts, args[2])
	}
	nameServerOf(ts, args[0]).set(args[1], n)
}

func overTCP(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) != 1 {
		ts.Fatalf("usage: over-tcp NS")
	}
	if nameServerOf(ts, args[0]).questionsOverTCP() == 0 {
		ts.Fatalf("%s was not asked over TCP", args[0])
	}
}

func caughtUp(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) != 1 {
		ts.Fatalf("usage: caught-up NS")
	}
	if n := nameServerOf(ts, args[0]).stillBehind(); n > 0 {
		ts.Fatalf("%s would have been behind for %d more answers", args[0], n)
	}
}

func domains(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) != 2 {
		ts.Fatalf("usage: domains N FILE")
	}
	var text []byte
	for i := range number(ts, args[0]) {
		text = fmt.Appendf(text, "d%d.example\n", i)
	}
	ts.Check(os.WriteFile(ts.MkAbs(args[1]), text, 0o600))
}

func later(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) != 1 {
		ts.Fatalf("usage: later DURATION")
	}
	d, err := time.ParseDuration(args[0])
	ts.Check(err)
	fixtureOf(ts).clock.added.Add(int64(d))
}

func customer(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) != 2 {
		ts.Fatalf("usage: customer OWNER REASON")
	}
	fixtureOf(ts).customers.set(args[0], args[1])
}

func signer(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) != 3 {
		ts.Fatalf("usage: signer NAME BRAND DOMAIN")
	}
	ctx, f := context.Background(), fixtureOf(ts)
	name := "signers/" + args[0]
	_, err := f.service.RegisterSigner(ctx, &dkimv1.RegisterSignerRequest{Signer: &dkimv1.SignerRegistration{
		Name: name, Brand: "brands/" + args[1], Description: "the mail server",
	}})
	ts.Check(err)
	d, err := f.service.GetDomain(ctx, &dkimv1.GetDomainRequest{Name: "brands/" + args[1] + "/domains/" + args[2]})
	ts.Check(err)
	use := &dkimv1.DomainUse{Domain: d.GetName()}
	for _, s := range d.GetSelectors() {
		k := &dkimv1.KeyUse{Key: s.GetKey()}
		if s.GetKeyState() == dkimv1.KeyState_KEY_STATE_ACTIVE {
			k.LastUseTime = timestamppb.New(f.clock.now())
		}
		use.Keys = append(use.Keys, k)
	}
	_, err = f.service.ReportUse(ctx, &dkimv1.ReportUseRequest{Signer: name, Domains: []*dkimv1.DomainUse{use}})
	ts.Check(err)
}

var challenge = regexp.MustCompile("`(\\S+)\\. IN TXT \"([^\"]+)\"`")

func meetChallenge(ts *testscript.TestScript, neg bool, args []string) {
	asked := challenge.FindStringSubmatch(ts.ReadFile("stderr"))
	if neg || len(args) > 0 || asked == nil {
		ts.Fatalf("usage: meet-challenge, after a command that asks for it")
	}
	fixtureOf(ts).customers.set(asked[1], asked[2])
}

func large(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) != 2 {
		ts.Fatalf("usage: large N FILE")
	}
	ts.Check(os.WriteFile(ts.MkAbs(args[1]), bytes.Repeat([]byte("a"), number(ts, args[0])), 0o600))
}

func tokenFile(ts *testscript.TestScript, _ bool, args []string) {
	var created struct{ Secret string }
	ts.Check(json.Unmarshal([]byte(ts.ReadFile("stdout")), &created))
	ts.Check(os.WriteFile(ts.MkAbs(args[0]), []byte(created.Secret+"\n"), 0o600))
}

func withoutCertificate(ts *testscript.TestScript, _ bool, args []string) {
	c := config.Client{Address: fixtureOf(ts).address, CAFile: ts.MkAbs(args[1] + "/ca.crt"), TokenFile: ts.MkAbs(args[2])}
	ts.Check(c.Write(ts.MkAbs(args[0])))
}

func revokeListed(ts *testscript.TestScript, _ bool, args []string) {
	lines := strings.Split(ts.ReadFile("stdout"), "\n")
	if len(lines) < 2 {
		ts.Fatalf("nothing is listed")
	}
	id, _, _ := strings.Cut(lines[1], " ")
	ts.Check(ts.Exec("dkimctl", append(args, id, "--yes")...))
}
