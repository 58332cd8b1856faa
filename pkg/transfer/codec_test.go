package transfer_test

import (
	"bytes"
	"encoding/binary"
	"errors"
	"hash/crc32"
	"testing"

	"github.com/google/go-cmp/cmp"
	"google.golang.org/grpc/mem"
	"google.golang.org/protobuf/encoding/protowire"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/testing/protocmp"

	"github.com/fanout-io/fanout/pkg/store"
	"github.com/fanout-io/fanout/pkg/transfer"
	transferv1 "github.com/fanout-io/fanout/proto/fanout/transfer/v1"
)

func message(off int64, data []byte) *transferv1.FetchResponse {
	return &transferv1.FetchResponse{Offset: off, Data: data, Crc32C: crc32.Checksum(data, transfer.Castagnoli)}
}

func TestCodec_FieldNumbers(t *testing.T) {
	fields := (&transferv1.FetchResponse{}).ProtoReflect().Descriptor().Fields()
	want := map[string]int{"offset": 1, "data": 2, "crc32c": 3}
	if fields.Len() != len(want) {
		t.Fatalf("FetchResponse has %d fields, the codec knows %d", fields.Len(), len(want))
	}
	for i := range fields.Len() {
		if f := fields.Get(i); want[string(f.Name())] != int(f.Number()) {
			t.Errorf("%s is field %d, the codec thinks %d", f.Name(), f.Number(), want[string(f.Name())])
		}
	}
}

// What ours writes proto reads, and what proto writes ours reads, however the bytes are cut into buffers.
func TestCodec_BothDirections(t *testing.T) {
	c := transfer.NewCodec()
	for _, n := range []int{0, 1, 127, 128, 16383, 16384, piece - 1, piece} {
		for _, off := range []int64{0, 1, 127, 128, piece, 1 << 40, 1<<63 - 1} {
			m := message(off, newBlob(1, n).data)
			out, err := transfer.Encode(c, m.Offset, m.Crc32C, m.Data)
			if err != nil {
				t.Fatal(err)
			}
			var back transferv1.FetchResponse
			if err := proto.Unmarshal(out, &back); err != nil {
				t.Fatal(err)
			}
			if d := cmp.Diff(m, &back, protocmp.Transform(), protocmp.FilterField(m, "data", cmp.Comparer(bytes.Equal))); d != "" {
				t.Fatalf("proto reads what the codec wrote as:\n%s", d)
			}
			theirs, err := proto.Marshal(m)
			if err != nil {
				t.Fatal(err)
			}
			for _, raw := range [][]byte{theirs, out} {
				for _, cut := range []int{1, 2, 3, 7, 16 << 10, len(raw) + 1} {
					if cut < 100 && n > 1000 {
						continue
					}
					got, err := transfer.Decode(c, cutUp(raw, cut))
					if err != nil {
						t.Fatal(err)
					}
					if d := cmp.Diff(m, got, protocmp.Transform(), protocmp.FilterField(m, "data", cmp.Comparer(bytes.Equal))); d != "" {
						t.Fatalf("the codec reads (cut at %d):\n%s", cut, d)
					}
				}
			}
		}
	}
}

// Odd but legal encodings go the slow way and mean the same.
func TestCodec_OddEncodings(t *testing.T) {
	c := transfer.NewCodec()
	base, err := proto.Marshal(message(5, []byte("hello")))
	if err != nil {
		t.Fatal(err)
	}
	unknown := protowire.AppendVarint(protowire.AppendTag(nil, 99, protowire.VarintType), 1)
	group := protowire.AppendTag(protowire.AppendTag(nil, 50, protowire.StartGroupType), 50, protowire.EndGroupType)
	negative, err := proto.Marshal(&transferv1.FetchResponse{Offset: -1})
	if err != nil {
		t.Fatal(err)
	}
	for name, raw := range map[string][]byte{
		"empty": nil, "unknown": append(unknown, base...), "group": append(group, base...), "twice": append(base, base...),
		"negative": negative, "overlong": {0x08, 0x80, 0x80, 0x00}, "truncated": base[:len(base)-3], "garbage": {0xff, 0xff},
		"length beyond": {0x12, 0x7f, 1}, "field 0": {0x00, 0x00}, "wrong type": {0x0a, 0x01, 0x00},
	} {
		var want transferv1.FetchResponse
		werr := proto.Unmarshal(raw, &want)
		got, gerr := transfer.Decode(c, cutUp(raw, 3))
		if (werr == nil) != (gerr == nil) {
			t.Errorf("%s: proto says %v, the codec %v", name, werr, gerr)
			continue
		}
		if werr == nil && (got.Offset != want.Offset || got.Crc32C != want.Crc32C || !bytes.Equal(got.Data, want.Data)) {
			t.Errorf("%s: proto reads %v, the codec %v", name, &want, got)
		}
	}
}

