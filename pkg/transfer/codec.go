package transfer

import (
	"hash/crc32"
	"sync"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/backoff"
	"google.golang.org/grpc/encoding"
	_ "google.golang.org/grpc/encoding/proto" // registers the codec that everything but pieces falls to
	"google.golang.org/grpc/keepalive"
	"google.golang.org/grpc/mem"
	"google.golang.org/protobuf/encoding/protowire"
	"google.golang.org/protobuf/proto"

	"github.com/fanout-io/fanout/pkg/store"
	transferv1 "github.com/fanout-io/fanout/proto/fanout/transfer/v1"
)

// What the fabric's connections are made of. A window is what may be on its way unread: 8 MiB lets one stream fill
// 100 MB/s at 80 ms of round trip.
const (
	StreamWindow     = 8 << 20
	ConnWindow       = 16 << 20
	MaxMessage       = 8 << 20 // the largest message is a manifest of 4 MiB
	MaxData          = 1 << 20 // the most data that one FetchResponse may carry
	KeepaliveTime    = 10 * time.Second
	KeepaliveTimeout = 5 * time.Second
	socketBuffer     = 128 << 10
)

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

// ServerOptions are what a server of the fabric must be made with; credentials and interceptors are the caller's to add.
func ServerOptions() []grpc.ServerOption {
	return []grpc.ServerOption{
		grpc.ForceServerCodecV2(newCodec()),
		grpc.InitialWindowSize(StreamWindow),
		grpc.InitialConnWindowSize(ConnWindow),
		grpc.WriteBufferSize(socketBuffer),
		grpc.ReadBufferSize(socketBuffer),
		grpc.MaxRecvMsgSize(MaxMessage),
		grpc.MaxSendMsgSize(MaxMessage),
		grpc.MaxConcurrentStreams(1024),
		grpc.KeepaliveParams(keepalive.ServerParameters{Time: KeepaliveTime, Timeout: KeepaliveTimeout}),
		grpc.KeepaliveEnforcementPolicy(keepalive.EnforcementPolicy{MinTime: KeepaliveTime / 2, PermitWithoutStream: true}),
	}
}

// DialOptions are what a connection to another agent must be made with, but for its credentials. A dead peer fails its
// streams within KeepaliveTime + KeepaliveTimeout; one that is back is met again within about two seconds.
func DialOptions() []grpc.DialOption {
	return []grpc.DialOption{
		grpc.WithDefaultCallOptions(
			grpc.ForceCodecV2(newCodec()),
			grpc.MaxCallRecvMsgSize(MaxMessage),
			grpc.MaxCallSendMsgSize(MaxMessage),
		),
		grpc.WithInitialWindowSize(StreamWindow),
		grpc.WithInitialConnWindowSize(ConnWindow),
		grpc.WithWriteBufferSize(socketBuffer),
		grpc.WithReadBufferSize(socketBuffer),
		grpc.WithKeepaliveParams(keepalive.ClientParameters{
			Time: KeepaliveTime, Timeout: KeepaliveTimeout, PermitWithoutStream: true,
		}),
		grpc.WithConnectParams(grpc.ConnectParams{
			Backoff:           backoff.Config{BaseDelay: 200 * time.Millisecond, Multiplier: 1.6, Jitter: 0.2, MaxDelay: 2 * time.Second},
			MinConnectTimeout: 5 * time.Second,
		}),
	}
}

// buffers holds piece buffers. It is a mem.BufferPool, so that gRPC gives a sent piece's memory back when the last byte has
// left, which may be long after SendMsg returned.
var buffers piecePool

type piecePool struct{ pool sync.Pool }

// Get returns a buffer of length n ≤ store.PieceSize.
func (p *piecePool) Get(n int) *[]byte {
	b, ok := p.pool.Get().(*[]byte)
	if !ok {
		s := make([]byte, store.PieceSize)
		b = &s
	}
	*b = (*b)[:n]
	return b
}

// Put takes a buffer back.
func (p *piecePool) Put(b *[]byte) {
	if cap(*b) < store.PieceSize {
		return
	}
	*b = (*b)[:store.PieceSize]
	p.pool.Put(b)
}

// piece is a received FetchResponse whose data stays in gRPC's buffers. Through a codec that does not know it, it is an ordinary
// FetchResponse, because it embeds one; through ours, the embedded message has everything but data.
type piece struct {
	*transferv1.FetchResponse
	bufs mem.BufferSlice
}

// free gives the buffers back; the piece may be used again.
func (p *piece) free() {
	p.bufs.Free()
	p.bufs = p.bufs[:0]
}

// size is the number of bytes of data.
func (p *piece) size() int { return p.bufs.Len() + len(p.GetData()) }

// sum is the CRC-32C of the data.
func (p *piece) sum() uint32 {
	crc := crc32.Checksum(p.GetData(), castagnoli)
	for _, b := range p.bufs {
		crc = crc32.Update(crc, castagnoli, b.ReadOnlyData())
	}
	return crc
}

