package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/fanout-io/fanout/pkg/catalog"
	adminv1 "github.com/fanout-io/fanout/proto/fanout/admin/v1"
	catalogv1 "github.com/fanout-io/fanout/proto/fanout/catalog/v1"
)

// keeper is an agent that has a catalog and takes one.
type keeper struct {
	fake
	has     []byte
	cut     int // sends no more than this, when it is not 0
	refusal error

	got []byte // what was restored
}

func (k *keeper) SaveCatalog(_ *adminv1.SaveCatalogRequest, s grpc.ServerStreamingServer[adminv1.SaveCatalogResponse]) error {
	data := k.has
	if k.cut > 0 {
		data = data[:k.cut]
	}
	for len(data) > 0 {
		n := min(len(data), 100)
		if err := s.Send(&adminv1.SaveCatalogResponse{Data: data[:n]}); err != nil {
			return err
		}
		data = data[n:]
	}
	return nil
}

func (k *keeper) RestoreCatalog(s grpc.ClientStreamingServer[adminv1.RestoreCatalogRequest, adminv1.RestoreCatalogResponse]) error {
	if k.refusal != nil {
		return k.refusal
	}
	for {
		r, err := s.Recv()
		if errors.Is(err, io.EOF) {
			return s.SendAndClose(&adminv1.RestoreCatalogResponse{Epoch: "e2", From: "e1", Revision: 2, Records: 2})
		}
		if err != nil {
			return err
		}
		k.got = append(k.got, r.GetData()...)
	}
}

func (k *keeper) AcceptEpoch(_ context.Context, r *adminv1.AcceptEpochRequest) (*adminv1.AcceptEpochResponse, error) {
	if k.refusal != nil {
		return nil, k.refusal
	}
	epoch := r.GetEpoch()
	if epoch == "" {
		epoch = "offered"
	}
	return &adminv1.AcceptEpochResponse{Epoch: epoch, Held: "e1", HeldRevision: 7}, nil
}

// keep serves a keeper.
func keep(t *testing.T, k *keeper) string {
	t.Helper()
	l := listenUnix(t)
	serve(t, k, l, nil)
	return "unix:" + l.Addr().String()
}

// written is a catalog of headquarters, and of a child of it with a demand.
func written(t *testing.T, demand ...string) []byte {
	t.Helper()
	m := catalog.New()
	publish := func(revision uint64, tag string) *catalogv1.Change {
		return &catalogv1.Change{Kind: &catalogv1.Change_Publish{Publish: &catalogv1.Publish{
			Revision: revision, Repository: "app", Tag: tag, Target: &catalogv1.Descriptor{Digest: digestA},
		}}}
	}
	m.Apply(&catalogv1.Command{Changes: []*catalogv1.Change{{Kind: &catalogv1.Change_Found{Found: &catalogv1.Found{Epoch: "e1"}}}, publish(1, "v1"), publish(2, "v2")}})
	if len(demand) > 0 {
		scope := &catalogv1.Scope{AnyOf: []*catalogv1.Subscription{{Repositories: demand, Exclude: []string{"x"}}}}
		if demand[0] == "**" {
			scope.AnyOf[0].Exclude = nil
		}
		at := m.Snapshot().View(scope).Position()
		m = catalog.New()
		m.Apply(&catalogv1.Command{Changes: []*catalogv1.Change{{Kind: &catalogv1.Change_Import{Import: &catalogv1.Import{Position: at, Demand: scope}}}}})
	}
	var b bytes.Buffer
	if _, err := m.Snapshot().WriteTo(&b); err != nil || m.Snapshot().Position().GetRevision() != 2 {
		t.Fatal(err, m.Snapshot().Position())
	}
	return b.Bytes()
}

func TestCatalogSave(t *testing.T) {
	data := written(t)
	dir := t.TempDir()
	file := filepath.Join(dir, "catalog")
	if err := os.WriteFile(file, []byte("older"), 0o600); err != nil {
		t.Fatal(err)
	}
	r := runCtl(t, "--server", keep(t, &keeper{has: data, cut: len(data) - 1}), "catalog", "save", file)
	if old, _ := os.ReadFile(file); r.code != exitFailed || !strings.Contains(r.err, "not a whole catalog") || string(old) != "older" {
		t.Errorf("cut: %+v; the file holds %d bytes", r, len(old))
	}
	server := keep(t, &keeper{has: data})
	r = runCtl(t, "--server", server, "-o", "json", "catalog", "save", file)
	var doc struct {
		SchemaVersion     int
		File, Epoch       string
		Revision, Records int
	}
	if err := json.Unmarshal([]byte(r.out), &doc); err != nil || r.code != 0 || doc.Epoch != "e1" || doc.Revision != 2 || doc.Records != 2 || doc.File != file || doc.SchemaVersion != 1 {
		t.Errorf("%v %+v %+v", err, doc, r)
	}
	if got, _ := os.ReadFile(file); !bytes.Equal(got, data) {
		t.Errorf("%d bytes are saved, want %d", len(got), len(data))
	}
	if files, _ := os.ReadDir(dir); len(files) != 1 {
		t.Errorf("left behind: %v", files)
	}
	nowhere := filepath.Join(t.TempDir(), "none", "catalog")
	if r := runCtl(t, "--server", server, "catalog", "save", nowhere); r.code != 1 || !strings.Contains(r.err, nowhere+": no such file") {
		t.Errorf("exit %d: %s", r.code, r.err)
	}
	if r := runCtl(t, "--server", server, "catalog", "save", "-"); r.out != string(data) || !strings.Contains(r.err, "2 records") {
		t.Errorf("to stdout: %d bytes, want %d: %q", len(r.out), len(data), r.err)
	}
}

