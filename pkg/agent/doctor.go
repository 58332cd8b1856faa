package agent

import (
	"context"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"
	"sync"
	"time"

	healthv1 "google.golang.org/grpc/health/grpc_health_v1"

	adminv1 "github.com/fanout-io/fanout/proto/fanout/admin/v1"

	"github.com/fanout-io/fanout/pkg/catalog"
)

// States of a check.
const (
	checkOK   = "ok"
	checkWarn = "warn"
	checkFail = "fail"
)

const (
	// doctorTimeout bounds one question that a check asks of another agent.
	doctorTimeout = 5 * time.Second
	// rightsTimeout bounds the trying of the registry's rights, and memberTimeout all that another member does: well within what fanoutctl takes for silence.
	rightsTimeout = 12 * time.Second
	memberTimeout = 25 * time.Second
	// certificateWarning is how long before its end a certificate is warned of, unless it lives for a short time only.
	certificateWarning = 14 * 24 * time.Hour
	// leastRoom is the room on the disk below which nothing works for long, in bytes.
	leastRoom = 256 << 20
)

// check is one thing that the doctor looked at.
type check struct {
	name, state, detail, mend string
}

func ok(name, detail string) check         { return check{name, checkOK, detail, ""} }
func warn(name, detail, mend string) check { return check{name, checkWarn, detail, mend} }
func fail(name, detail, mend string) check { return check{name, checkFail, detail, mend} }
func (c check) message() *adminv1.Check {
	return &adminv1.Check{Name: c.name, State: c.state, Detail: c.detail, Mend: c.mend}
}

// vague are causes of which the doctor knows more than the table: what it tried, and which right that needs.
var vague = []string{"rights", "immutable-tag", "registry-lacks", "registry-refuses", "registry-answer", "agent-error"}

// registryFailed is a check of the registry that failed. What a person does about it is what why says of the same error; mend is for what only the check knows.
func (a *Agent) registryFailed(name string, err error, mend string) check {
	if t := a.troubleOf(catalog.Ref{Repository: scratchRepository, Tag: markerTag(a.cfg.Site)}, err); !slices.Contains(vague, t.GetCause()) {
		mend = t.GetMend()
	}
	return fail(name, plainWords(err), mend)
}

// doctor looks at this site. The order of the checks is fixed.
func (a *Agent) doctor(ctx context.Context) []check {
	checks := []check{a.checkConfig(), a.checkSettings(), a.checkMembership(), a.checkQuorum(ctx)}
	checks = append(checks, a.checkPorts(ctx)...)
	checks = append(checks, a.checkClocks(ctx)...)
	checks = append(checks, a.checkCertificates(time.Now())...)
	checks = append(checks, a.checkDisk())
	checks = append(checks, a.checkParents(ctx)...)
	if a.registry != nil {
		checks = append(checks, a.checkRights(ctx)...)
	}
	return checks
}

func (a *Agent) checkConfig() check {
	if keys := a.cfg.NotInForce(); len(keys) > 0 {
		return warn("configuration", "not in force in this version: "+strings.Join(keys, ", "), "remove these keys from the file, or do not rely on them")
	}
	return ok("configuration", "all keys are in force")
}

// checkSettings looks whether the file says what the group agreed on.
func (a *Agent) checkSettings() check {
	const name = "group's settings"
	if a.node.Catalog().Settings() == nil {
		return warn(name, "the group's settings are not known here yet", "wait until the group has a root, then ask again")
	}
	if key := a.otherSettings(); key != "" {
		return fail(name, "this site's file differs from what is in force in the group in "+key, "make the members' files equal in "+key+" and restart")
	}
	return ok(name, "this site's file says what is in force in the group")
}

// checkMembership looks whether this site belongs to its group.
func (a *Agent) checkMembership() check {
	const name = "membership"
	if a.node.Removed() {
		return fail(name, a.removedReason(), fmt.Sprintf("fanoutctl member add %s %s, at a member", a.cfg.Site, a.cfg.Raft.Advertise))
	}
	if why := a.node.Estranged(); why != "" {
		return fail(name, why, "see raft.members in the members' files")
	}
	return ok(name, "a member of "+a.cfg.Group)
}

