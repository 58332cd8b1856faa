package agent

import (
	"context"
	"errors"
	"fmt"
	"hash/fnv"
	"io"
	"slices"
	"strings"
	"sync"
	"time"

	catalogv1 "github.com/fanout-io/fanout/proto/fanout/catalog/v1"
	transferv1 "github.com/fanout-io/fanout/proto/fanout/transfer/v1"

	"github.com/fanout-io/fanout/pkg/catalog"
	"github.com/fanout-io/fanout/pkg/identity"
	"github.com/fanout-io/fanout/pkg/registry"
	"github.com/fanout-io/fanout/pkg/store"
	"github.com/fanout-io/fanout/pkg/transfer"
)

// local lets the transfer server read from the own registry.
type local struct{ c *registry.Client }

func (l local) OpenBlob(ctx context.Context, repo, digest string, off, length int64) (io.ReadCloser, error) {
	rc, err := l.c.OpenBlob(ctx, repo, digest, off, length)
	return rc, localError(err)
}

func (l local) StatBlob(ctx context.Context, repo, digest string) (int64, error) {
	n, err := l.c.StatBlob(ctx, repo, digest)
	return n, localError(err)
}

func localError(err error) error {
	if errors.Is(err, registry.ErrNotFound) || errors.Is(err, registry.ErrUnauthorized) {
		// Harbor answers 401 for a project that does not exist.
		return fmt.Errorf("%w: %w", transfer.ErrNotFound, err)
	}
	return err
}

// closures remembers which digests lie under a root. A root's closure never changes. Bounded: dropped whole when it has grown too large.
type closures struct {
	mu    sync.Mutex
	sets  map[string]map[string]bool
	count int
}

// maxClosureDigests bounds what closures remembers.
const maxClosureDigests = 500_000

func newClosures() *closures { return &closures{sets: map[string]map[string]bool{}} }

func (c *closures) get(root string) map[string]bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.sets[root]
}

func (c *closures) put(root string, set map[string]bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.count+len(set) > maxClosureDigests {
		c.sets, c.count = map[string]map[string]bool{}, 0
	}
	c.sets[root] = set
	c.count += len(set)
}

// manifestAtHand gives a manifest from the cache or the own registry, without asking other agents.
func (a *Agent) manifestAtHand(ctx context.Context, repo, digest string) (store.Manifest, error) {
	m, err := a.store.Manifest(digest)
	if err == nil || !errors.Is(err, store.ErrNotFound) {
		return m, err
	}
	if a.registry == nil {
		return m, fmt.Errorf("manifest %s: %w", digest, transfer.ErrNotFound)
	}
	rm, err := a.registry.Manifest(ctx, repo, digest)
	if err != nil {
		return m, fmt.Errorf("manifest %s: %w", digest, localError(err))
	}
	m = store.Manifest(rm)
	if err := a.keepManifest(m); err != nil {
		return m, err
	}
	if err := a.store.AddBlobs(repo, digest); err != nil && !errors.Is(err, store.ErrNoSpace) {
		return m, err
	}
	return m, nil
}

// keepManifest puts a manifest into the cache. On a full disk it is gone without: whoever asked has it, those below this site too.
func (a *Agent) keepManifest(m store.Manifest) error {
	err := a.store.PutManifests(m)
	if errors.Is(err, store.ErrNoSpace) {
		a.logger.Debug("a manifest was not kept", "digest", m.Digest, "error", err)
		return nil
	}
	return err
}

// closureOf gives all digests under a root, itself too, from what get finds.
func (a *Agent) closureOf(ctx context.Context, root *catalogv1.Descriptor, get registry.GetFunc) (map[string]bool, error) {
	if set := a.closures.get(root.GetDigest()); set != nil {
		return set, nil
	}
	c, err := registry.Collect(ctx, get, root)
	if err != nil {
		return nil, err
	}
	set := make(map[string]bool, len(c.Blobs)+len(c.Manifests))
	for _, m := range c.Manifests {
		set[m.Digest] = true
	}
	for _, b := range c.Blobs {
		set[b.GetDigest()] = true
	}
	a.closures.put(root.GetDigest(), set)
	return set, nil
}

