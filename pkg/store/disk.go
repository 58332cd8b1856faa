package store

import (
	"errors"
	"fmt"
	"io"
	"os"
	"syscall"
	"time"
)

// disk is the only door to files. Each operation has a label, so that a test can fail precisely that one.
type disk struct{ fault func(op string) error }

func (d disk) check(op string) error {
	if d.fault == nil {
		return nil
	}
	if err := d.fault(op); err != nil {
		return diskErr(fmt.Errorf("%s: %w", op, err))
	}
	return nil
}

func (d disk) open(op, path string, flag int) (*file, error) {
	if err := d.check(op + ".open"); err != nil {
		return nil, err
	}
	f, err := os.OpenFile(path, flag, 0o600)
	if err != nil {
		return nil, diskErr(err)
	}
	return &file{f: f, d: d, op: op}, nil
}

func (d disk) rename(op, from, to string) error {
	if err := d.check(op); err != nil {
		return err
	}
	return diskErr(os.Rename(from, to))
}

// remove is done when the file is gone, whoever removed it.
func (d disk) remove(op, path string) error {
	if err := d.check(op); err != nil {
		return err
	}
	if err := os.Remove(path); err != nil && !errors.Is(err, os.ErrNotExist) {
		return err
	}
	return nil
}

func (d disk) readDir(op, path string) ([]os.DirEntry, error) {
	if err := d.check(op); err != nil {
		return nil, err
	}
	return os.ReadDir(path)
}

func (d disk) syncDir(op, path string) error {
	if err := d.check(op); err != nil {
		return err
	}
	f, err := os.Open(path)
	if err != nil {
		return err
	}
	defer f.Close()
	if err := f.Sync(); err != nil {
		return diskErr(fmt.Errorf("syncing directory %s: %w", path, err))
	}
	return nil
}

func (d disk) touch(op, path string, t time.Time) error {
	if err := d.check(op); err != nil {
		return err
	}
	return os.Chtimes(path, time.Time{}, t)
}

// file is an *os.File whose operations carry labels: the label it was opened with, and a verb.
type file struct {
	f  *os.File
	d  disk
	op string
}

func (f *file) readAt(p []byte, off int64) (int, error) {
	if f.d.fault != nil {
		if err := f.d.check(f.op + ".read"); err != nil {
			return 0, err
		}
	}
	return f.f.ReadAt(p, off)
}

func (f *file) writeAt(p []byte, off int64) error {
	if f.d.fault != nil {
		if err := f.d.check(f.op + ".write"); err != nil {
			_, _ = f.f.WriteAt(p[:len(p)/2], off)
			return err
		}
	}
	_, err := f.f.WriteAt(p, off)
	return diskErr(err)
}

func (f *file) truncate(size int64) error {
	if err := f.d.check(f.op + ".truncate"); err != nil {
		return err
	}
	return diskErr(f.f.Truncate(size))
}

func (f *file) sync() error {
	if err := f.d.check(f.op + ".sync"); err != nil {
		return err
	}
	return diskErr(f.f.Sync())
}

func (f *file) size() (int64, error) {
	if err := f.d.check(f.op + ".stat"); err != nil {
		return 0, err
	}
	fi, err := f.f.Stat()
	if err != nil {
		return 0, err
	}
	return fi.Size(), nil
}

// readFull reads len(p) bytes; fewer, without an error, only where the file ends.
func (f *file) readFull(p []byte, off int64) (int, error) {
	n, err := f.readAt(p, off)
	if errors.Is(err, io.EOF) {
		err = nil
	}
	return n, err
}

func (f *file) close() {
	if f != nil {
		_ = f.f.Close()
	}
}

// diskErr adds the package's own error to what the system says.
func diskErr(err error) error {
	switch {
	case err == nil:
		return nil
	case errors.Is(err, syscall.ENOSPC), errors.Is(err, syscall.EDQUOT):
		if errors.Is(err, ErrNoSpace) {
			return err
		}
		return fmt.Errorf("%w: %w", ErrNoSpace, err)
	case errors.Is(err, os.ErrClosed):
		return ErrClosed
	}
	return err
}