// each calls fn with the data, in order, in parts, until it returns an error.
func (p *piece) each(fn func([]byte) error) error {
	if d := p.GetData(); len(d) > 0 {
		if err := fn(d); err != nil {
			return err
		}
	}
	for _, b := range p.bufs {
		if err := fn(b.ReadOnlyData()); err != nil {
			return err
		}
	}
	return nil
}

// codec passes the bytes of pieces through and leaves all else to the proto codec. Both forms are the same on the wire.
type codec struct{ encoding.CodecV2 }

func newCodec() encoding.CodecV2 { return codec{encoding.GetCodecV2("proto")} }

// outgoing is a FetchResponse to be sent. It is no proto.Message, so that a server made without ServerOptions says so.
type outgoing struct {
	off  int64
	crc  uint32
	data mem.Buffer
}

// Marshal encodes an outgoing as a header (offset, CRC, the data's tag and length) followed by the data as it is.
func (c codec) Marshal(v any) (mem.BufferSlice, error) {
	p, ok := v.(*outgoing)
	if !ok {
		return c.CodecV2.Marshal(v)
	}
	head := make([]byte, 0, 32)
	head = protowire.AppendTag(head, fieldOffset, protowire.VarintType)
	head = protowire.AppendVarint(head, uint64(p.off))
	head = protowire.AppendTag(head, fieldCRC, protowire.VarintType)
	head = protowire.AppendVarint(head, uint64(p.crc))
	head = protowire.AppendTag(head, fieldData, protowire.BytesType)
	head = protowire.AppendVarint(head, uint64(p.data.Len()))
	p.data.Ref() // gRPC frees one reference of what it is given; the sender keeps its own
	return mem.BufferSlice{mem.SliceBuffer(head), p.data}, nil
}

// Unmarshal takes references to the part of data that is the piece's data. Anything unusual goes the slow way, through
// proto itself, so that what is accepted is never a matter of which way it went.
func (c codec) Unmarshal(data mem.BufferSlice, v any) error {
	p, ok := v.(*piece)
	if !ok {
		return c.CodecV2.Unmarshal(data, v)
	}
	p.free()
	proto.Reset(p.FetchResponse)
	if p.decode(data) {
		return nil
	}
	p.free()
	return c.CodecV2.Unmarshal(data, p.FetchResponse)
}

// Field numbers of FetchResponse; a test holds them against the descriptor.
const (
	fieldOffset = 1
	fieldData   = 2
	fieldCRC    = 3
)

// decode reads a message in which each field comes at most once and no unknown one at all, as every FetchResponse so
// far; else it reports false.
func (p *piece) decode(data mem.BufferSlice) bool {
	c := cursor{bufs: data, left: data.Len()}
	var seen [4]bool
	for c.left > 0 {
		tag, ok := c.varint()
		if !ok || tag>>3 < fieldOffset || tag>>3 > fieldCRC || seen[tag>>3] {
			return false
		}
		seen[tag>>3] = true
		n, ok := c.varint() // a value, or the length of data
		if !ok {
			return false
		}
		switch tag {
		case fieldOffset<<3 | uint64(protowire.VarintType):
			p.Offset = int64(n)
		case fieldCRC<<3 | uint64(protowire.VarintType):
			p.Crc32C = uint32(n)
		case fieldData<<3 | uint64(protowire.BytesType):
			if n > uint64(c.left) {
				return false
			}
			p.bufs = c.take(p.bufs, int(n))
		default:
			return false
		}
	}
	return true
}

// cursor reads over a BufferSlice that it does not own.
type cursor struct {
	bufs mem.BufferSlice
	pos  int // in bufs[0]
	left int
}

func (c *cursor) byte() (byte, bool) {
	for len(c.bufs) > 0 && c.pos == c.bufs[0].Len() {
		c.bufs, c.pos = c.bufs[1:], 0
	}
	if len(c.bufs) == 0 {
		return 0, false
	}
	b := c.bufs[0].ReadOnlyData()[c.pos]
	c.pos++
	c.left--
	return b, true
}

func (c *cursor) varint() (uint64, bool) {
	var v uint64
	for shift := 0; shift < 63; shift += 7 {
		b, ok := c.byte()
		if !ok {
			return 0, false
		}
		v |= uint64(b&0x7f) << shift
		if b < 0x80 {
			return v, true
		}
	}
	return 0, false // a negative or overlong one: the slow way decides
}

// take appends references to the next n ≤ left bytes.
func (c *cursor) take(out mem.BufferSlice, n int) mem.BufferSlice {
	c.left -= n
	for n > 0 {
		m := min(n, c.bufs[0].Len()-c.pos)
		if m > 0 {
			out = append(out, c.bufs[0].Slice(c.pos, c.pos+m))
			c.pos += m
			n -= m
		}
		if n > 0 {
			c.bufs, c.pos = c.bufs[1:], 0
		}
	}
	return out
}
