package integration

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"slices"
	"strings"
	"sync"
	"time"

	ggcr "github.com/google/go-containerregistry/pkg/v1"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"

	adminv1 "github.com/fanout-io/fanout/proto/fanout/admin/v1"
)

// stretch is a time through which a registry was seen to show one digest under a ref; empty: no such tag.
type stretch struct {
	digest      string
	first, last time.Time // answers: the first that said so came at first, the last was asked for at last
}

// watcher looks at every registry all along.
type watcher struct {
	sites  map[string]*site
	client *http.Client

	mu       sync.Mutex
	refs     []string
	touched  map[string]time.Time // when something was last done to a ref
	seen     map[string]map[string][]stretch
	whole    map[string]time.Time // "site repository digest" → when it was last walked and found whole; forgotten when a tag of it moves
	failures []error
	looks    int
}

// Refs to which nothing was done for so long are looked at in every coldEvery-th round only.
const (
	coldAfter = 20 * time.Second
	coldEvery = 12
	lookEvery = 200 * time.Millisecond
	// walkAgain is after how long what was found whole is walked again, though no tag moved: a collection may have taken of it what it should not.
	walkAgain = 15 * time.Second
)

func newWatcher(sites map[string]*site) *watcher {
	return &watcher{
		sites: sites, client: &http.Client{Timeout: 5 * time.Second}, touched: map[string]time.Time{}, seen: map[string]map[string][]stretch{}, whole: map[string]time.Time{},
	}
}

// touch makes a ref one to look at.
func (w *watcher) touch(ref string) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if _, ok := w.touched[ref]; !ok {
		w.refs = append(w.refs, ref)
	}
	w.touched[ref] = time.Now()
}

func (w *watcher) fail(err error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.failures = append(w.failures, err)
}

// run looks until ctx ends.
func (w *watcher) run(ctx context.Context) {
	var wg sync.WaitGroup
	for _, s := range w.sites {
		wg.Go(func() {
			tick := time.NewTicker(lookEvery)
			defer tick.Stop()
			for round := 0; ctx.Err() == nil; round++ {
				w.round(ctx, s, round)
				select {
				case <-ctx.Done():
				case <-tick.C:
				}
			}
		})
	}
	wg.Wait()
}

func (w *watcher) round(ctx context.Context, s *site, round int) {
	w.mu.Lock()
	refs := make([]string, 0, len(w.refs))
	for i, ref := range w.refs {
		if time.Since(w.touched[ref]) < coldAfter || (i+round)%coldEvery == 0 {
			refs = append(refs, ref)
		}
	}
	w.mu.Unlock()
	for _, ref := range refs {
		if ctx.Err() != nil {
			return
		}
		asked := time.Now()
		digest, err := w.head(ctx, s, ref)
		if err != nil {
			if !errors.Is(err, errAway) {
				w.fail(err)
			}
			continue
		}
		w.note(s.name, ref, digest, asked)
		if digest != "" {
			w.walk(ctx, s, ref, digest)
		}
	}
}

// errAway says that a registry did not answer, or could not.
var errAway = errors.New("the registry is away")

// head asks what a tag shows; empty: nothing.
func (w *watcher) head(ctx context.Context, s *site, ref string) (string, error) {
	repo, tag, _ := strings.Cut(ref, ":")
	resp, err := w.ask(ctx, http.MethodHead, s, repo, "manifests", tag)
	if err != nil {
		return "", err
	}
	defer resp.Body.Close()
	switch resp.StatusCode {
	case http.StatusOK:
		return resp.Header.Get("Docker-Content-Digest"), nil
	case http.StatusNotFound:
		return "", nil
	}
	return "", fmt.Errorf("%w: %s", errAway, resp.Status)
}

func (w *watcher) ask(ctx context.Context, method string, s *site, repo, what, reference string) (*http.Response, error) {
	req, err := http.NewRequestWithContext(ctx, method, "http://"+s.reg+"/v2/"+repo+"/"+what+"/"+reference, nil)
	if err != nil {
		return nil, err
	}
	req.Header.Set("Accept", everyManifest)
	resp, err := w.client.Do(req)
	if err != nil {
		return nil, fmt.Errorf("%w: %w", errAway, err)
	}
	return resp, nil
}

