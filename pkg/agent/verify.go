package agent

import (
	"cmp"
	"context"
	"maps"
	"slices"
	"time"

	"golang.org/x/time/rate"

	adminv1 "github.com/fanout-io/fanout/proto/fanout/admin/v1"
	catalogv1 "github.com/fanout-io/fanout/proto/fanout/catalog/v1"

	"github.com/fanout-io/fanout/pkg/catalog"
)

const (
	// verifyRate is how many bytes a second a deep verify reads of the registry.
	verifyRate = 128 << 20
	// progressEvery is how often a verify says how far it is: well within what fanoutctl takes for silence.
	progressEvery = 2 * time.Second
	// repairTries is how often a repair of a ref may fail before it is told that it did. It is tried on all the same.
	repairTries = 2
	// maxUnreadable is how many refs in a row may be unreadable before the registry is taken to be away.
	maxUnreadable = 20
)

// withinAll says whether a repository lies in every one of the scopes.
func withinAll(scopes []*catalogv1.Scope, repo string) bool {
	for _, s := range scopes {
		if !catalog.MatchScope(s, repo) {
			return false
		}
	}
	return true
}

// viewed yields the records of a view of which some group shows something and that lie within the scopes, by ref.
func viewed(snap *catalog.Snapshot, scope *catalogv1.Scope, within []*catalogv1.Scope) func(func(*catalogv1.Record) bool) {
	return func(yield func(*catalogv1.Record) bool) {
		view, repo, in := snap.View(scope), "", false
		for rec := range snap.Records() {
			if r := rec.GetRepository(); r != repo {
				repo, in = r, withinAll(within, r)
			}
			if in && !catalog.Tombstone(rec) && view.Match(rec) && !yield(rec) {
				return
			}
		}
	}
}

// whole is the scope of which nothing is left out. A group's own catalog holds no more than its scope.
func whole() *catalogv1.Scope {
	return &catalogv1.Scope{AnyOf: []*catalogv1.Subscription{{Repositories: []string{"**"}}}}
}

// viewDigest is a view of a group, as far as the group may know it, as one value.
func viewDigest(snap *catalog.Snapshot, group string, scope *catalogv1.Scope, within []*catalogv1.Scope) string {
	var t catalog.Tally
	for rec := range viewed(snap, scope, within) {
		t.AddRecord(catalog.Within(rec, group))
	}
	return t.Digest()
}

// ownView is this site's catalog as one value.
func (a *Agent) ownView(within []*catalogv1.Scope) *adminv1.ViewResponse {
	snap := a.node.Catalog()
	return &adminv1.ViewResponse{
		Site: a.cfg.Site, Group: a.cfg.Group, Epoch: snap.Position().GetEpoch(), Revision: snap.Position().GetRevision(),
		View: viewDigest(snap, a.cfg.Group, whole(), within), Scope: snap.Demand(),
	}
}

// verifying is one verify of this site.
type verifying struct {
	a    *Agent
	req  *adminv1.VerifyRequest
	send func(*adminv1.VerifyResponse) error
	snap *catalog.Snapshot

	check    *checker
	total    uint64
	told     time.Time
	found    map[catalog.Ref]found    // of refs that are not as they should be
	held     map[catalog.Ref][]defect // of what is held for refs that show something else, or nothing
	site     []defect                 // about the site as a whole
	repaired uint64
	words    map[string]string // by digest: why it can't be mended
}

// verify looks at what this site's registry shows of its catalog and tells send of it. The last message has done set.
func (a *Agent) verify(ctx context.Context, req *adminv1.VerifyRequest, send func(*adminv1.VerifyResponse) error) error {
	v := &verifying{a: a, req: req, snap: a.node.Catalog(), found: map[catalog.Ref]found{}, held: map[catalog.Ref][]defect{}}
	v.send = func(m *adminv1.VerifyResponse) error {
		m.Site, m.Group = a.cfg.Site, a.cfg.Group
		return send(m)
	}
	v.check = a.newChecker(req.GetDeep(), rate.NewLimiter(verifyRate, minBurst))
	for range v.shown() {
		v.total++
	}
	if a.registry == nil {
		return v.tell() // its catalog is all that there is to it
	}
	if err := a.registry.Ping(ctx); err != nil {
		if ctx.Err() != nil {
			return ctx.Err()
		}
		v.site = append(v.site, defect{kind: kindUnreadable, reason: "the registry: " + plainWords(err)})
	} else if err := v.look(ctx); err != nil {
		return err
	}
	if req.GetRepair() && v.differs() {
		if err := v.repair(ctx); err != nil {
			return err
		}
	}
	return v.tell()
}

// shown yields the records that concern this site's registry, as they are in the catalog.
func (v *verifying) shown() func(func(*catalogv1.Record) bool) {
	return func(yield func(*catalogv1.Record) bool) {
		kept := v.snap.Newest(v.snap.Keep())
		for rec := range viewed(v.snap, whole(), v.req.GetWithin()) {
			if kept.Has(catalog.RefOf(rec)) && !yield(rec) {
				return
			}
		}
	}
}