// under says whether a digest lies under a record's target or one of its referrers, as far as it is known here.
func (a *Agent) under(ctx context.Context, rec *catalogv1.Record, digest string) bool {
	get := func(ctx context.Context, d string) (registry.Manifest, error) {
		m, err := a.manifestAtHand(ctx, rec.GetRepository(), d)
		return registry.Manifest(m), err
	}
	for _, root := range roots(rec) {
		if root.GetDigest() == digest {
			return true
		}
		if set, err := a.closureOf(ctx, root, get); err == nil && set[digest] {
			return true
		}
	}
	return false
}

// closureSize is the sum of all that lies under a record's target, in bytes; 0 where the manifests are not in the cache.
func (a *Agent) closureSize(rec *catalogv1.Record) int64 {
	c, err := registry.Collect(context.Background(), func(_ context.Context, digest string) (registry.Manifest, error) {
		m, err := a.store.Manifest(digest)
		return registry.Manifest(m), err
	}, rec.GetTarget())
	if err != nil {
		return 0
	}
	return closureBytes(c)
}

func closureBytes(c registry.Closure) (size int64) {
	for _, m := range c.Manifests {
		size += int64(len(m.Content))
	}
	for _, b := range c.Blobs {
		size += b.GetSize()
	}
	return size
}

// roots are all content of a record, whoever is to show it: of one as some group shows it, its target and referrers. What a tombstone showed is among them.
func roots(rec *catalogv1.Record) []*catalogv1.Descriptor {
	out := append([]*catalogv1.Descriptor{rec.GetTarget()}, rec.GetReferrers()...)
	for _, r := range rec.GetReleases() {
		if r.GetTarget() != nil {
			out = append(append(out, r.GetTarget()), r.GetReferrers()...)
		}
	}
	return out
}

// catchUpTime is how long a question for content waits for the record that it names.
const catchUpTime = 3 * time.Second

// sources of a blob, best first. Only the carrier asks outside of the group, so a blob crosses the link once.
func (a *Agent) sources(ctx context.Context, req transfer.Request) ([]transfer.Source, error) {
	roster := a.node.Roster()
	origin := ""
	if rec, ok := a.node.Catalog().Get(catalog.Ref{Repository: req.Repository, Tag: req.Tag}); ok {
		origin = rec.GetOrigin()
	}
	var fellows, upstream []transfer.Source
	for _, s := range a.fellows() {
		s.ReadThrough = s.Site == roster.Carrier && !a.cfg.Headquarters()
		if s.Site == origin || s.ReadThrough {
			fellows = append([]transfer.Source{s}, fellows...)
		} else {
			fellows = append(fellows, s)
		}
	}
	if !roster.IsCarrier || a.cfg.Headquarters() {
		if a.cfg.Headquarters() {
			fellows = rootLast(fellows, roster.Root)
		}
		if len(fellows) == 0 {
			return nil, fmt.Errorf("group %s: %w", a.cfg.Group, errNoFellow)
		}
		return fellows, nil
	}
	h := fnv.New32a()
	_, _ = io.WriteString(h, req.Digest)
	for i := range roster.Parents {
		p := roster.Parents[(i+int(h.Sum32()%uint32(len(roster.Parents))))%len(roster.Parents)]
		s := transfer.Source{Site: p.Site, Addr: p.Addr, Upstream: true, ReadThrough: true}
		if p.Site == origin {
			upstream = append([]transfer.Source{s}, upstream...)
		} else {
			upstream = append(upstream, s)
		}
	}
	whole := a.havingWhole(ctx, req, fellows)
	if len(whole)+len(upstream) == 0 {
		return nil, fmt.Errorf("group %s: %w", a.cfg.Group, errNoParent)
	}
	return append(whole, upstream...), nil
}

