// Package faultfs fails disk operations by label, for tests. It performs nothing itself: code under test calls
// [Faults.Check] before each operation and returns what it gets in the operation's stead. Safe for concurrent use.
package faultfs

import (
	"errors"
	"sync"
)

// ErrInjected is what a failed operation returns where nothing else was asked for.
var ErrInjected = errors.New("faultfs: injected fault")

// Faults records operations and fails those it was told to. The zero value fails nothing.
type Faults struct {
	mu    sync.Mutex
	seen  map[string]int
	order []string
	fail  map[string]map[int]error
	every map[string]error
	hook  func(op string)
}

// Check is called before the operation op.
func (f *Faults) Check(op string) error {
	f.mu.Lock()
	if f.seen == nil {
		f.seen = make(map[string]int)
	}
	f.seen[op]++
	f.order = append(f.order, op)
	err := f.fail[op][f.seen[op]]
	if err == nil {
		err = f.every[op]
	}
	hook := f.hook
	f.mu.Unlock()
	if hook != nil {
		hook(op)
	}
	return err
}

// FailNth fails the n-th operation op, counted from 1, with err (nil: ErrInjected).
func (f *Faults) FailNth(op string, n int, err error) {
	if err == nil {
		err = ErrInjected
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.fail == nil {
		f.fail = make(map[string]map[int]error)
	}
	if f.fail[op] == nil {
		f.fail[op] = make(map[int]error)
	}
	f.fail[op][n] = err
}

// FailAll fails each operation op with err until it is called with nil.
func (f *Faults) FailAll(op string, err error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.every == nil {
		f.every = make(map[string]error)
	}
	f.every[op] = err
}

// Before is called before each operation, and may look at the disk as it is then. Operations run meanwhile.
func (f *Faults) Before(hook func(op string)) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.hook = hook
}

// Ops returns the operations so far, in order.
func (f *Faults) Ops() []string {
	f.mu.Lock()
	defer f.mu.Unlock()
	return append([]string(nil), f.order...)
}

// Count returns how often op was called.
func (f *Faults) Count(op string) int {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.seen[op]
}
