package agent

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io/fs"
	"slices"
	"strings"
	"syscall"
	"time"

	"github.com/dustin/go-humanize"

	catalogv1 "github.com/fanout-io/fanout/proto/fanout/catalog/v1"
	treev1 "github.com/fanout-io/fanout/proto/fanout/tree/v1"

	"github.com/fanout-io/fanout/internal/wording"
	"github.com/fanout-io/fanout/pkg/catalog"
	"github.com/fanout-io/fanout/pkg/reconcile"
	"github.com/fanout-io/fanout/pkg/registry"
	"github.com/fanout-io/fanout/pkg/store"
	"github.com/fanout-io/fanout/pkg/transfer"
	"github.com/fanout-io/fanout/pkg/tree"
)

// Causes of waits that are no failure. Those of failures are in the table below; together they are all that Trouble.cause can be.
const (
	causeWave      = "held-by-wave"
	causePromotion = "held-for-promotion"
	causeFrozen    = "frozen"
	causeRollout   = "under-rollout"
	causeDeletion  = "deletion-waits"
	causeDrift     = "drift"
	causeAccepted  = "difference-accepted"
	causeTogether  = "moves-together"
	causeShared    = "shared-storage"

	// These are found by who asks, not by the site.
	causeRecord       = "record-not-received"
	causeUnreachable  = "unreachable"
	causeUnheard      = "not-heard-of"
	causeUnsubscribed = "unsubscribed"
	causeNotKept      = "newer-tags-kept"
	causeWitness      = "witness"
	causeForeign      = "foreign-epoch"
	causeNoRoot       = "no-root"
)

// errNoParent and errNoFellow say that there is nobody to fetch from.
var (
	errNoParent = errors.New("attached to no parent")
	errNoFellow = errors.New("no other member is reachable")
)

// errSilent says of a look at the registry that it got no answer in time: whether the registry hangs or nothing reaches it is not known then.
var errSilent = errors.New("the registry is silent")

// kind is one reason for which a ref is not delivered. In summary and mend, {project}, {repository}, {ref}, {registry}, {disk}, {site} and {figures} are replaced.
type kind struct {
	word string
	is   func(error) bool
	// summary says what is wrong, after "SITE is not given it: ".
	summary string
	// mend is what a person does; empty: it goes on by itself.
	mend string
}

func of(target error) func(error) bool {
	return func(err error) bool { return errors.Is(err, target) }
}

func answered(least, most int) func(error) bool {
	return func(err error) bool {
		var e *registry.Error
		return errors.As(err, &e) && e.Status >= least && e.Status <= most
	}
}

// among also looks into what each source said: of a list of sources errors.Is tells only what all have in common.
func among(target error) func(error) bool {
	return func(err error) bool {
		var all *transfer.SourcesError
		if errors.As(err, &all) {
			return slices.ContainsFunc(all.Errs, of(target))
		}
		return errors.Is(err, target)
	}
}

func both(x, y func(error) bool) func(error) bool {
	return func(err error) bool { return x(err) && y(err) }
}

func as[E error](err error) bool {
	var e E
	return errors.As(err, &e)
}

