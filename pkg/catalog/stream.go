package catalog

import (
	"bufio"
	"bytes"
	"crypto/sha256"
	"errors"
	"fmt"
	"hash"
	"io"
	"slices"

	"google.golang.org/protobuf/encoding/protowire"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/timestamppb"

	catalogv1 "github.com/fanout-io/fanout/proto/fanout/catalog/v1"
)

const (
	snapshotFormat = 1
	// MaxItem is the largest item of a snapshot in bytes.
	MaxItem = 16 << 20
	// seenPart is how many refs of a resync go into one item.
	seenPart = 1000
)

// WriteTo writes the snapshot as SnapshotItem messages, each preceded by its length as a varint. Equal states give equal bytes.
func (s *Snapshot) WriteTo(w io.Writer) (int64, error) {
	out := &itemWriter{w: bufio.NewWriterSize(w, 64<<10), sum: sha256.New()}
	header := &catalogv1.SnapshotHeader{
		Format: snapshotFormat, Position: s.position, Ancestors: s.ancestors, Settings: s.settings, Resync: s.resync, Founded: s.founded,
		Demand: s.demand, Pruned: s.pruned, Accepted: s.accepted, Replacing: s.replacing, Restoring: s.restoring,
		Policies: s.policies, Freeze: s.freeze, FreezesAbove: s.freezesAbove,
	}
	if !s.clock.IsZero() {
		header.Clock = timestamppb.New(s.clock)
	}
	out.put(&catalogv1.SnapshotItem{Kind: &catalogv1.SnapshotItem_Header{Header: header}})
	for _, m := range s.members {
		out.put(&catalogv1.SnapshotItem{Kind: &catalogv1.SnapshotItem_Member{Member: m}})
	}
	for g := range s.Groups() {
		out.put(&catalogv1.SnapshotItem{Kind: &catalogv1.SnapshotItem_Group{Group: g}})
	}
	seen := &catalogv1.ResyncSeen{}
	flush := func() {
		if len(seen.Refs) > 0 {
			out.put(&catalogv1.SnapshotItem{Kind: &catalogv1.SnapshotItem_ResyncSeen{ResyncSeen: seen}})
			seen.Refs = seen.Refs[:0]
		}
	}
	s.resyncSeen.Scan(func(ref Ref) bool {
		if seen.Refs = append(seen.Refs, ref.String()); len(seen.Refs) == seenPart {
			flush()
		}
		return out.err == nil
	})
	flush()
	for c := range s.AllConflicts() {
		out.put(&catalogv1.SnapshotItem{Kind: &catalogv1.SnapshotItem_Conflict{Conflict: c}})
	}
	for d := range s.AllDeletions() {
		out.put(&catalogv1.SnapshotItem{Kind: &catalogv1.SnapshotItem_Deletion{Deletion: d}})
	}
	s.rollouts.Scan(func(r *catalogv1.Rollout) bool {
		out.put(&catalogv1.SnapshotItem{Kind: &catalogv1.SnapshotItem_Rollout{Rollout: r}})
		return out.err == nil
	})
	for rec := range s.Records() {
		out.put(&catalogv1.SnapshotItem{Kind: &catalogv1.SnapshotItem_Record{Record: s.untraced(rec)}})
		if out.err != nil {
			break
		}
	}
	out.put(&catalogv1.SnapshotItem{Kind: &catalogv1.SnapshotItem_Trailer{
		Trailer: &catalogv1.SnapshotTrailer{Items: out.items, Sha256: out.sum.Sum(nil)},
	}})
	if out.err == nil {
		out.err = out.w.Flush()
	}
	if out.err != nil {
		return out.n, fmt.Errorf("writing a catalog snapshot: %w", out.err)
	}
	return out.n, nil
}

// itemWriter writes delimited items and sums them up.
type itemWriter struct {
	w     *bufio.Writer
	sum   hash.Hash
	buf   []byte
	items uint64
	n     int64
	err   error
}

func (w *itemWriter) put(item *catalogv1.SnapshotItem) {
	if w.err != nil {
		return
	}
	opts := proto.MarshalOptions{Deterministic: true}
	size := opts.Size(item)
	if size > MaxItem {
		w.err = fmt.Errorf("item %d has %d bytes, at most %d can be restored", w.items+1, size, MaxItem)
		return
	}
	w.buf = protowire.AppendVarint(w.buf[:0], uint64(size))
	if w.buf, w.err = opts.MarshalAppend(w.buf, item); w.err != nil {
		return
	}
	w.sum.Write(w.buf)
	w.items++
	n, err := w.w.Write(w.buf)
	w.n += int64(n)
	w.err = err
}

