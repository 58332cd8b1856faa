package catalog

import (
	"bytes"
	"crypto/sha256"
	"encoding/binary"
	"slices"

	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/timestamppb"

	catalogv1 "github.com/fanout-io/fanout/proto/fanout/catalog/v1"
)

// maxHistory is how many earlier digests a record keeps.
const maxHistory = 10

// sumSize is the length of a sum in bytes.
const sumSize = 16

func (m *Machine) found(f *catalogv1.Found) *Refusal {
	switch {
	case m.founded:
		return refuse(ErrFounded, "epoch %s is in force", m.position.Epoch)
	case m.restoring != "":
		return refuse(ErrFounded, "restore %s is under way", m.restoring)
	case m.position.Epoch != "":
		return refuse(ErrNotHeadquarters, "this group follows epoch %s", m.position.Epoch)
	}
	if err := validateEpoch(f.GetEpoch()); err != nil {
		return err
	}
	m.founded, m.accepted, m.demand, m.freezesAbove = true, "", nil, nil
	m.moveTo(&catalogv1.Position{Epoch: f.Epoch, Sum: firstSum(f.Epoch)})
	return nil
}

// atHeadquarters checks what all changes of the catalog have in common.
func (m *Machine) atHeadquarters(ref Ref, revision, expect uint64) (*catalogv1.Record, *Refusal) {
	switch {
	case m.position.Epoch == "":
		return nil, refuse(ErrNoEpoch, "nothing was founded here")
	case !m.founded:
		return nil, refuse(ErrNotHeadquarters, "%s can be changed at headquarters only", quote(ref.String()))
	}
	if err := ref.validate(); err != nil {
		return nil, err
	}
	if err := validatePublishable(ref); err != nil {
		return nil, err
	}
	if revision != m.position.Revision+1 {
		return nil, refuse(ErrStale, "%s: the change is for revision %d, the last one is %d", ref, revision, m.position.Revision)
	}
	held, _ := m.get(ref)
	if held.GetRevision() != expect {
		return held, refuse(ErrConflict, "%s: the record is at revision %d, not %d", ref, held.GetRevision(), expect)
	}
	return held, nil
}

// publish takes over a push. Where delivery is staged, what is pushed is released to headquarters' own group alone; else it becomes the base, and groups that were
// released something else show it, too.
func (m *Machine) publish(p *catalogv1.Publish, actor string) ([]Ref, *Refusal) {
	ref := Ref{p.GetRepository(), p.GetTag()}
	if err := validatePublish(p, actor); err != nil {
		return nil, err
	}
	held, err := m.atHeadquarters(ref, p.Revision, p.Expect)
	if err != nil {
		return nil, err
	}
	settled := m.settled(ref, p)
	if len(p.Settles) > 0 && len(settled) == 0 {
		return nil, refuse(ErrUnchanged, "no such conflict over %s is listed", ref)
	}
	e := m.edit(actor)
	if held != nil && shown(held, p.Group) == p.Target.Digest {
		err = e.addReferrers(e.record(ref), p)
		if len(settled) > 0 && err != nil && err.Kind == ErrUnchanged {
			err = nil
		}
	} else {
		err = e.push(held, p)
	}
	if err != nil {
		return nil, err
	}
	rec := e.records[ref]
	if same := held != nil && shown(held, p.Group) == p.Target.Digest; !same || len(settled) == 0 {
		rec.Origin, rec.Traceparent = p.Origin, p.Traceparent
	}
	if err := tooManyReferrers(ref, rec); err != nil {
		return nil, err
	}
	if len(settled) > 0 {
		e.lost = p.Settles
	}
	moved := e.commit(ref)
	for _, c := range settled {
		m.conflicts.Delete(c)
	}
	return moved, nil
}

// addReferrers adds what refers to a target that is shown already. The digest says what the content is, so what is held of it stands: two sites that describe it
// differently must not take turns. It moves no tag, and a rollout does not mind.
func (e *edit) addReferrers(rec *catalogv1.Record, p *catalogv1.Publish) *Refusal {
	added := false
	add := func(target *catalogv1.Descriptor, held []*catalogv1.Descriptor) []*catalogv1.Descriptor {
		if !sameTarget(target, p.Target) {
			return held
		}
		all := unite(held, p.Referrers)
		added = added || len(all) > len(held)
		return all
	}
	if !rec.Deleted {
		rec.Referrers = add(rec.Target, rec.Referrers)
	}
	for _, rel := range rec.Releases {
		rel.Referrers = add(rel.Target, rel.Referrers)
	}
	if !added {
		return refuse(ErrUnchanged, "%s shows %s with these referrers already", RefOf(rec), p.Target.Digest)
	}
	return nil
}