// causes are looked through in order: the narrow before the wide. The last one is every error.
var causes = []kind{
	// The registry's answers.
	{"quota", of(registry.ErrQuota), "the quota of project {project} is used up{figures}", "raise the quota of project {project} in {registry}, or delete what is not needed in it"},
	{"immutable-tag", of(registry.ErrImmutable), "the registry has a rule that makes {ref} immutable", "change the rule of {repository} in {registry} that makes the tag immutable, or publish under another tag"},
	{"read-only", of(registry.ErrReadOnly), "the registry is in read-only mode", "end the read-only mode of {registry}"},
	{"proxy-cache", of(registry.ErrProxyCache), "project {project} is a proxy cache, into which nothing can be pushed", "make {project} an ordinary project in {registry}, or leave {repository} out with subscribe.exclude"},
	{"missing-project", of(registry.ErrNoProject), "project {project} does not exist in the registry, and the agent's account may not make it", "make project {project} in {registry}, or give the robot account the right to make projects: docs/harbor.md"},
	{"blob-unknown", of(registry.ErrBlobUnknown), "the registry says that it lacks content that was put into it", "it is sent again by itself; if this goes on, look whether {registry} collects garbage while it is written to"},
	{"credentials", of(registry.ErrUnauthorized), "the registry does not accept the agent's credentials", "set registry.username and registry.passwordFile of {site} to an account of {registry}; the password file is read again by itself"},
	{"rate-limited", of(registry.ErrTooMany), "the registry limits the rate of requests", "it is tried again when the registry allows it; if this goes on, raise the limit of requests in {registry}"},
	{"too-large", of(registry.ErrTooLarge), "the registry, or a proxy before it, refuses the size of the request", "raise the limit for request bodies of {registry} or of the proxy before it; in nginx: client_max_body_size 0"},
	{"rights", of(registry.ErrDenied), "the agent's account lacks a right in the registry, or a rule there forbids it", "give the account of registry.username the rights to push and pull in {repository}; fanoutctl doctor tries which it has"},
	{"registry-digest", of(registry.ErrDigest), "the registry received other bytes than were sent", "look for a proxy between {site} and {registry} that changes content, and at the disk of {registry}"},
	{"registry-disk", as[*roomError], "the disk of the registry is full", "make room on the disk of {disk}"},
	{"registry-certificate", as[*tls.CertificateVerificationError], "the certificate of the registry is not trusted", "give {registry} a certificate for its name, or name its authority in registry.caFile of {site}"},
	{"registry-hangs", of(registry.ErrHangs), "the registry takes requests and does not answer them", "look at {registry}, its storage and its database: it hangs"},
	{"registry-silent", of(errSilent), "the registry does not answer in time", "look at {registry}, its storage and its database, and at the network between it and {site}: it hangs, or nothing reaches it"},
	{"registry-error", both(of(registry.ErrUnavailable), answered(400, 999)), "the registry has trouble of its own", "look at the log of {registry}, at its storage and at what is before it"},
	{"registry-unreachable", both(of(registry.ErrUnavailable), as[*registry.Error]), "the registry does not answer", "start {registry}, or mend the network between it and {site}"},
	{"registry-deletes-not", of(registry.ErrUnsupported), "the registry does not do what is asked of it", "switch deletion on in {registry}, or do by hand what it refuses"},
	{"registry-lacks", both(of(registry.ErrNotFound), as[*registry.Error]), "the registry lacks what it was thought to have", "it is looked through anew by itself; if this goes on: fanoutctl verify {site} --repair"},
	{"registry-refuses", answered(400, 999), "the registry refuses the request", "look at the log of {registry}: it does not take what headquarters' registry took"},
	{"registry-answer", as[*registry.Error], "the registry's answer makes no sense", "see whether registry.url of {site} names a registry, and what is before it"},

	// This site's own disk.
	{"blob-larger-than-spool", of(store.ErrTooLarge), "a blob is larger than the spool", "raise limits.spool of {site} above the size of the blob"},
	{"disk-full", func(err error) bool { return errors.Is(err, store.ErrNoSpace) || errors.Is(err, syscall.ENOSPC) }, "the spool or its disk is full", "make room on the disk of {disk}, or raise limits.spool of {site}"},
	{"disk-error", func(err error) bool { return as[*fs.PathError](err) || errors.Is(err, store.ErrDamaged) }, "the disk of the agent gives errors", "look at the disk of {disk}"},

	// Nobody gives the content.
	{"no-parent", among(errNoParent), "the group is attached to no parent, and nobody in it has the content", "mend the network to the group above, or start its agents; the path says who does not answer"},
	{"no-fellow", among(errNoFellow), "no other member of the group that could have the content is reachable", "start the other agents of the group, or mend the network between them"},
	{"content-altered", func(err error) bool {
		return errors.Is(err, transfer.ErrBadSource) || errors.Is(err, transfer.ErrCorrupt) || errors.Is(err, store.ErrDigestMismatch)
	}, "what the sources send has other bytes than its digest says", "fanoutctl verify --deep at the sources: their content is damaged, or the link alters it"},
	{"content-nowhere", of(transfer.ErrNotFound), "no site that can be asked has the content", "start the site that has it, or push the image again at headquarters"},
	{"not-in-scope", of(transfer.ErrDenied), "the group above does not give it to this group", "see subscribe in the files of this group and of those above it, and whether the certificates are for this group and site"},
	{"sources-unreachable", func(err error) bool {
		return errors.Is(err, transfer.ErrUnavailable) || errors.Is(err, transfer.ErrStalled) || errors.Is(err, transfer.ErrTruncated) || errors.Is(err, transfer.ErrProtocol)
	}, "no source can give the content now", "the path says where the content is; mend the network to it, or start its agents"},
	{"content-invalid", func(err error) bool {
		return errors.Is(err, registry.ErrInvalid) || errors.Is(err, reconcile.ErrMalformed) || errors.Is(err, transfer.ErrSize) || errors.Is(err, transfer.ErrInvalid) || errors.Is(err, store.ErrSizeMismatch)
	}, "the image itself makes no sense", "push the image again at headquarters: its manifests contradict each other or its blobs"},

	// Publishing, and the rest.
	{causeNoRoot, func(err error) bool {
		return errors.Is(err, tree.ErrNoRoot) || errors.Is(err, tree.ErrNotRoot) || errors.Is(err, tree.ErrUnknownOutcome) || errors.Is(err, tree.ErrStopped)
	}, "the group has no root now that could write it down", "start the members of the group that are down: a majority must be up"},
	{"refused-by-catalog", func(err error) bool { return as[*catalog.Refusal](err) }, "the catalog refuses the change", "see the reason; fanoutctl where and fanoutctl conflicts say more"},
	{"timed-out", of(context.DeadlineExceeded), "it took longer than it may", "look at the load of {site} and of {registry}"},
	{"agent-error", func(error) bool { return true }, "the agent met an error of its own", "the reason has all that is known: look at the log of {site}, and report it"},
}

// roomError is a failure of the embedded registry whose disk is full: the registry itself does not say so.
type roomError struct {
	err  error
	left int64
}

