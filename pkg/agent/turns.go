package agent

import (
	"context"
	"sync"
)

// turns lets one at a time do something about a name. Who fails takes nobody with him: the next has a try of his own. The zero value is ready; safe for concurrent use.
type turns struct {
	mu    sync.Mutex
	taken map[string]chan struct{}
}

// take waits for the turn of a name; done ends it. The error is that of ctx.
func (t *turns) take(ctx context.Context, name string) (done func(), err error) {
	for {
		t.mu.Lock()
		taken, busy := t.taken[name]
		if !busy {
			mine := make(chan struct{})
			if t.taken == nil {
				t.taken = map[string]chan struct{}{}
			}
			t.taken[name] = mine
			t.mu.Unlock()
			return func() {
				t.mu.Lock()
				defer t.mu.Unlock()
				delete(t.taken, name)
				close(mine)
			}, nil
		}
		t.mu.Unlock()
		select {
		case <-ctx.Done():
			return nil, context.Cause(ctx)
		case <-taken:
		}
	}
}