// rootLast has headquarters' root asked after the others, also for what it must get from below: it alone has tunnels.
func rootLast(fellows []transfer.Source, root string) []transfer.Source {
	i := slices.IndexFunc(fellows, func(s transfer.Source) bool { return s.Site == root })
	if i < 0 {
		return fellows
	}
	s := fellows[i]
	s.ReadThrough = true
	return append(slices.Delete(fellows, i, i+1), s)
}

// havingWhole keeps those sources that could serve a blob at once.
func (a *Agent) havingWhole(ctx context.Context, req transfer.Request, sources []transfer.Source) []transfer.Source {
	var whole []transfer.Source
	for _, s := range sources {
		client, err := a.dialTransfer(ctx, s.Addr)
		if err != nil {
			continue
		}
		resp, err := client.FindMissing(ctx, &transferv1.FindMissingRequest{
			Caller: a.caller(), Purpose: purpose(req), Digests: []string{req.Digest},
		})
		if err == nil && len(resp.GetMissing()) == 0 && len(resp.GetArriving()) == 0 {
			whole = append(whole, s)
		}
	}
	return whole
}

func (a *Agent) caller() *transferv1.Caller {
	return &transferv1.Caller{Group: a.cfg.Group, Site: a.cfg.Site}
}

func purpose(req transfer.Request) *transferv1.Purpose {
	return &transferv1.Purpose{Repository: req.Repository, Tag: req.Tag, Revision: req.Revision, Root: req.Root}
}

// readThrough starts (or joins) the fetch of a blob that another agent asked for and this site lacks.
func (a *Agent) readThrough(ctx context.Context, req *transferv1.FetchRequest) (*transfer.Flight, error) {
	mine := a.node.Roster().IsCarrier
	if a.cfg.Headquarters() {
		mine = a.node.IsRoot()
	}
	if req.GetCaller().GetGroup() == a.cfg.Group && !mine {
		return nil, fmt.Errorf("%w: %s is not who asks outside of the group", transfer.ErrNotFound, a.cfg.Site)
	}
	p := req.GetPurpose()
	return a.fetcher.Fetch(ctx, transfer.Request{
		Repository: p.GetRepository(), Tag: p.GetTag(), Revision: p.GetRevision(), Root: p.GetRoot(), Digest: req.GetDigest(), Size: req.GetSize(),
	})
}

// authorizePeer checks that the TLS peer may speak for a group and a site.
func (a *Agent) authorizePeer(ctx context.Context, group, site string) error {
	if a.identity == nil {
		return nil
	}
	id, ok := identity.PeerID(ctx)
	if !ok {
		return fmt.Errorf("%w: no identity", transfer.ErrDenied)
	}
	if id.Group != group || id.Site != site {
		return fmt.Errorf("%w: %s claims to be site %q of group %q", transfer.ErrDenied, id, site, group)
	}
	return nil
}