func (v *verifying) differs() bool {
	if len(v.held) > 0 {
		return true
	}
	for _, f := range v.found {
		if len(f.diffs) > 0 {
			return true
		}
	}
	return false
}

// look checks every ref.
func (v *verifying) look(ctx context.Context) error {
	unreadable := 0
	for rec := range v.shown() {
		f, err := v.lookAt(ctx, rec)
		if err != nil {
			return err
		}
		if len(f.diffs) == 1 && f.diffs[0].kind == kindUnreadable {
			unreadable++
		} else {
			unreadable = 0
		}
		if len(f.diffs) > 0 || f.held {
			v.found[catalog.RefOf(rec)] = f
		}
		if unreadable == maxUnreadable {
			v.site = append(v.site, defect{kind: kindUnreadable, reason: "given up: the registry answers nothing that it is asked"})
			return nil
		}
		if err := v.progress(false, uint64(v.check.looked.refs.Load()), v.total); err != nil {
			return err
		}
	}
	return v.lookAtHeld(ctx)
}

// lookAtHeld checks what this site holds besides.
func (v *verifying) lookAtHeld(ctx context.Context) error {
	if v.req.GetTagsOnly() {
		return nil
	}
	all, err := v.a.helds(v.snap)
	if err != nil {
		return err
	}
	for _, h := range all {
		if !withinAll(v.req.GetWithin(), h.rec.GetRepository()) {
			continue
		}
		diffs, err := v.check.held(ctx, h)
		if err != nil {
			return err
		}
		if ref := catalog.RefOf(h.rec); len(diffs) > 0 {
			v.held[ref] = append(v.held[ref], diffs...)
		}
	}
	return nil
}

// lookAt checks one ref: the tag as this site's group is to show it, and what is to be here ahead. A tag that is held as it is, by a freeze for one, is no difference; one that was changed here and stays so
// by the settings is one that is accepted.
func (v *verifying) lookAt(ctx context.Context, raw *catalogv1.Record) (found, error) {
	rec, f := v.a.shown(raw), found{}
	if rec.GetDeleted() {
		v.check.enter(raw.GetRepository())
		v.check.looked.refs.Add(1)
	} else {
		var err error
		if f, err = v.check.check(ctx, rec, v.req.GetTagsOnly()); err != nil {
			return f, err
		}
		if len(f.diffs) == 1 && (f.diffs[0].kind == kindOtherDigest || f.diffs[0].kind == kindMissingTag) {
			switch p := v.a.progress.get(catalog.RefOf(raw)); {
			case p.GetDigest() != f.shown:
			case p.GetState() == "held":
				f.diffs, f.held = nil, true
			case p.GetState() == "accepted":
				f.diffs[0].accepted = true
				f.diffs[0].reason += "; " + p.GetTrouble().GetSummary()
			}
		}
	}
	if v.req.GetTagsOnly() || len(raw.GetReleases()) == 0 {
		return f, nil
	}
	more, err := v.check.ahead(ctx, raw, rec)
	f.diffs = append(f.diffs, more...)
	return f, err
}

func (v *verifying) progress(repairing bool, n, total uint64) error {
	if time.Since(v.told) < progressEvery {
		return nil
	}
	v.told = time.Now()
	return v.send(&adminv1.VerifyResponse{What: &adminv1.VerifyResponse_Progress{Progress: &adminv1.VerifyProgress{
		Refs: n, RefsTotal: total, Bytes: v.check.looked.bytes.Load(), Repairing: repairing,
	}}})
}

// repair has what is wrong delivered again, waits until that went well or failed some times, and looks again.
func (v *verifying) repair(ctx context.Context) error {
	var all []defect
	refs := map[catalog.Ref]bool{}
	for ref, f := range v.found {
		all, refs[ref] = append(all, f.diffs...), true
	}
	for ref, diffs := range v.held {
		all, refs[ref] = append(all, diffs...), true
	}
	var err error
	if v.words, err = v.a.amend(ctx, all); err != nil {
		return err
	}
	for {
		left := uint64(0)
		for ref := range refs {
			if v.a.amends.get(ref.String()) > 0 && v.a.queue.failures(key{repository: ref.Repository, tag: ref.Tag}) < repairTries {
				left++
			}
		}
		if left == 0 {
			break
		}
		if err := v.progress(true, uint64(len(refs))-left, uint64(len(refs))); err != nil {
			return err
		}
		if !sleep(ctx, watchEvery) {
			return ctx.Err()
		}
	}
	return v.lookAgain(ctx)
}