func TestCatalogRestore(t *testing.T) {
	data := written(t)
	dir := t.TempDir()
	write := func(name string, data []byte) string {
		t.Helper()
		path := filepath.Join(dir, name)
		if err := os.WriteFile(path, data, 0o600); err != nil {
			t.Fatal(err)
		}
		return path
	}
	whole, bad, part := write("whole", data), write("bad", data[:len(data)-2]), write("part", written(t, "app/**", "db"))
	for _, c := range []struct {
		args string
		code int
		text string
		sent int
	}{
		{whole, exitOK, "goes on from revision 2 in epoch e2", len(data)},
		{bad, exitFailed, "ends early", 0},
		{filepath.Join(dir, "none"), exitFailed, "no such file", 0},
		{part, exitFailed, "app/** db without x", 0},
		{part + " --yes", exitOK, "app/** db without x", -1},
		{write("all of it, at a province", written(t, "**")), exitOK, "restored", -1},
	} {
		k := &keeper{}
		words := []string{c.args}
		if name, yes := strings.CutSuffix(c.args, " --yes"); yes {
			words = []string{name, "--yes"}
		}
		r := runCtl(t, append([]string{"--server", keep(t, k), "catalog", "restore"}, words...)...)
		if r.code != c.code || !strings.Contains(r.out+r.err, c.text) || c.sent >= 0 && len(k.got) != c.sent || c.sent < 0 && len(k.got) == 0 {
			t.Errorf("%s: %+v, %d bytes were sent", c.args, r, len(k.got))
		}
	}
	r := runCtl(t, "--server", keep(t, &keeper{refusal: status.Error(codes.FailedPrecondition, "this catalog is in use")}), "catalog", "restore", whole)
	if r.code != exitFailed || !strings.Contains(r.err, "this catalog is in use") {
		t.Errorf("refused: %+v", r)
	}
	k := &keeper{}
	out := newLocked()
	code := run(t.Context(), []string{"--server", keep(t, k), "catalog", "restore", "-"}, bytes.NewReader(data), out, out, func(string) string { return "" })
	if code != 0 || !bytes.Equal(k.got, data) {
		t.Errorf("from stdin: %d %s", code, out)
	}
}

func TestCatalogAdopt(t *testing.T) {
	part := written(t, "app/**")
	from, to := keep(t, &keeper{has: part}), &keeper{}
	server := keep(t, to)
	if r := runCtl(t, "--server", server, "catalog", "adopt", "--from", from); r.code != exitFailed || !strings.Contains(r.err, "app/**") || !strings.Contains(r.err, "--yes") || to.got != nil {
		t.Errorf("without --yes: %+v", r)
	}
	r := runCtl(t, "--server", server, "-o", "json", "catalog", "adopt", "--from", from, "--yes")
	if r.code != 0 || !bytes.Equal(to.got, part) || !strings.Contains(r.out, `"from": "e1"`) || !strings.Contains(r.err, "knows no policies") {
		t.Errorf("%+v", r)
	}
	if r := runCtl(t, "--server", server, "catalog", "adopt"); r.code != exitUsage {
		t.Errorf("without --from: %+v", r)
	}
	if r := runCtl(t, "--server", server, "catalog", "adopt", "--from", closedPort(t)); r.code != exitFailed || !strings.Contains(r.err, "refused") {
		t.Errorf("nobody there: %+v", r)
	}
}

func TestEpochAccept(t *testing.T) {
	server := keep(t, &keeper{})
	if r := runCtl(t, "--server", server, "-o", "json", "epoch", "accept"); r.code != 0 || !strings.Contains(r.out, `"epoch": "offered"`) || !strings.Contains(r.out, `"heldRevision": 7`) {
		t.Errorf("%+v", r)
	}
	if r := runCtl(t, "--server", server, "epoch", "accept", "e9"); r.code != 0 || r.out != "accepted epoch e9; it replaces epoch e1, which was held up to revision 7\n" {
		t.Errorf("%+v", r)
	}
	refusing := keep(t, &keeper{refusal: status.Error(codes.FailedPrecondition, "there is no foreign epoch to accept")})
	if r := runCtl(t, "--server", refusing, "epoch", "accept"); r.code != exitFailed || !strings.Contains(r.err, "no foreign epoch") {
		t.Errorf("%+v", r)
	}
}
