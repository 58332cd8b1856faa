package transfer

import (
	"context"
	"errors"
	"fmt"
	"io"

	transferv1 "github.com/fanout-io/fanout/proto/fanout/transfer/v1"
)

// fromNear passes a range on from a site at or below this group, for a caller above it. Nothing of it is kept here, nor does it wait for a flight: the flight of a
// blob that the groups above lack may be waiting for the very caller.
func (s *Server) fromNear(ctx context.Context, req *transferv1.FetchRequest, end int64) (*origin, error) {
	client, purpose, err := s.cfg.Near(ctx, req.GetPurpose(), req.GetDigest())
	if err != nil {
		return nil, err
	}
	ctx, cancel := context.WithCancel(ctx)
	stream, err := client.Fetch(ctx, &transferv1.FetchRequest{
		Caller: s.cfg.Self, Purpose: purpose, Digest: req.GetDigest(), Size: req.GetSize(), Offset: req.GetOffset(), Length: end - req.GetOffset(),
	})
	if err != nil {
		cancel()
		return nil, wireError(ctx, err)
	}
	r := &relayed{recv: stream.RecvMsg, a: assembler{pos: req.GetOffset(), end: end, size: req.GetSize()}}
	return &origin{name: "near", read: r.read, close: cancel}, nil
}

// relayed reads the messages of another's Fetch as bytes.
type relayed struct {
	recv func(m any) error
	a    assembler // checks the messages; nothing is written
	rest []byte
}

func (r *relayed) read(ctx context.Context, p []byte, _ int64) (int, error) {
	if len(r.rest) == 0 {
		if err := r.next(ctx); err != nil {
			return 0, err
		}
	}
	n := copy(p, r.rest)
	r.rest = r.rest[n:]
	return n, nil
}

func (r *relayed) next(ctx context.Context) error {
	m := &piece{FetchResponse: new(transferv1.FetchResponse)}
	defer m.free()
	err := r.recv(m)
	if errors.Is(err, io.EOF) {
		return fmt.Errorf("%w: at byte %d of %d", ErrTruncated, r.a.pos, r.a.end)
	}
	if err != nil {
		return wireError(ctx, err)
	}
	n := m.size()
	if err := r.a.check(m, n); err != nil {
		return err
	}
	r.a.pos += int64(n)
	r.rest = r.rest[:0]
	return m.each(func(b []byte) error {
		r.rest = append(r.rest, b...)
		return nil
	})
}