// push makes another target than before shown.
func (e *edit) push(held *catalogv1.Record, p *catalogv1.Publish) *Refusal {
	ref := Ref{p.Repository, p.Tag}
	if r := e.m.active(held); r != nil {
		return underRollout(ref, r)
	}
	staged := e.m.staged(ref.Repository)
	if staged && p.Group == "" {
		return refuse(ErrInvalid, "%s: delivery is staged, and the change does not say which group is headquarters: upgrade its agents", ref)
	}
	rec := e.record(ref)
	if rec == nil {
		rec = &catalogv1.Record{Repository: ref.Repository, Tag: ref.Tag, Target: proto.CloneOf(p.Target), Deleted: true}
		e.records[ref] = rec
	}
	rec.PushedAt = proto.CloneOf(p.PushedAt)
	if !staged {
		e.settleAll(rec)
		rec.Target, rec.Referrers = proto.CloneOf(p.Target), unite(nil, p.Referrers)
		rec.Releases, rec.Deleted = nil, false
		return nil
	}
	// It takes the place of an earlier push, and lies over what was promoted, which can still be rolled back.
	rec.Releases = slices.DeleteFunc(rec.Releases, func(rel *catalogv1.Release) bool { return rel.Rollout == "" })
	if shown(rec, p.Group) == p.Target.Digest && releaseOf(rec, p.Group) == nil {
		rec.Referrers = unite(rec.Referrers, p.Referrers) // a push of the base
		return nil
	}
	if len(rec.Releases) >= maxReleases {
		return refuse(ErrInvalid, "%s shows %d different things at different groups, which is all that can be kept", ref, len(rec.Releases))
	}
	rec.Releases = append(rec.Releases, &catalogv1.Release{Target: proto.CloneOf(p.Target), Referrers: unite(nil, p.Referrers), Groups: []string{p.Group}, Traceparent: p.Traceparent})
	return nil
}

// unpublish makes a record a tombstone for every group, whatever it shows.
func (m *Machine) unpublish(u *catalogv1.Unpublish, actor string) ([]Ref, *Refusal) {
	ref := Ref{u.GetRepository(), u.GetTag()}
	if err := validateWords(actor, u.GetOrigin(), u.GetTraceparent()); err != nil {
		return nil, err
	}
	held, err := m.atHeadquarters(ref, u.GetRevision(), u.GetExpect())
	if err != nil {
		return nil, err
	}
	if held == nil || Tombstone(held) {
		return nil, refuse(ErrUnchanged, "%s is not published", ref)
	}
	if r := m.active(held); r != nil {
		return nil, underRollout(ref, r)
	}
	if u.Observed {
		if err := m.mayTravel(ref, u.Origin); err != nil {
			return nil, err
		}
	}
	e := m.edit(actor)
	rec := e.record(ref)
	e.settleAll(rec)
	for _, rel := range rec.Releases {
		if rec.Deleted && rel.Target != nil {
			rec.Target, rec.Referrers = rel.Target, rel.Referrers // the last of them: undoing this brings something back that was shown
		}
	}
	rec.Releases, rec.Deleted = nil, true
	rec.Origin, rec.Traceparent, rec.RemovalTraceparent = u.Origin, "", u.Traceparent
	return e.commit(ref), nil
}

// commit sums up rec, which has the next revision, and makes it the record of its ref.
func (m *Machine) commit(rec *catalogv1.Record) {
	rec.Sum = NextSum(m.position.Sum, rec)
	if held, ok := m.get(RefOf(rec)); ok && (Tombstone(rec) || held.Target.GetDigest() != rec.Target.GetDigest()) {
		m.forgetDeletions(RefOf(rec), "") // what vanished was another's, or has travelled
	}
	m.put(rec)
	m.moveTo(&catalogv1.Position{Epoch: m.position.Epoch, Revision: rec.Revision, Sum: rec.Sum, Scope: m.position.Scope})
}

// nextHistory returns the history of rec, which follows held: newest first, each digest once, without those that rec itself knows otherwise. What lost against rec, by a person's word, is in it
// although no record showed it.
func nextHistory(held, rec *catalogv1.Record, lost []string) []string {
	var all, out []string
	all = append(all, lost...)
	if held != nil {
		for _, d := range known(held) {
			if !slices.Contains(all, d) {
				all = append(all, d)
			}
		}
	}
	for _, d := range all {
		if len(out) < maxHistory && d != rec.Target.GetDigest() && !slices.ContainsFunc(rec.Releases, func(r *catalogv1.Release) bool { return r.Target.GetDigest() == d }) {
			out = append(out, d)
		}
	}
	return out
}