// authorize lets a site read what is under a record that its group may see, and nothing else. It is transfer.ServerConfig's Authorize.
func (a *Agent) authorize(ctx context.Context, c *transferv1.Caller, p *transferv1.Purpose, far bool, digests ...string) error {
	if err := a.authorizePeer(ctx, c.GetGroup(), c.GetSite()); err != nil {
		return err
	}
	if strings.HasPrefix(a.cfg.Group, c.GetGroup()+"/") {
		return a.authorizeAbove(ctx, p, digests...)
	}
	fellow := c.GetGroup() == a.cfg.Group
	if !fellow && !strings.HasPrefix(c.GetGroup(), a.cfg.Group+"/") {
		return fmt.Errorf("%w: group %q is not below %q", transfer.ErrDenied, c.GetGroup(), a.cfg.Group)
	}
	ref := catalog.Ref{Repository: p.GetRepository(), Tag: p.GetTag()}
	snap, rec := a.caughtUp(ctx, ref, p.GetRevision())
	if rec.GetRevision() < p.GetRevision() {
		return fmt.Errorf("%w: %s has not seen revision %d of %s yet", transfer.ErrUnavailable, a.cfg.Site, p.GetRevision(), ref)
	}
	if !fellow {
		group, ok := snap.Group(c.GetGroup())
		if !ok || !catalog.MatchScope(group.GetDemand(), ref.Repository) {
			return fmt.Errorf("%w: %s is not in the scope of %s", transfer.ErrDenied, ref, c.GetGroup())
		}
	}
	root := rootOf(rec, p.GetRoot())
	if root == nil {
		return fmt.Errorf("%w: %s was never under %s", transfer.ErrDenied, p.GetRoot(), ref)
	}
	set, err := a.closureOf(ctx, root, func(ctx context.Context, d string) (registry.Manifest, error) {
		m, err := a.manifestAtHand(ctx, p.GetRepository(), d)
		if errors.Is(err, transfer.ErrNotFound) && (far || !fellow) {
			m, err = a.manifestBeyond(ctx, c, p, d)
		}
		return registry.Manifest(m), err
	})
	if err != nil {
		return fmt.Errorf("%w: reading what is under %s: %w", transfer.ErrUnavailable, root.GetDigest(), err)
	}
	for _, d := range digests {
		if !set[d] {
			return fmt.Errorf("%w: %s is not under %s of %s", transfer.ErrDenied, d, root.GetDigest(), ref)
		}
	}
	return nil
}

// caughtUp waits a little until this member has seen a revision of a ref: the asker may have heard of it a moment earlier.
func (a *Agent) caughtUp(ctx context.Context, ref catalog.Ref, revision uint64) (*catalog.Snapshot, *catalogv1.Record) {
	ctx, cancel := context.WithTimeout(ctx, catchUpTime)
	defer cancel()
	changed, stop := a.node.Watch()
	defer stop()
	for {
		snap := a.node.Catalog()
		rec, ok := snap.Get(ref)
		if ok && rec.GetRevision() >= revision {
			return snap, rec
		}
		select {
		case <-ctx.Done():
			return snap, rec
		case <-changed:
		}
	}
}

// rootOf finds a root of a record by its digest, former targets included.
func rootOf(rec *catalogv1.Record, digest string) *catalogv1.Descriptor {
	for _, d := range roots(rec) {
		if d.GetDigest() == digest {
			return d
		}
	}
	for _, d := range rec.GetHistory() {
		if d == digest {
			return &catalogv1.Descriptor{Digest: d}
		}
	}
	return nil
}

// serveManifest answers another agent.
func (a *Agent) serveManifest(ctx context.Context, req *transferv1.ManifestsRequest, digest string) (store.Manifest, error) {
	m, err := a.manifestAtHand(ctx, req.GetPurpose().GetRepository(), digest)
	if !errors.Is(err, transfer.ErrNotFound) || req.GetAtHand() {
		return m, err
	}
	return a.manifestBeyond(ctx, req.GetCaller(), req.GetPurpose(), digest)
}

// manifestBeyond gets what is not here for another agent. Who is above gets what is here or below; who is below, and a fellow from whoever asks outside for the group, what others have too:
// a fellow learns of a record at the same moment, and would ask in vain for what is still on its way.
func (a *Agent) manifestBeyond(ctx context.Context, c *transferv1.Caller, p *transferv1.Purpose, digest string) (store.Manifest, error) {
	switch fellow := c.GetGroup() == a.cfg.Group; {
	case strings.HasPrefix(a.cfg.Group, c.GetGroup()+"/"), fellow && a.cfg.Headquarters() && a.node.IsRoot():
		return a.manifestNear(ctx, p, digest)
	case !fellow, a.node.Roster().IsCarrier && !a.cfg.Headquarters():
		return a.manifestFromPeers(ctx, p, digest)
	}
	return store.Manifest{}, fmt.Errorf("manifest %s: %w", digest, transfer.ErrNotFound)
}

