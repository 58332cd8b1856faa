package store

import "errors"

var (
	// ErrLocked says that another process (or another Store of this one) has the directory open.
	ErrLocked = errors.New("store: directory is in use by another process")
	// ErrClosed says that the store, ingest or reader that was asked is closed.
	ErrClosed = errors.New("store: closed")
	// ErrNotFound says that nothing is stored under that name.
	ErrNotFound = errors.New("store: not found")
	// ErrInvalid says that an argument can't be right: a malformed digest, a negative size, a write that is not whole pieces.
	ErrInvalid = errors.New("store: invalid argument")
	// ErrBusy says that the digest already has a writer.
	ErrBusy = errors.New("store: blob already has a writer")
	// ErrExists says that the blob is committed: open it instead.
	ErrExists = errors.New("store: blob is committed already")
	// ErrTooLarge says that something is larger than the bound it must fit in. Trying again doesn't help.
	ErrTooLarge = errors.New("store: too large")
	// ErrNoSpace says that there is no room now: the spool is full of what is open, or the disk is full. Trying again later may help.
	ErrNoSpace = errors.New("store: no space")
	// ErrSizeMismatch says that the blob is known with another size than the one that was named.
	ErrSizeMismatch = errors.New("store: size does not match")
	// ErrDigestMismatch says that the content is not what its digest promises. The content was dropped.
	ErrDigestMismatch = errors.New("store: content does not match its digest")
	// ErrIncomplete says that pieces are missing still.
	ErrIncomplete = errors.New("store: blob is incomplete")
	// ErrAbsent says that the bytes asked for have not arrived yet.
	ErrAbsent = errors.New("store: bytes have not arrived")
	// ErrAborted says that the ingest was given up and its content dropped.
	ErrAborted = errors.New("store: ingest was aborted")
	// ErrDamaged says that what was read back from disk can't be what was written.
	ErrDamaged = errors.New("store: stored data is damaged")
)