func (w *watcher) note(site, ref, digest string, asked time.Time) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.looks++
	if w.seen[site] == nil {
		w.seen[site] = map[string][]stretch{}
	}
	list := w.seen[site][ref]
	if n := len(list); n > 0 && list[n-1].digest == digest {
		list[n-1].last = asked
		return
	}
	repo, _, _ := strings.Cut(ref, ":")
	delete(w.whole, site+" "+repo+" "+digest)
	if n := len(list); n > 0 {
		delete(w.whole, site+" "+repo+" "+list[n-1].digest)
	}
	w.seen[site][ref] = append(list, stretch{digest, time.Now(), asked})
}

// walk proves that all under a digest is there, once for each site and repository while no tag of it moves, and now and then. What is gone because the tag is gone meanwhile is no failure.
func (w *watcher) walk(ctx context.Context, s *site, ref, digest string) {
	repo, _, _ := strings.Cut(ref, ":")
	key := s.name + " " + repo + " " + digest
	w.mu.Lock()
	last := w.whole[key]
	w.mu.Unlock()
	began := time.Now()
	if began.Sub(last) < walkAgain {
		return
	}
	err := w.under(ctx, s, repo, digest)
	if err == nil {
		w.mu.Lock()
		w.whole[key] = began
		w.mu.Unlock()
		return
	}
	if errors.Is(err, errAway) || ctx.Err() != nil {
		return
	}
	now, herr := w.head(ctx, s, ref)
	if herr != nil || now != digest {
		return
	}
	if again := w.under(ctx, s, repo, digest); again == nil || errors.Is(again, errAway) {
		// It was not there and is now: the tag came first, unless the registry was lost and filled again in between.
		if again == nil {
			w.fail(fmt.Errorf("%s showed %s as %s before all under it was there: %w", s.name, ref, digest, err))
		}
		return
	}
	w.fail(fmt.Errorf("%s shows %s as %s, and lacks what is under it: %w", s.name, ref, digest, err))
}

// forget makes the walks of a site be done again: its registry was lost.
func (w *watcher) forget(site string) {
	w.mu.Lock()
	defer w.mu.Unlock()
	for k := range w.whole {
		if strings.HasPrefix(k, site+" ") {
			delete(w.whole, k)
		}
	}
}

// under asks for everything under a digest: manifests are read, blobs asked for.
func (w *watcher) under(ctx context.Context, s *site, repo, digest string) error {
	resp, err := w.ask(ctx, http.MethodGet, s, repo, "manifests", digest)
	if err != nil {
		return err
	}
	body, err := io.ReadAll(resp.Body)
	_ = resp.Body.Close()
	switch {
	case err != nil, resp.StatusCode >= 500:
		return fmt.Errorf("%w: reading manifest %s: %s: %w", errAway, digest, resp.Status, err)
	case resp.StatusCode != http.StatusOK:
		return fmt.Errorf("manifest %s: %s", digest, resp.Status)
	case digestOf(body) != digest:
		return fmt.Errorf("manifest %s has content %s", digest, digestOf(body))
	}
	var m struct {
		Config            *ggcr.Descriptor
		Layers, Manifests []ggcr.Descriptor
	}
	if err := json.Unmarshal(body, &m); err != nil {
		return err
	}
	for _, d := range m.Manifests {
		if err := w.under(ctx, s, repo, d.Digest.String()); err != nil {
			return err
		}
	}
	if m.Config != nil {
		m.Layers = append(m.Layers, *m.Config)
	}
	for _, d := range m.Layers {
		resp, err := w.ask(ctx, http.MethodHead, s, repo, "blobs", d.Digest.String())
		if err != nil {
			return err
		}
		_ = resp.Body.Close()
		switch {
		case resp.StatusCode >= 500:
			return fmt.Errorf("%w: blob %s: %s", errAway, d.Digest, resp.Status)
		case resp.StatusCode != http.StatusOK:
			return fmt.Errorf("blob %s: %s", d.Digest, resp.Status)
		case resp.ContentLength != d.Size:
			return fmt.Errorf("blob %s has %d bytes, not %d", d.Digest, resp.ContentLength, d.Size)
		}
	}
	return nil
}