// unite returns the union of two lists by digest, sorted; where both have a digest the held descriptor stays.
func unite(held, more []*catalogv1.Descriptor) []*catalogv1.Descriptor {
	out := slices.Clone(held)
	for _, d := range more {
		out = append(out, proto.CloneOf(d))
	}
	slices.SortStableFunc(out, compareDescriptors) // stable: held ones stay before their equals
	return slices.CompactFunc(out, func(a, b *catalogv1.Descriptor) bool { return a.Digest == b.Digest })
}

// firstSum is the sum at revision zero of an epoch.
func firstSum(epoch string) []byte {
	e := encoder{}
	e.text("fanout catalog epoch")
	e.text(epoch)
	sum := sha256.Sum256(e.Bytes())
	return sum[:sumSize]
}

// NextSum returns the sum after the change that made rec, given the sum before it: the first 16 bytes of the SHA-256 of
//
//	text(previous) number(revision) text(repository) text(tag) number(deleted: 0, 1)
//	descriptor(target) number(count of referrers) descriptor(referrer)… number(count of history) text(digest)…
//	time(published_at) text(published_by) text(origin) time(pushed_at) text(traceparent)
//
// and, where the record has releases or a max_freeze, further
//
//	number(count of releases) (number(target: 0 absent, 1) [descriptor(target)] number(count) descriptor(referrer)… number(count) text(group)… text(rollout))…
//	number(max_freeze: 0 absent, 1) [number(seconds) number(nanoseconds)]
//
// where number is eight bytes, big endian; text is number(length in bytes) and the bytes; descriptor is text(media type) text(digest) number(size)
// text(artifact type); and time is number(0) when absent, else number(1) number(seconds) number(nanoseconds). No two changes have one encoding.
func NextSum(previous []byte, rec *catalogv1.Record) []byte {
	e := encoder{}
	e.text(string(previous))
	e.number(rec.GetRevision())
	e.text(rec.GetRepository())
	e.text(rec.GetTag())
	if rec.GetDeleted() {
		e.number(1)
	} else {
		e.number(0)
	}
	e.descriptor(rec.GetTarget())
	e.number(uint64(len(rec.GetReferrers())))
	for _, d := range rec.GetReferrers() {
		e.descriptor(d)
	}
	e.number(uint64(len(rec.GetHistory())))
	for _, d := range rec.GetHistory() {
		e.text(d)
	}
	e.time(rec.GetPublishedAt())
	e.text(rec.GetPublishedBy())
	e.text(rec.GetOrigin())
	e.time(rec.GetPushedAt())
	e.text(rec.GetTraceparent())
	if len(rec.GetReleases()) > 0 || rec.GetMaxFreeze() != nil {
		e.releases(rec)
	}
	sum := sha256.Sum256(e.Bytes())
	return sum[:sumSize]
}

// encoder writes values so that no two sequences of values have one encoding.
type encoder struct{ bytes.Buffer }

func (e *encoder) number(n uint64) { e.Write(binary.BigEndian.AppendUint64(nil, n)) }

func (e *encoder) text(s string) {
	e.number(uint64(len(s)))
	e.WriteString(s)
}

func (e *encoder) releases(rec *catalogv1.Record) {
	e.number(uint64(len(rec.GetReleases())))
	for _, r := range rec.GetReleases() {
		if r.GetTarget() == nil {
			e.number(0)
		} else {
			e.number(1)
			e.descriptor(r.Target)
		}
		e.number(uint64(len(r.GetReferrers())))
		for _, d := range r.GetReferrers() {
			e.descriptor(d)
		}
		e.number(uint64(len(r.GetGroups())))
		for _, g := range r.GetGroups() {
			e.text(g)
		}
		e.text(r.GetRollout())
	}
	if d := rec.GetMaxFreeze(); d == nil {
		e.number(0)
	} else {
		e.number(1)
		e.number(uint64(d.GetSeconds()))
		e.number(uint64(d.GetNanos()))
	}
}

func (e *encoder) descriptor(d *catalogv1.Descriptor) {
	e.text(d.GetMediaType())
	e.text(d.GetDigest())
	e.number(uint64(d.GetSize()))
	e.text(d.GetArtifactType())
}

func (e *encoder) time(t *timestamppb.Timestamp) {
	if t == nil {
		e.number(0)
		return
	}
	e.number(1)
	e.number(uint64(t.GetSeconds()))
	e.number(uint64(t.GetNanos()))
}