// checkQuorum says what the group can't survive, and what it has lost already.
func (a *Agent) checkQuorum(ctx context.Context) check {
	const name = "quorum"
	voters := map[string]bool{}
	for _, s := range a.node.Servers() {
		if s.Voter {
			voters[s.Site] = true
		}
	}
	n, what := len(voters), "no new record gets here"
	if a.cfg.Headquarters() {
		what = "nothing is published"
	}
	why := a.node.Waiting()
	if a.node.Roster().Root == "" || n == 0 {
		detail := fmt.Sprintf("the group has no root; of its %s with a vote %d must be up", count(n, "member"), n/2+1)
		if why != "" {
			detail += ": " + waitingWords(why)
		}
		if lost := a.node.Replaced(ctx); n > 0 && n-len(lost) < n/2+1 {
			return fail(name, fmt.Sprintf("%s; the disk of %s was lost, and with it the vote: those that are left can never decide", detail, strings.Join(lost, ", ")),
				"found the group anew, see \"A group that lost its majority for good\" in docs/operations.md; registries go on serving meanwhile")
		}
		return fail(name, detail, "start the members that are down, or mend the network between them; registries go on serving meanwhile")
	}
	switch n {
	case 1:
		return warn(name, "one member: while it is down, "+what+"; if its disk is lost, so is the group's catalog", "add two members, of which one may be a witness: fanoutctl member add")
	case 2:
		return warn(name, "two members with a vote: while either is down, "+what, "add a third member, such as a witness: fanoutctl member add")
	}
	var down []string // as the root hears it; another member knows of itself alone
	for _, h := range a.node.Health().Sites {
		if voters[h.GetSite()] && h.GetState() == "unreachable" {
			down = append(down, h.GetSite())
		}
	}
	if len(down) > 0 {
		words := fmt.Sprintf("%s with a vote, of which %s can't be reached now", count(n, "member"), strings.Join(down, ", "))
		if spare := (n-1)/2 - len(down); spare > 0 {
			words += fmt.Sprintf(": %d more may be down", spare)
		} else {
			words += ": while one more is down, " + what
		}
		return warn(name, words, a.absent(down[0]))
	}
	words := fmt.Sprintf("%s with a vote, of which %d may be down", count(n, "member"), (n-1)/2)
	if a.node.Roster().Root != a.cfg.Site {
		words += ", those that are down now included"
	}
	return ok(name, words)
}

// checkClocks compares this site's clock with those of the other members. An answer comes between the question and its arrival, so the difference is known to within a round trip.
func (a *Agent) checkClocks(ctx context.Context) []check {
	var sites []string
	for _, m := range a.node.Catalog().Members() {
		if m.GetSite() != a.cfg.Site {
			sites = append(sites, m.GetSite())
		}
	}
	return together(len(sites), func(i int) check { return a.checkClock(ctx, sites[i]) })
}

// together makes checks at the same time, and gives them in order.
func together(n int, f func(i int) check) []check {
	out := make([]check, n)
	var wg sync.WaitGroup
	for i := range n {
		wg.Go(func() { out[i] = f(i) })
	}
	wg.Wait()
	return out
}

func (a *Agent) checkClock(ctx context.Context, site string) check {
	name := "clock of " + site
	least, most, err := a.clockDifference(ctx, site)
	if err != nil {
		return a.memberAway(name, site, err)
	}
	return judgeClock(name, least, most)
}

// judgeClock judges a clock that differs by least to most.
func judgeClock(name string, least, most time.Duration) check {
	words := fmt.Sprintf("it differs by %s to %s from the clock here", least.Round(time.Millisecond), most.Round(time.Millisecond))
	if least > clockBound || most < -clockBound {
		return fail(name, words+fmt.Sprintf("; at most %s is allowed, for pushes of one tag at two members to be put in order", clockBound), "have the clocks of both machines set by NTP")
	}
	return ok(name, words)
}

// memberAway is a check of a member that could not be asked.
func (a *Agent) memberAway(name, site string, err error) check {
	if detail, mend := refused(err); detail != "" {
		return fail(name, "it can't be asked: "+detail, mend)
	}
	return fail(name, "it can't be asked: "+callWords(err), a.absent(site))
}

// absent is the mend for a member that does not answer.
func (a *Agent) absent(site string) string {
	if a.node.Roster().Root == "" { // nobody can be removed then
		return "start the agent of " + site + ", or mend the network to it; its own log and doctor say why it is away. Only where its disk is lost for good: \"A group that lost its majority for good\" in docs/operations.md"
	}
	return "start the agent of " + site + ", or mend the network to it; its own log and doctor say why it is away. Only for a member that is gone for good: fanoutctl member remove " + site
}