// Restore reads what WriteTo wrote into a new machine. A stream that is cut, altered or followed by more is an error that wraps ErrCorrupt.
func Restore(r io.Reader) (*Machine, error) {
	in := &itemReader{r: bufio.NewReaderSize(r, 64<<10), sum: sha256.New()}
	m := New()
	for {
		before := in.sum.Sum(nil)
		item, err := in.next()
		if err != nil {
			return nil, fmt.Errorf("restoring a catalog snapshot: item %d: %w", in.items+1, err)
		}
		if t := item.GetTrailer(); t != nil {
			if err := m.finish(in, t, before); err != nil {
				return nil, fmt.Errorf("restoring a catalog snapshot: %w", err)
			}
			return m, nil
		}
		in.items++
		if err := m.restore(item, in.items == 1); err != nil {
			return nil, fmt.Errorf("restoring a catalog snapshot: item %d: %w", in.items, err)
		}
	}
}

// itemReader reads delimited items and sums them up.
type itemReader struct {
	r     *bufio.Reader
	sum   hash.Hash
	items uint64
}

func (r *itemReader) next() (*catalogv1.SnapshotItem, error) {
	size, prefix, err := readLength(r.r)
	if err != nil {
		return nil, err
	}
	if size > MaxItem {
		return nil, fmt.Errorf("%w: an item of %d bytes, at most %d", ErrCorrupt, size, MaxItem)
	}
	// The buffer grows with what arrives: a false length alone costs no memory.
	var buf bytes.Buffer
	if _, err := io.CopyN(&buf, r.r, int64(size)); err != nil {
		return nil, cut(err)
	}
	item := &catalogv1.SnapshotItem{}
	if err := proto.Unmarshal(buf.Bytes(), item); err != nil {
		return nil, fmt.Errorf("%w: %v", ErrCorrupt, err)
	}
	r.sum.Write(prefix)
	r.sum.Write(buf.Bytes())
	return item, nil
}

func cut(err error) error {
	if errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) {
		return fmt.Errorf("%w: it ends early: %w", ErrCorrupt, io.ErrUnexpectedEOF)
	}
	return err
}

func readLength(r *bufio.Reader) (size uint64, prefix []byte, err error) {
	for len(prefix) < 5 { // five bytes hold any length up to MaxItem
		b, err := r.ReadByte()
		if err != nil {
			return 0, nil, cut(err)
		}
		prefix = append(prefix, b)
		if b < 0x80 {
			size, n := protowire.ConsumeVarint(prefix)
			if n != len(prefix) {
				break
			}
			return size, prefix, nil
		}
	}
	return 0, nil, fmt.Errorf("%w: not a length: % x", ErrCorrupt, prefix)
}

func corrupt(format string, args ...any) error {
	return fmt.Errorf("%w: "+format, append([]any{ErrCorrupt}, args...)...)
}

// restore takes in one item that is not the trailer.
func (m *Machine) restore(item *catalogv1.SnapshotItem, first bool) error {
	if _, isHeader := item.Kind.(*catalogv1.SnapshotItem_Header); isHeader != first {
		return corrupt("the header comes first, once")
	}
	var refusal *Refusal
	switch k := item.Kind.(type) {
	case *catalogv1.SnapshotItem_Header:
		return m.restoreHeader(k.Header)
	case *catalogv1.SnapshotItem_Record:
		if refusal = validateRecord(k.Record); refusal == nil {
			if _, held := m.records.Get(k.Record); held {
				return corrupt("%s twice", RefOf(k.Record))
			}
			m.put(m.retraced(k.Record))
		}
	case *catalogv1.SnapshotItem_Member:
		refusal = m.setMember(k.Member)
	case *catalogv1.SnapshotItem_Group:
		refusal = m.setGroup(k.Group)
	case *catalogv1.SnapshotItem_Conflict:
		if refusal = validateConflict(k.Conflict); refusal == nil {
			m.conflicts.Set(k.Conflict)
		}
	case *catalogv1.SnapshotItem_Deletion:
		if refusal = validateDeletion(k.Deletion); refusal == nil {
			m.deletions.Set(k.Deletion)
		}
	case *catalogv1.SnapshotItem_Rollout:
		if refusal = validateRollout(k.Rollout); refusal == nil {
			if !m.founded && m.restoring == "" {
				return corrupt("a rollout below headquarters")
			}
			m.rollouts.Set(k.Rollout)
		}
	case *catalogv1.SnapshotItem_ResyncSeen:
		for _, s := range k.ResyncSeen.Refs {
			ref, err := ParseRef(s)
			if err != nil {
				return corrupt("%v", err)
			}
			m.resyncSeen.Set(ref)
		}
	default:
		return corrupt("an item of an unknown kind: was it written by a newer version?")
	}
	if refusal != nil {
		return corrupt("%v", refusal)
	}
	return nil
}

