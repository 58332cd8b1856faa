package transfer

import (
	"google.golang.org/grpc/encoding"
	"google.golang.org/grpc/mem"

	"github.com/fanout-io/fanout/pkg/store"
	transferv1 "github.com/fanout-io/fanout/proto/fanout/transfer/v1"
)

// What tests see of the inside.

var (
	NewCodec    = newCodec
	SegmentSize = segmentSize
	CheckDigest = checkDigest
	Castagnoli  = castagnoli
)

// Decode runs the receiving codec and gives the message as an ordinary one.
func Decode(c encoding.CodecV2, data mem.BufferSlice) (*transferv1.FetchResponse, error) {
	p := &piece{FetchResponse: new(transferv1.FetchResponse)}
	defer p.free()
	if err := c.Unmarshal(data, p); err != nil {
		return nil, err
	}
	out := &transferv1.FetchResponse{Offset: p.Offset, Crc32C: p.Crc32C}
	return out, p.each(func(b []byte) error { out.Data = append(out.Data, b...); return nil })
}

// Encode runs the sending codec.
func Encode(c encoding.CodecV2, off int64, crc uint32, data []byte) ([]byte, error) {
	buf := buffers.Get(len(data))
	copy(*buf, data)
	b := mem.NewBuffer(buf, &buffers)
	defer b.Free()
	out, err := c.Marshal(&outgoing{off: off, crc: crc, data: b})
	if err != nil {
		return nil, err
	}
	defer out.Free()
	return out.Materialize(), nil
}

// Receiver is the receive path of one range, without a network.
type Receiver struct{ a assembler }

// NewReceiver expects [off, end) of the ingest's blob.
func NewReceiver(in *store.Ingest, off, end, size int64) *Receiver {
	return &Receiver{a: assembler{in: in, pos: off, end: end, size: size}}
}

// Take decodes, checks and writes one message.
func (r *Receiver) Take(c encoding.CodecV2, data mem.BufferSlice) error {
	p := &piece{FetchResponse: new(transferv1.FetchResponse)}
	defer p.free()
	if err := c.Unmarshal(data, p); err != nil {
		return err
	}
	if err := r.a.check(p, p.size()); err != nil {
		return err
	}
	return p.each(r.a.add)
}

// Written is the number of bytes that reached the ingest.
func (r *Receiver) Written() int64 { return r.a.written }

// Close gives the buffer back.
func (r *Receiver) Close() { r.a.close() }
