package tree_test

import (
	"context"
	"encoding/binary"
	"testing"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/protobuf/proto"

	"github.com/fanout-io/fanout/pkg/catalog"
	"github.com/fanout-io/fanout/pkg/tree"
	catalogv1 "github.com/fanout-io/fanout/proto/fanout/catalog/v1"
	transferv1 "github.com/fanout-io/fanout/proto/fanout/transfer/v1"
	treev1 "github.com/fanout-io/fanout/proto/fanout/tree/v1"
)

func framed(f testing.TB, msgs ...proto.Message) (out []byte) {
	f.Helper()
	for _, m := range msgs {
		b, err := proto.Marshal(m)
		if err != nil {
			f.Fatal(err)
		}
		out = append(binary.BigEndian.AppendUint16(out, uint16(len(b))), b...)
	}
	return out
}

func frames(data []byte) (out [][]byte) {
	for len(data) >= 2 {
		n := min(int(binary.BigEndian.Uint16(data)), len(data)-2)
		out = append(out, data[2:2+n])
		data = data[2+n:]
	}
	return out
}

// FuzzFromChild lets a child say anything to a root that runs. It must live, and nothing of headquarters' may change.
func FuzzFromChild(f *testing.F) {
	hello := &treev1.AttachRequest{Kind: &treev1.AttachRequest_Hello{Hello: &treev1.Hello{
		Group: "hq/gd", Site: "gd-a", Position: position(0), Demand: &catalogv1.Scope{AnyOf: []*catalogv1.Subscription{{Repositories: []string{"**"}}}}, Labels: map[string]string{"a": "b"},
	}}}
	f.Add(framed(f, hello))
	f.Add(framed(f, hello, &treev1.AttachRequest{Kind: &treev1.AttachRequest_Ack{Ack: &treev1.Ack{Position: position(1 << 60)}}}))
	f.Add(framed(f, hello, &treev1.AttachRequest{Kind: &treev1.AttachRequest_Health{Health: &treev1.HealthUpdate{
		Full: true, Sites: []*treev1.SiteHealth{{Site: "hq-a", Group: "hq"}, {Site: "gd-a", Group: "hq/gd", State: "synced"}}, Groups: []*treev1.GroupHealth{{Group: "hq/gd/sz"}},
	}}}))
	f.Add(framed(f, hello, hello))
	f.Add(framed(f, &treev1.AttachRequest{}))
	fab := newFabric(f)
	hq := fab.group("hq", []string{"hq-a"})[0]
	fab.start("hq-a")
	root(f, []*site{hq}).publish("app", "web", "x")
	conn, err := grpc.NewClient("passthrough:///"+hq.cfg.FabricAdvertise, grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		f.Fatal(err)
	}
	f.Cleanup(func() { _ = conn.Close() })
	before, view := hq.position(), everything(hq)
	f.Fuzz(func(t *testing.T, data []byte) {
		ctx, cancel := context.WithTimeout(context.Background(), patience)
		defer cancel()
		stream, err := treev1.NewTreeServiceClient(conn).Attach(ctx)
		if err != nil {
			t.Fatal(err)
		}
		for _, raw := range frames(data) {
			req := &treev1.AttachRequest{}
			if proto.Unmarshal(raw, req) == nil && stream.Send(req) != nil {
				break
			}
		}
		_ = stream.CloseSend()
		for err == nil {
			_, err = stream.Recv()
		}
		if ctx.Err() != nil {
			t.Fatal("the stream does not end")
		}
		if !hq.node.IsRoot() || !proto.Equal(before, hq.position()) || everything(hq) != view {
			t.Fatalf("root: %v, %v became %v", hq.node.IsRoot(), before, hq.position())
		}
		if h := siteOf(hq.node.Health(), "hq-a"); h.GetGroup() != "hq" {
			t.Fatalf("a child spoke of headquarters: %v", h)
		}
	})
}

// FuzzFromParent takes what a parent, or a root, may say. What passes the checks is within bounds, and is applied or refused whole.
func FuzzFromParent(f *testing.F) {
	welcome := &treev1.Welcome{Group: "hq", Site: "hq-a", Position: position(3), Parents: &treev1.Parents{Members: []*treev1.ParentMember{{Site: "hq-a", FabricAddress: "127.0.0.1:1"}}}}
	for _, r := range []*treev1.AttachResponse{
		{Kind: &treev1.AttachResponse_Welcome{Welcome: welcome}},
		{Kind: &treev1.AttachResponse_Parents{Parents: welcome.Parents}},
		{Kind: &treev1.AttachResponse_Heartbeat{Heartbeat: &treev1.Heartbeat{Position: position(1), Head: 1 << 63}}},
		{Kind: &treev1.AttachResponse_Records{Records: &treev1.Records{
			Records: []*catalogv1.Record{record(2), record(3)}, Position: position(3), Manifests: []*transferv1.Manifest{{Digest: digest("{}"), Content: []byte("{}")}},
		}}},
		{Kind: &treev1.AttachResponse_Records{Records: &treev1.Records{Records: []*catalogv1.Record{record(2)}, Position: position(3), Resync: "r", End: true}}},
	} {
		b, err := proto.Marshal(r)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(b)
	}
	b, err := proto.Marshal(&treev1.Roster{Carrier: "gd-a", Parent: "hq", Members: welcome.Parents.Members, Head: 3})
	if err != nil {
		f.Fatal(err)
	}
	f.Add(b)
	f.Fuzz(func(t *testing.T, data []byte) {
		roster := &treev1.Roster{}
		if proto.Unmarshal(data, roster) == nil && tree.CheckRoster(roster) == nil && len(roster.GetMembers()) > 64 {
			t.Fatal(roster)
		}
		r := &treev1.AttachResponse{}
		if proto.Unmarshal(data, r) != nil || tree.CheckFromParent("hq/gd", r) != nil {
			return
		}
		for _, p := range []*treev1.Parents{r.GetParents(), r.GetWelcome().GetParents()} {
			if len(p.GetMembers()) > 64 {
				t.Fatalf("%d parents", len(p.GetMembers()))
			}
		}
		if r.GetRecords() == nil {
			return
		}
		for _, m := range r.GetRecords().GetManifests() {
			if m.GetDigest() != digest(string(m.GetContent())) {
				t.Fatalf("manifest %s", m.GetDigest())
			}
		}
		m := catalog.New()
		m.Apply(&catalogv1.Command{Changes: []*catalogv1.Change{{Kind: &catalogv1.Change_Import{Import: &catalogv1.Import{
			Position: position(1), Records: []*catalogv1.Record{record(1)},
		}}}}})
		before := m.Snapshot().Len()
		res := m.Apply(&catalogv1.Command{Changes: []*catalogv1.Change{tree.ImportOf(r.GetRecords())}})
		if res[0].Err != nil && m.Snapshot().Len() != before {
			t.Fatalf("refused with %v, and taken in", res[0].Err)
		}
		m.Snapshot().Position()
	})
}