// lookAgain checks the refs that were not as they should be, against the catalog of now.
func (v *verifying) lookAgain(ctx context.Context) error {
	before, failing := v.found, map[string]string{}
	pending, _ := v.a.progress.snapshot()
	for id, p := range pending {
		failing[id] = p.GetReason()
	}
	was := v.check
	v.check, v.found = v.a.newChecker(was.deep, was.pace), map[catalog.Ref]found{}
	v.snap = v.a.node.Catalog()
	for rec := range v.shown() {
		ref := catalog.RefOf(rec)
		if _, wrong := before[ref]; !wrong {
			continue
		}
		f, err := v.lookAt(ctx, rec)
		if err != nil {
			return err
		}
		if len(f.diffs) == 0 {
			if len(before[ref].diffs) > 0 {
				v.repaired++
			}
			if f.held {
				v.found[ref] = f
			}
			continue
		}
		for i := range f.diffs {
			if why := failing[ref.String()]; why != "" {
				f.diffs[i].reason += "; mending it fails: " + why
			}
			if why := v.words[f.diffs[i].digest]; why != "" {
				f.diffs[i].reason += "; " + why
			}
		}
		v.found[ref] = f
	}
	held := v.held
	v.held = map[catalog.Ref][]defect{}
	if err := v.lookAtHeld(ctx); err != nil {
		return err
	}
	for ref := range held {
		if len(v.held[ref]) == 0 {
			v.repaired++
		}
		for i := range v.held[ref] {
			if why := failing[ref.String()]; why != "" {
				v.held[ref][i].reason += "; mending it fails: " + why
			}
		}
	}
	v.check.looked.again(&was.looked)
	return nil
}

// tell sends what was found, in the order of refs, and sums up.
func (v *verifying) tell() error {
	var view, shown catalog.Tally
	var all differing
	differs := func(d defect) error {
		m := d.message()
		all.add(m)
		return v.send(&adminv1.VerifyResponse{What: &adminv1.VerifyResponse_Difference{Difference: m}})
	}
	for _, d := range v.site {
		if err := differs(d); err != nil {
			return err
		}
	}
	for raw := range v.shown() {
		rec := v.a.shown(raw)
		ref, want, referrers := catalog.RefOf(rec), showsDigest(rec), catalog.ReferrersOf(rec)
		f, other := v.found[ref]
		if want != "" {
			view.Add(ref.Repository, ref.Tag, want, referrers...)
		}
		if !other && want != "" && v.a.registry != nil {
			f = found{shown: want, referrers: referrers}
		}
		if f.shown != "" {
			shown.Add(ref.Repository, ref.Tag, f.shown, f.referrers...)
		}
		if v.req.GetList() && want != "" {
			if err := v.send(&adminv1.VerifyResponse{What: &adminv1.VerifyResponse_Ref{Ref: &adminv1.VerifiedRef{
				Ref: ref.String(), Want: want, Revision: rec.GetRevision(), Shown: f.shown, Referrers: uint32(len(f.referrers)),
			}}}); err != nil {
				return err
			}
		}
		for _, d := range f.diffs {
			if err := differs(d); err != nil {
				return err
			}
		}
	}
	for _, ref := range slices.SortedFunc(maps.Keys(v.held), catalog.Ref.Compare) {
		for _, d := range v.held[ref] {
			if err := differs(d); err != nil {
				return err
			}
		}
	}
	if v.repaired > 0 {
		v.a.events.normal("Repaired", "", count(v.repaired, "ref")+" that the registry did not show as the catalog says")
	}
	d := v.summary("equal")
	d.View, d.Shown = view.Digest(), shown.Digest()
	if v.a.registry == nil {
		d.State, d.Shown = "witness", ""
	}
	all.judge(d)
	return v.send(&adminv1.VerifyResponse{What: &adminv1.VerifyResponse_Done{Done: d}})
}

// differing is what the differences of a site come to.
type differing struct {
	all, accepted uint64
	different     bool
	unknown       string // why it is not known whether it is equal
}

func (o *differing) add(d *adminv1.Difference) {
	o.all++
	switch k := d.GetKind(); {
	case k == kindUnreadable, k == kindCatalogUnknown:
		o.unknown = cmp.Or(o.unknown, d.GetReason())
	case d.GetAccepted():
		o.accepted++
	default:
		o.different = true
	}
}

// judge adds the outcome to a site's last message. What was seen to differ counts before what is not known, and that before what is accepted: each asks for another thing of a person.
func (o *differing) judge(d *adminv1.VerifyDone) {
	d.Differences += o.all
	switch {
	case d.GetState() == "different":
	case o.different:
		d.State, d.Reason = "different", ""
	case d.GetState() == "unknown":
	case o.unknown != "":
		d.State, d.Reason = "unknown", o.unknown
	case o.accepted > 0:
		d.State = "accepted"
	}
}

func (v *verifying) summary(state string) *adminv1.VerifyDone {
	l, pos := &v.check.looked, v.snap.Position()
	return &adminv1.VerifyDone{
		State: state, Epoch: pos.GetEpoch(), Revision: pos.GetRevision(), Refs: uint64(l.refs.Load()), Manifests: uint64(l.manifests.Load()),
		Blobs: uint64(l.blobs.Load()), Bytes: l.bytes.Load(), Repaired: v.repaired,
	}
}