func (m *Machine) restoreHeader(h *catalogv1.SnapshotHeader) error {
	if h.Format != snapshotFormat {
		return corrupt("format %d, this version reads %d: use the version that wrote it, or a newer one", h.Format, snapshotFormat)
	}
	p := h.Position
	if p == nil {
		return corrupt("no position")
	}
	if p.Epoch != "" || h.Founded {
		// A resync that has just begun has an epoch but no sum yet.
		if p.Revision == 0 && len(p.Sum) == 0 && h.Resync != "" {
			if err := validateEpoch(p.Epoch); err != nil {
				return corrupt("%v", err)
			}
		} else if err := validatePosition(p); err != nil {
			return corrupt("%v", err)
		}
	}
	if err := validateAncestors(h.Ancestors); err != nil {
		return corrupt("%v", err)
	}
	if h.Resync != "" && (h.Founded || p.Epoch == "") {
		return corrupt("headquarters, or a catalog without an epoch, in a resync")
	}
	if h.Replacing && (h.Accepted == "" || h.Resync == "") || h.Restoring != "" && (h.Founded || p.Epoch != "") || h.Founded && (h.Accepted != "" || h.Demand != nil) {
		return corrupt("its header contradicts itself")
	}
	if err := ValidateScope(h.Demand); err != nil {
		return corrupt("%v", err)
	}
	if h.Settings != nil {
		if err := m.setSettings(h.Settings); err != nil {
			return corrupt("%v", err)
		}
	}
	if err := validateTime("clock", h.Clock); err != nil {
		return corrupt("%v", err)
	}
	if h.Clock != nil {
		m.clock = h.Clock.AsTime()
	}
	if err := m.restoreDelivery(h); err != nil {
		return err
	}
	m.ancestors, m.founded, m.resync = h.Ancestors, h.Founded, h.Resync
	m.demand, m.pruned, m.accepted, m.replacing, m.restoring = h.Demand, h.Pruned, h.Accepted, h.Replacing, h.Restoring
	m.position = p
	if len(p.Sum) == sumSize {
		m.moveTo(p)
	}
	return nil
}

// restoreDelivery takes over policies and freezes.
func (m *Machine) restoreDelivery(h *catalogv1.SnapshotHeader) error {
	if err := validatePolicies(h.Policies); err != nil {
		return corrupt("%v", err)
	}
	if h.Freeze != nil {
		if err := validateFreeze(h.Freeze); err != nil {
			return corrupt("%v", err)
		}
	}
	if err := validateFreezesAbove(h.FreezesAbove); err != nil {
		return corrupt("%v", err)
	}
	if !slices.IsSortedFunc(h.FreezesAbove, compareFreezes) || h.Founded && len(h.FreezesAbove) > 0 {
		return corrupt("its freezes are out of order")
	}
	m.policies, m.freeze, m.freezesAbove = h.Policies, h.Freeze, h.FreezesAbove
	return nil
}

// checkRollouts checks that each rollout that goes on has its releases.
func (m *Machine) checkRollouts() (err error) {
	m.rollouts.Scan(func(r *catalogv1.Rollout) bool {
		for _, it := range r.Items {
			rec, _ := m.get(itemRef(it))
			if !Ended(r) && !slices.ContainsFunc(rec.GetReleases(), func(rel *catalogv1.Release) bool { return rel.Rollout == r.Id }) {
				err = corrupt("rollout %s goes on, and %s has no release of it", r.Id, itemRef(it))
			}
		}
		return err == nil
	})
	return err
}

// finish checks the whole against the trailer.
func (m *Machine) finish(in *itemReader, t *catalogv1.SnapshotTrailer, sum []byte) error {
	switch {
	case in.items == 0:
		return corrupt("the header comes first, once")
	case t.Items != in.items:
		return corrupt("%d items, the trailer says %d", in.items, t.Items)
	case !bytes.Equal(t.Sha256, sum):
		return corrupt("its bytes are not those that were written")
	case m.resync == "" && m.resyncSeen.Len() > 0:
		return corrupt("refs of a resync without its ID")
	}
	if m.restoring == "" { // else its records may be still to come
		if err := m.checkRollouts(); err != nil {
			return err
		}
	}
	if _, err := in.r.ReadByte(); !errors.Is(err, io.EOF) {
		if err != nil {
			return err
		}
		return corrupt("more after its end")
	}
	return nil
}
