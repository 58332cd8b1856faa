package agent

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync"
	"time"

	catalogv1 "github.com/fanout-io/fanout/proto/fanout/catalog/v1"

	"github.com/fanout-io/fanout/pkg/catalog"
	"github.com/fanout-io/fanout/pkg/reconcile"
	"github.com/fanout-io/fanout/pkg/registry"
)

// amendKeys is the prefix under which the store remembers the refs of which something was found lost or damaged.
const amendKeys = "amend/"

// amends are refs whose content the registry was found to have lost, or damaged, until they are delivered again. It survives a restart: what was found once may not be looked at
// again for days. Safe for concurrent use.
type amends struct {
	disk sync.Mutex // what the store remembers changes together with refs

	mu   sync.Mutex
	last uint64
	refs map[string]uint64 // by which note; a later one is another
}

func (m *amends) note(ref string) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.refs == nil {
		m.refs = map[string]uint64{}
	}
	m.last++
	m.refs[ref] = m.last
}

// get tells which note of a ref is open; 0: none.
func (m *amends) get(ref string) uint64 {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.refs[ref]
}

// done takes a note off the list; one that came later stays.
func (m *amends) done(ref string, n uint64) bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	if n == 0 || m.refs[ref] != n {
		return false
	}
	delete(m.refs, ref)
	return true
}

// loadAmends puts what an earlier process found and did not mend into the queue.
func (a *Agent) loadAmends() error {
	open, err := a.store.Values(amendKeys)
	if err != nil {
		return err
	}
	for s := range open {
		repo, tag, ok := strings.Cut(s, ":")
		if !ok {
			continue
		}
		a.amends.note(s)
		a.queue.add(key{repository: repo, tag: tag})
	}
	return nil
}

// noteAmend has a ref delivered again although its tag may be right.
func (a *Agent) noteAmend(ref catalog.Ref) error {
	a.amends.disk.Lock()
	defer a.amends.disk.Unlock()
	if err := a.store.PutValue(amendKeys+ref.String(), []byte(time.Now().UTC().Format(time.RFC3339))); err != nil {
		return err
	}
	a.amends.note(ref.String())
	a.queue.add(key{repository: ref.Repository, tag: ref.Tag})
	return nil
}

// amendDone notes that what a note was about has been seen to.
func (a *Agent) amendDone(ref catalog.Ref, n uint64) error {
	if n == 0 {
		return nil
	}
	a.amends.disk.Lock()
	defer a.amends.disk.Unlock()
	if !a.amends.done(ref.String(), n) {
		return nil
	}
	return a.store.PutValue(amendKeys+ref.String(), nil)
}

// amended changes the verdict on a ref of which the registry lost something: a tag whose manifest is lost is no deletion, and what is missing under a tag that is right is delivered
// again.
func (a *Agent) amended(ctx context.Context, ref catalog.Ref, in reconcile.Input, v reconcile.Verdict) (reconcile.Verdict, error) {
	rec := in.Theirs
	if rec == nil || rec.GetDeleted() || rec.GetRevision() < in.BaseRevision || in.Unkept {
		return v, nil
	}
	marked := a.amends.get(ref.String()) > 0
	switch ours := in.Ours.Digest; {
	case ours == rec.GetTarget().GetDigest() && marked:
		return reconcile.Verdict{Action: reconcile.Deliver, Reason: "something under it was lost"}, nil
	case ours == "" && v.Action != reconcile.Deliver && (marked || v.Action == reconcile.Unpublish || v.Action == reconcile.Report || v.Action == reconcile.Accept):
		listed, err := a.listed(ctx, ref)
		if err != nil || !listed {
			return v, err
		}
		return reconcile.Verdict{Action: reconcile.Deliver, Reason: "the tag is there, and its manifest was lost"}, nil
	}
	return v, nil
}

// listed says whether the registry lists a tag, whatever has become of its manifest.
func (a *Agent) listed(ctx context.Context, ref catalog.Ref) (bool, error) {
	for tag, err := range a.registry.Tags(ctx, ref.Repository) {
		if errors.Is(err, registry.ErrNotFound) {
			return false, nil
		}
		if err != nil {
			return false, fmt.Errorf("looking whether %s was deleted: %w", ref, err)
		}
		if tag == ref.Tag {
			return true, nil
		}
	}
	return false, nil
}

// amend forgets what the registry turned out not to have, or to have with wrong bytes, and has the refs delivered again. The words say, by digest, what can't be mended from here.
func (a *Agent) amend(ctx context.Context, list []defect) (words map[string]string, err error) {
	words = map[string]string{}
	dropped := map[string]bool{}
	for _, d := range list {
		if d.ref == (catalog.Ref{}) {
			continue
		}
		if place := d.ref.Repository + "@" + d.digest; d.digest != "" && (d.kind == kindWrongBytes || d.kind == kindUnreadable) && !dropped[place] {
			dropped[place] = true
			why, err := a.dropDamaged(ctx, d)
			if err != nil {
				return words, err
			}
			if why != "" {
				words[d.digest] = why
			}
		}
		switch d.kind {
		case kindMissingManifest, kindMissingBlob, kindWrongBytes, kindMissingReferrer, kindUnreadable:
			repo := d.ref.Repository
			if err := errors.Join(a.store.RemoveBlob(repo, d.digest), a.store.RemoveBlob(repo+"@referrers", d.digest)); err != nil {
				return words, err
			}
		}
		if err := a.noteAmend(d.ref); err != nil {
			return words, err
		}
	}
	return words, nil
}

// dropDamaged takes content with wrong bytes out of the registry, so that it can be put again; the words say why that can't be done.
func (a *Agent) dropDamaged(ctx context.Context, d defect) (why string, err error) {
	if a.embedded != nil {
		dropped, err := a.embedded.DropDamaged(ctx, d.digest)
		if err != nil || !dropped {
			return "", err
		}
		// It is gone from all repositories.
		repos, err := a.store.BlobRepositories(d.digest)
		if err != nil {
			return "", err
		}
		for _, repo := range repos {
			if err := a.store.RemoveBlob(repo, d.digest); err != nil {
				return "", err
			}
		}
		return "", nil
	}
	hex := strings.TrimPrefix(d.digest, "sha256:")
	mend := fmt.Sprintf("remove the file blobs/sha256/%s/%s/data from the registry's storage, and it is sent again", hex[:2], hex)
	if d.kind == kindUnreadable || d.manifest {
		// Deleting a manifest would take all its tags away. It is put again, which some registries take.
		return "the registry keeps what it has when it is put again; " + mend, nil
	}
	err = a.registry.DeleteBlob(ctx, d.ref.Repository, d.digest)
	switch {
	case ctx.Err() != nil:
		return "", ctx.Err()
	case err != nil:
		return fmt.Sprintf("it can't be replaced from here (%v); %s", err, mend), nil
	}
	return "it was deleted and is pushed again; where the registry keeps the damaged file all the same, " + mend, nil
}

// refsWith finds the live records under which a digest lies.
func (a *Agent) refsWith(ctx context.Context, digest string) []*catalogv1.Record {
	var out []*catalogv1.Record
	snap := a.node.Catalog()
	for rec := range snap.Records() {
		if !catalog.Tombstone(rec) && a.keeping.has(snap, catalog.RefOf(rec)) && a.under(ctx, rec, digest) {
			out = append(out, rec)
		}
	}
	return out
}