// manifestFromPeers asks the same agents as would be asked for a blob. What comes is checked and kept, so that whoever wants it at the same time need not ask for it again.
func (a *Agent) manifestFromPeers(ctx context.Context, p *transferv1.Purpose, digest string) (store.Manifest, error) {
	done, err := a.asking.take(ctx, digest)
	if err != nil {
		return store.Manifest{}, err
	}
	defer done()
	if m, err := a.store.Manifest(digest); err == nil || !errors.Is(err, store.ErrNotFound) {
		return m, err
	}
	sources, err := a.sources(ctx, transfer.Request{Repository: p.GetRepository(), Tag: p.GetTag(), Revision: p.GetRevision(), Root: p.GetRoot(), Digest: digest})
	below := a.below(p.GetRepository())
	if err != nil && len(below) == 0 {
		return store.Manifest{}, err
	}
	return a.askManifests(ctx, append(sources, below...), p, digest, false)
}

func (a *Agent) askManifests(ctx context.Context, sources []transfer.Source, p *transferv1.Purpose, digest string, atHand bool) (store.Manifest, error) {
	all := &transfer.SourcesError{Digest: digest}
	for _, s := range sources {
		m, err := a.askManifest(ctx, s, p, digest, atHand)
		if err == nil {
			return m, nil
		}
		all.Sources, all.Errs = append(all.Sources, s), append(all.Errs, err)
	}
	return store.Manifest{}, fmt.Errorf("manifest: %w", all)
}

func (a *Agent) askManifest(ctx context.Context, s transfer.Source, p *transferv1.Purpose, digest string, atHand bool) (store.Manifest, error) {
	client, err := a.dialTransfer(ctx, s.Addr)
	if err != nil {
		return store.Manifest{}, err
	}
	ctx, cancel := context.WithTimeout(ctx, manifestTimeout)
	defer cancel()
	stream, err := client.Manifests(ctx, &transferv1.ManifestsRequest{Caller: a.caller(), Purpose: p, Digests: []string{digest}, AtHand: atHand})
	if err != nil {
		return store.Manifest{}, transfer.FromStatus(err)
	}
	resp, err := stream.Recv()
	if errors.Is(err, io.EOF) {
		return store.Manifest{}, transfer.ErrNotFound
	}
	if err != nil {
		return store.Manifest{}, transfer.FromStatus(err)
	}
	m := store.Manifest{MediaType: resp.GetManifest().GetMediaType(), Digest: resp.GetManifest().GetDigest(), Content: resp.GetManifest().GetContent()}
	if m.Digest != digest {
		return m, fmt.Errorf("%w: sent manifest %s", transfer.ErrProtocol, m.Digest)
	}
	return m, a.keepManifest(m)
}

// manifests lets the tree send manifests along with records and keep those that come.
type manifests struct{ a *Agent }

// maxAlong bounds the manifests sent along with one record, in bytes.
const maxAlong = 1 << 20

// Closure gives the manifests under a record that are in the cache, within bounds.
func (m manifests) Closure(rec *catalogv1.Record) []*transferv1.Manifest {
	var out []*transferv1.Manifest
	size := 0
	get := func(_ context.Context, digest string) (registry.Manifest, error) {
		sm, err := m.a.store.Manifest(digest)
		return registry.Manifest(sm), err
	}
	for _, root := range roots(rec) {
		_ = registry.Walk(context.Background(), get, root, func(_ *registry.Descriptor, found registry.Manifest, _ registry.Parsed) error {
			if size += len(found.Content); size > maxAlong {
				return errChanged // enough; the rest is asked for
			}
			out = append(out, &transferv1.Manifest{MediaType: found.MediaType, Digest: found.Digest, Content: found.Content})
			return nil
		})
	}
	return out
}

// Put keeps manifests that a parent sent; their digests are checked.
func (m manifests) Put(list []*transferv1.Manifest) error {
	ms := make([]store.Manifest, 0, len(list))
	for _, x := range list {
		ms = append(ms, store.Manifest{MediaType: x.GetMediaType(), Digest: x.GetDigest(), Content: x.GetContent()})
	}
	return m.a.store.PutManifests(ms...)
}