// shown gives what a site was last seen to show under a ref.
func (w *watcher) shown(site, ref string) (digest string, known bool) {
	w.mu.Lock()
	defer w.mu.Unlock()
	list := w.seen[site][ref]
	if len(list) == 0 {
		return "", false
	}
	return list[len(list)-1].digest, true
}

// change is a revision of the catalog.
type change struct {
	revision    uint64
	ref, digest string // digest: empty for a tombstone
	origin      string
}

// history is what was seen of the catalog, by revision. A revision that was replaced within moments may not have been seen.
type history struct {
	mu     sync.Mutex
	all    map[uint64]change
	newest map[string]change // by ref
	top    uint64
	bad    []error
}

func newHistory() *history { return &history{all: map[uint64]change{}, newest: map[string]change{}} }

func (h *history) add(c change) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if was, ok := h.all[c.revision]; ok && (was.ref != c.ref || was.digest != c.digest) {
		h.bad = append(h.bad, fmt.Errorf("revision %d is %s %q and %s %q", c.revision, was.ref, was.digest, c.ref, c.digest))
		return
	} else if ok && was.origin != "" {
		return
	}
	h.all[c.revision] = c
	if h.newest[c.ref].revision <= c.revision {
		h.newest[c.ref] = c
	}
	h.top = max(h.top, c.revision)
}

// of gives the known changes of a ref, oldest first.
func (h *history) of(ref string) []change {
	h.mu.Lock()
	defer h.mu.Unlock()
	var list []change
	for _, c := range h.all {
		if c.ref == ref {
			list = append(list, c)
		}
	}
	slices.SortFunc(list, func(x, y change) int { return int(x.revision) - int(y.revision) })
	return list
}

// now gives the newest change of a ref.
func (h *history) now(ref string) (change, bool) {
	h.mu.Lock()
	defer h.mu.Unlock()
	c, ok := h.newest[ref]
	return c, ok
}

// holes are the revisions that were not seen.
func (h *history) holes() (list []uint64) {
	h.mu.Lock()
	defer h.mu.Unlock()
	for r := uint64(1); r <= h.top; r++ {
		if _, ok := h.all[r]; !ok {
			list = append(list, r)
		}
	}
	return list
}

// watchCatalog reads the catalogs of headquarters' members in turn until ctx ends.
func watchCatalog(ctx context.Context, h *history, members []*site) {
	var clients []adminv1.AdminServiceClient
	for _, s := range members {
		conn, err := grpc.NewClient("passthrough:///"+s.fabric, grpc.WithTransportCredentials(insecure.NewCredentials()))
		if err != nil {
			s.t.Error(err)
			return
		}
		defer conn.Close()
		clients = append(clients, adminv1.NewAdminServiceClient(conn))
	}
	tick := time.NewTicker(25 * time.Millisecond)
	defer tick.Stop()
	for i := 0; ctx.Err() == nil; i++ {
		_ = readCatalog(ctx, h, clients[i%len(clients)])
		select {
		case <-ctx.Done():
		case <-tick.C:
		}
	}
}

func readCatalog(ctx context.Context, h *history, client adminv1.AdminServiceClient) error {
	ctx, cancel := context.WithTimeout(ctx, 300*time.Millisecond) // one that is stopped must not hold the others up
	defer cancel()
	stream, err := client.Images(ctx, &adminv1.ImagesRequest{All: true})
	if err != nil {
		return err
	}
	for {
		m, err := stream.Recv()
		if err != nil {
			return err
		}
		c := change{revision: m.GetRevision(), ref: m.GetRef(), digest: m.GetDigest(), origin: m.GetOrigin()}
		if m.GetDeleted() {
			c.digest = ""
		}
		h.add(c)
	}
}
