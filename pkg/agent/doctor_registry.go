package agent

import (
	"context"
	"errors"
	"fmt"
	"io"

	"github.com/fanout-io/fanout/pkg/registry"
)

// scratchRepository is where the doctor tries the registry's rights. What it puts is always the same, and its tag is taken away again.
const scratchRepository = "fanout/doctor"

// mayLogIn is the mend where the registry does not let the account in, and does not say more.
const mayLogIn = "set registry.username and registry.passwordFile to an account that may log in, and registry.url to the registry"

// checkRights tries in a repository of its own all that a delivery, a publish and a sweep need of the registry. What depends on something that failed is left out.
func (a *Agent) checkRights(ctx context.Context) []check {
	ctx, cancel := context.WithTimeout(ctx, rightsTimeout)
	defer cancel()
	if err := a.registry.Ping(ctx); err != nil {
		return []check{a.registryFailed("registry", err, mayLogIn)}
	}
	r := &rights{a: a, tag: markerTag(a.cfg.Site), blob: []byte("{}")}
	return append([]check{ok("registry", "it answers and takes the credentials")}, r.run(ctx)...)
}

// rights are tried one after another.
type rights struct {
	a    *Agent
	tag  string
	blob []byte
}

func (r *rights) run(ctx context.Context) []check {
	grant := "let the account push and pull in " + scratchRepository + " as in every repository that is carried"
	if r.a.cfg.Registry.Type == registry.TypeHarbor {
		grant = "give the robot account the rights in docs/harbor.md: push and pull in all projects, and to make projects"
	}
	m := r.manifest()
	steps := []struct {
		name, done string
		try        func() error
		mend       string
		needed     bool // by those that follow
	}{
		{"registry: push a blob", "a blob was uploaded", func() error { return r.push(ctx) }, grant, true},
		{"registry: push a manifest", "a manifest was put, and its tag", func() error {
			return r.a.registry.PutManifest(ctx, scratchRepository, r.tag, m)
		}, grant + "; no rule may make its tags immutable", true},
		{"registry: read", "the manifest and the blob came back as they were put", func() error { return r.read(ctx, m) }, grant, false},
		{"registry: list tags", "the tag is listed", func() error { return r.listTag(ctx) }, grant, false},
		{"registry: list repositories", "repositories are listed", func() error { return r.listRepositories(ctx) },
			"let the account read the catalog: the sweep finds by it what no notification told of", false},
	}
	var out []check
	for _, s := range steps {
		if err := s.try(); err != nil {
			out = append(out, r.a.registryFailed(s.name, err, s.mend))
			if s.needed {
				return out
			}
			continue
		}
		out = append(out, ok(s.name, s.done))
	}
	return append(out, r.deleteTag(ctx, grant))
}

func (r *rights) manifest() registry.Manifest {
	content := fmt.Appendf(nil, `{"schemaVersion":2,"mediaType":%q,"config":{"mediaType":"application/vnd.oci.empty.v1+json","digest":%q,"size":%d},"layers":[],"annotations":{"io.fanout.doctor":%q}}`,
		registry.MediaTypeOCIManifest, registry.DigestOf(r.blob), len(r.blob), r.a.cfg.Site)
	return registry.Manifest{MediaType: registry.MediaTypeOCIManifest, Digest: registry.DigestOf(content), Content: content}
}

func (r *rights) push(ctx context.Context) error {
	if err := r.a.registry.EnsureRepository(ctx, scratchRepository); err != nil {
		return err
	}
	_, err := r.a.registry.PushBlob(ctx, scratchRepository, registry.DigestOf(r.blob), inMemory(r.blob))
	return err
}

func (r *rights) read(ctx context.Context, m registry.Manifest) error {
	if _, err := r.a.registry.Manifest(ctx, scratchRepository, m.Digest); err != nil {
		return err
	}
	digest := registry.DigestOf(r.blob)
	rc, err := r.a.registry.OpenBlob(ctx, scratchRepository, digest, 0, -1)
	if err != nil {
		return err
	}
	defer rc.Close()
	b, err := io.ReadAll(io.LimitReader(rc, int64(len(r.blob))+1))
	if err != nil {
		return err
	}
	if got := registry.DigestOf(b); got != digest {
		return fmt.Errorf("the blob came back as %s, not %s", got, digest)
	}
	return nil
}

func (r *rights) listTag(ctx context.Context) error {
	for tag, err := range r.a.registry.Tags(ctx, scratchRepository) {
		if err != nil {
			return err
		}
		if tag == r.tag {
			return nil
		}
	}
	return fmt.Errorf("the tag %s:%s was put, and is not listed", scratchRepository, r.tag)
}

func (r *rights) listRepositories(ctx context.Context) error {
	for _, err := range r.a.registry.Repositories(ctx) {
		return err // the first will do
	}
	return nil
}

// deleteTag also cleans up.
func (r *rights) deleteTag(ctx context.Context, grant string) check {
	const name = "registry: delete a tag"
	err := r.a.registry.DeleteTag(ctx, scratchRepository, r.tag)
	switch {
	case err == nil:
		return ok(name, "the tag was taken away again")
	case errors.Is(err, registry.ErrUnsupported):
		return warn(name, plainWords(err), "switch deletion on in the registry; until then deletions do not travel to it, and its garbage grows")
	case r.a.cfg.Registry.Type == registry.TypeHarbor:
		grant = "give the robot account the right to delete tags and artifacts, see docs/harbor.md"
	}
	return r.a.registryFailed(name, err, grant+"; until then deletions do not travel to it")
}

// inMemory is a blob for the registry.
type inMemory []byte

// Size implements registry.BlobSource.
func (b inMemory) Size() int64 { return int64(len(b)) }

// Wait implements registry.BlobSource.
func (b inMemory) Wait(_ context.Context, off int64) (int64, error) { return int64(len(b)) - off, nil }

// ReadAt implements registry.BlobSource.
func (b inMemory) ReadAt(p []byte, off int64) (int, error) {
	n := copy(p, b[min(off, int64(len(b))):])
	if n < len(p) {
		return n, io.EOF
	}
	return n, nil
}