func (a *Agent) clockDifference(ctx context.Context, site string) (least, most time.Duration, err error) {
	ctx, cancel := context.WithTimeout(ctx, doctorTimeout)
	defer cancel()
	client, err := a.reach(ctx, site)
	if err != nil {
		return 0, 0, err
	}
	begin := time.Now()
	v, err := client.Version(passOn(ctx), &adminv1.VersionRequest{})
	if err != nil {
		return 0, 0, err
	}
	end, there := time.Now(), v.GetNow().AsTime()
	if v.GetNow() == nil {
		return 0, 0, errors.New("its agent is of a version that does not tell the time")
	}
	return there.Sub(end), there.Sub(begin), nil
}

// checkCertificates looks at when the certificates end.
func (a *Agent) checkCertificates(now time.Time) []check {
	var out []check
	if t := a.cfg.TLS; a.identity == nil {
		out = append(out, ok("certificate", "no TLS: only loopback addresses are used"))
	} else {
		out = append(out, certificate("certificate", t.Cert, now), certificate("certificate authority", t.CA, now))
	}
	if t := a.cfg.HTTP.TLS; t.Cert != "" {
		out = append(out, certificate("http.tls certificate", t.Cert, now))
	}
	return out
}

// certificate judges the first certificate of a file, or, of several authorities, the one that is good for longest.
func certificate(name, file string, now time.Time) check {
	content, err := os.ReadFile(file)
	if err != nil {
		return fail(name, err.Error(), "put a certificate there")
	}
	var last *x509.Certificate
	for block, rest := pem.Decode(content); block != nil; block, rest = pem.Decode(rest) {
		cert, err := x509.ParseCertificate(block.Bytes)
		if block.Type != "CERTIFICATE" || err != nil {
			continue
		}
		if last == nil || cert.IsCA && last.IsCA && cert.NotAfter.After(last.NotAfter) {
			last = cert
		}
	}
	if last == nil {
		return fail(name, file+" holds no certificate", "put a certificate there")
	}
	return judgeCertificate(name, file, last.NotBefore, last.NotAfter, now)
}

// judgeCertificate judges one that is good from a time until another. What lives for a short time only is renewed late in it.
func judgeCertificate(name, file string, from, until, now time.Time) check {
	left := until.Sub(now)
	mend := "renew " + file + "; it is read again by itself, or on SIGHUP"
	early := min(certificateWarning, until.Sub(from)/4)
	switch {
	case left <= 0:
		return fail(name, "it ended at "+until.UTC().Format(time.RFC3339), mend)
	case left < early:
		return warn(name, "it ends at "+until.UTC().Format(time.RFC3339), mend)
	}
	return ok(name, "good until "+until.UTC().Format(time.RFC3339))
}

// checkDisk looks at the room of dataDir and whether the spool has what it may use.
func (a *Agent) checkDisk() check {
	const name = "disk"
	if err := a.node.DiskTrouble(); err != nil {
		return fail(name, "the raft log can't be written: "+plainWords(err), "make room on the disk of "+a.cfg.DataDir)
	}
	left, known := room(a.cfg.DataDir)
	if !known {
		return warn(name, "how much room "+a.cfg.DataDir+" has can't be found out", "look with df")
	}
	used, limit := a.store.Spool().Usage()
	words := fmt.Sprintf("%s has %s left; the spool uses %s of %s", a.cfg.DataDir, inBytes(left), inBytes(used), inBytes(limit))
	switch {
	case left < leastRoom:
		return fail(name, words, "make room on the disk of "+a.cfg.DataDir)
	case left < limit-used:
		return warn(name, words+", which has no room to grow as far as it may", "make room on the disk of "+a.cfg.DataDir+", or lower limits.spool")
	}
	return ok(name, words)
}

func (a *Agent) answers(ctx context.Context, addr string) error {
	ctx, cancel := context.WithTimeout(ctx, doctorTimeout)
	defer cancel()
	conn, err := a.peers.conn(ctx, addr)
	if err != nil {
		return err
	}
	_, err = healthv1.NewHealthClient(conn).Check(ctx, &healthv1.HealthCheckRequest{})
	return err
}
