package registry_test

import (
	"bytes"
	"testing"

	"github.com/fanout-io/fanout/pkg/registry"
	"github.com/fanout-io/fanout/pkg/registry/harbortest"
	"github.com/fanout-io/fanout/pkg/registry/registrytest"
)

func TestQuotaOf(t *testing.T) {
	h, c := harbor(t, harbortest.Config{})
	h.SetProject("team", harbortest.Project{Quota: 1 << 20})
	content := bytes.Repeat([]byte("x"), 3<<20)
	_, err := c.PushBlob(t.Context(), "team/app", registry.DigestOf(content), registrytest.Whole(content))
	wantIs(t, err, registry.ErrQuota, registry.ErrDenied)
	q, ok := registry.QuotaOf(err)
	if want := (registry.QuotaRefusal{Project: "team", Adding: "3.0 MiB", Used: "0 B", Limit: "1.0 MiB"}); !ok || q != want {
		t.Errorf("%+v, %v; want %+v", q, ok, want)
	}
	// A registry that says nothing of figures has a quota all the same.
	h.SetProject("team", harbortest.Project{})
	defer h.AddFault(harbortest.Fault{Match: harbortest.On("PUT", "/blobs/uploads/"), Status: 403, Code: "DENIED", Message: "quota exceeded"})()
	_, err = c.PushBlob(t.Context(), "team/app", registry.DigestOf(content), registrytest.Whole(content))
	if q, ok := registry.QuotaOf(err); !ok || q != (registry.QuotaRefusal{Project: "team"}) {
		t.Errorf("%+v, %v of %v", q, ok, err)
	}
	if _, ok := registry.QuotaOf(registry.ErrQuota); ok {
		t.Error("figures of no answer")
	}
}

func TestNoProject_MayNotBeMade(t *testing.T) {
	_, c := harbor(t, harbortest.Config{Knobs: harbortest.Knobs{NoProjectRight: true}})
	err := c.EnsureRepository(t.Context(), "team/app")
	wantIs(t, err, registry.ErrNoProject, registry.ErrDenied)
	wantNot(t, err, registry.ErrNotFound)
	h, c := harbor(t, harbortest.Config{})
	h.SetProject("team", harbortest.Project{})
	must(t, c.EnsureRepository(t.Context(), "team/app"))
	h.RemoveProject("team")
	h.Turn(func(k *harbortest.Knobs) { k.NoProjectRight = true })
	_, err = c.Resolve(t.Context(), "team/app", "v1")
	wantNot(t, err, registry.ErrUnauthorized)
}