func (e *roomError) Error() string {
	return fmt.Sprintf("%v; the disk of the embedded registry has %s left", e.err, inBytes(e.left))
}
func (e *roomError) Unwrap() error { return e.err }

// causeOf finds the cause of an error.
func causeOf(err error) kind {
	for _, c := range causes {
		if c.is(err) {
			return c
		}
	}
	return causes[len(causes)-1]
}

// troubleOf says what an error means for a ref, and what a person does about it.
func (a *Agent) troubleOf(ref catalog.Ref, err error) *treev1.Trouble {
	c := causeOf(err)
	fill := a.placeholders(ref)
	if q, ok := registry.QuotaOf(err); ok && q.Limit != "" {
		fill["{figures}"] = fmt.Sprintf(": %s of %s, and %s more are wanted", q.Used, q.Limit, q.Adding)
	}
	var room *roomError
	if errors.As(err, &room) {
		fill["{disk}"] = fmt.Sprintf("%s, which has %s left", a.cfg.Registry.Data, humanize.IBytes(uint64(max(room.left, 0))))
	}
	t := &treev1.Trouble{Cause: c.word, Summary: replaceAll(c.summary, fill), Mend: replaceAll(c.mend, fill)}
	var e *registry.Error
	if errors.As(err, &e) {
		t.Status, t.Code, t.Message = uint32(e.Status), e.Code, e.Message
		if e.Status == 0 { // it said nothing itself
			t.Message = wording.Plain(e.Message)
		}
	}
	return t
}

func (a *Agent) placeholders(ref catalog.Ref) map[string]string {
	project, _, _ := strings.Cut(ref.Repository, "/")
	return map[string]string{
		"{project}": project, "{repository}": ref.Repository, "{ref}": ref.String(), "{registry}": a.registryAddress(), "{disk}": a.cfg.DataDir, "{site}": a.cfg.Site, "{figures}": "",
	}
}

func replaceAll(s string, fill map[string]string) string {
	for k, v := range fill {
		s = strings.ReplaceAll(s, k, v)
	}
	return s
}

// waitsBecause is a trouble that is no failure.
func waitsBecause(word, summary, mend string) *treev1.Trouble {
	return &treev1.Trouble{Cause: word, Summary: summary, Mend: mend}
}

// drifted is what stays as somebody changed it in the registry here, which shows a digest, or nothing.
func (a *Agent) drifted(ref catalog.Ref, shown string) *treev1.Trouble {
	if a.cfg.Headquarters() && shown == "" {
		return waitsBecause(causeDrift, "it was deleted in that registry of headquarters, and by publish.deletes such deletions do not travel",
			fmt.Sprintf("fanoutctl unpublish %s deletes it everywhere; to have it there again, push it again", ref))
	}
	return waitsBecause(causeDrift, "its registry was changed there, and drift says report", fmt.Sprintf(
		"fanoutctl verify %s --repair puts it back where drift says repair; to keep what is there, push it at headquarters as %s", a.cfg.Site, ref))
}

// heldBy says for which wave or promotion a group waits that shows something else than a record's newest release.
func heldBy(raw *catalogv1.Record) *treev1.Trouble {
	switch newest := raw.GetReleases()[len(raw.GetReleases())-1]; newest.GetRollout() {
	case "":
		return waitsBecause(causePromotion, "nobody has promoted it yet; its content is there", "fanoutctl promote "+catalog.RefOf(raw).String())
	default:
		return waitsBecause(causeWave, "it waits for a wave of rollout "+newest.GetRollout()+"; its content is there", "fanoutctl rollout show "+newest.GetRollout()+" says what the rollout waits for")
	}
}

func underRollout(what string) *treev1.Trouble {
	return waitsBecause(causeRollout, "it was "+what+" while a rollout moves it", "wait for the end of the rollout, or fanoutctl rollout abort")
}

func frozenTrouble(f *catalogv1.Freeze, until time.Time) *treev1.Trouble {
	return waitsBecause(causeFrozen, "its tag is "+frozenWords(f, until), fmt.Sprintf("it goes on by itself then; sooner: fanoutctl thaw %s, at an agent of %s", f.GetGroup(), f.GetGroup()))
}

func acceptedTrouble() *treev1.Trouble {
	return waitsBecause(causeAccepted, "its registry was changed there, and drift says accept", "set drift to repair in the group's files, or push the tag at headquarters")
}

func togetherTrouble() *treev1.Trouble {
	return waitsBecause(causeTogether, "its tag moves together with others of the rollout, which are not ready there", "fanoutctl why for the other refs of the rollout")
}

func sharedTrouble(deliverer string) *treev1.Trouble {
	return waitsBecause(causeShared, deliverer+" delivers to the storage that this site shares with it", "")
}

func witnessTrouble() *treev1.Trouble {
	return waitsBecause(causeWitness, "it is a witness: it has no registry", "")
}

func deletionWaits(ref catalog.Ref) *treev1.Trouble {
	return waitsBecause(causeDeletion, "it vanished from that registry with many others, and its deletion waits for a word", fmt.Sprintf("fanoutctl deletions restore %s, or deletions allow %s", ref, ref))
}
