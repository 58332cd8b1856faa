package transfer

import (
	"errors"
	"fmt"
	"strings"
)

// localError is trouble on this side of the link: no other source helps.
type localError struct{ err error }

func (e *localError) Error() string { return e.err.Error() }
func (e *localError) Unwrap() error { return e.err }

// SourcesError says why each source failed. errors.Is is true for ErrNotFound, ErrDenied and ErrBadSource when all sources
// failed for that reason (no source at all: ErrNotFound), else for ErrUnavailable.
type SourcesError struct {
	Digest  string
	Sources []Source
	Errs    []error // one for each
}

func (e *SourcesError) add(s Source, err error) {
	e.Sources = append(e.Sources, s)
	e.Errs = append(e.Errs, err)
}

func (e *SourcesError) Error() string {
	if len(e.Errs) == 0 {
		return fmt.Sprintf("fetching %s: there is no source", e.Digest)
	}
	var b strings.Builder
	fmt.Fprintf(&b, "fetching %s: no source could give it", e.Digest)
	for i, err := range e.Errs {
		if e.Sources[i] == (Source{}) {
			fmt.Fprintf(&b, "; %v", err)
			continue
		}
		fmt.Fprintf(&b, "; %s at %s: %v", e.Sources[i].Site, e.Sources[i].Addr, err)
	}
	return b.String()
}

// Is reports the reason that all sources share.
func (e *SourcesError) Is(target error) bool {
	all := func(reason error) bool {
		for _, err := range e.Errs {
			if !errors.Is(err, reason) {
				return false
			}
		}
		return len(e.Errs) > 0
	}
	switch target {
	case ErrNotFound:
		return len(e.Errs) == 0 || all(ErrNotFound)
	case ErrDenied, ErrBadSource:
		return all(target)
	case ErrUnavailable:
		return len(e.Errs) > 0 && !all(ErrNotFound) && !all(ErrDenied) && !all(ErrBadSource)
	}
	return false
}