// cutUp makes buffers of n bytes.
func cutUp(raw []byte, n int) mem.BufferSlice {
	var out mem.BufferSlice
	for len(raw) > 0 {
		k := min(n, len(raw))
		out = append(out, mem.SliceBuffer(raw[:k]))
		raw = raw[k:]
	}
	return out
}

// FuzzReceive puts raw messages through the receive path of a range: never a panic, the codec agrees with proto, and
// nothing gets written that is not the next bytes with the right CRC.
func FuzzReceive(f *testing.F) {
	b := newBlob(1, 3*piece+100)
	for _, m := range []*transferv1.FetchResponse{
		message(0, b.data[:piece]), message(0, b.data[:100]), message(1, b.data[:100]), message(-1, nil),
		{Offset: 0, Data: b.data[:10], Crc32C: 1},
	} {
		raw, err := proto.Marshal(m)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(frame(raw), uint8(7))
		f.Add(frame(raw, raw), uint8(200))
	}
	full, err := transfer.Encode(transfer.NewCodec(), 0, crc32.Checksum(b.data[:piece], transfer.Castagnoli), b.data[:piece])
	if err != nil {
		f.Fatal(err)
	}
	f.Add(frame(full), uint8(255))
	st, err := store.Open(store.Config{Dir: f.TempDir()})
	if err != nil {
		f.Fatal(err)
	}
	f.Cleanup(func() { st.Close() })
	c := transfer.NewCodec()
	f.Fuzz(func(t *testing.T, msgs []byte, cut uint8) {
		in, err := st.Spool().Ingest(b.digest, int64(len(b.data)))
		if err != nil {
			t.Skip(err) // another worker of this process has it
		}
		defer func() { _ = in.Abort(errors.New("done")) }()
		r := transfer.NewReceiver(in, 0, int64(len(b.data)), int64(len(b.data)))
		defer r.Close()
		var taken []byte
		for len(msgs) >= 4 {
			n := min(int(binary.BigEndian.Uint32(msgs)), len(msgs)-4)
			raw := msgs[4 : 4+n]
			msgs = msgs[4+n:]
			var want transferv1.FetchResponse
			werr := proto.Unmarshal(raw, &want)
			got, gerr := transfer.Decode(c, cutUp(raw, 1+int(cut)))
			if (werr == nil) != (gerr == nil) {
				t.Fatalf("proto says %v, the codec %v", werr, gerr)
			}
			if gerr == nil && (got.Offset != want.Offset || got.Crc32C != want.Crc32C || !bytes.Equal(got.Data, want.Data)) {
				t.Fatalf("proto and the codec read different messages")
			}
			ok := werr == nil && want.Offset == int64(len(taken)) && len(want.Data) > 0 && len(want.Data) <= 1<<20 &&
				len(taken)+len(want.Data) <= len(b.data) && crc32.Checksum(want.Data, transfer.Castagnoli) == want.Crc32C
			if err := r.Take(c, cutUp(raw, 1+int(cut))); (err == nil) != ok {
				t.Fatalf("taken: %v, should be %v", err, ok)
			}
			if !ok {
				break
			}
			taken = append(taken, want.Data...)
		}
		if w := r.Written(); w > int64(len(taken)) {
			t.Fatalf("%d bytes written, %d came", w, len(taken))
		} else if w > 0 {
			rd := in.NewReader()
			defer rd.Close()
			p := make([]byte, w)
			if _, err := rd.ReadAt(p, 0); err != nil && !errors.Is(err, store.ErrAbsent) || !bytes.Equal(p, taken[:w]) {
				t.Fatalf("what was written is not what came: %v", err)
			}
		}
	})
}

func frame(msgs ...[]byte) []byte {
	var out []byte
	for _, m := range msgs {
		out = binary.BigEndian.AppendUint32(out, uint32(len(m)))
		out = append(out, m...)
	}
	return out
}
