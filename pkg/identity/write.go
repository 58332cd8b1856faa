package identity

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
)

// writeFile replaces path whole or not at all.
func writeFile(path string, data []byte, mode os.FileMode) error {
	return write(path, data, mode, os.Rename)
}

// writeNew makes path whole or not at all, and fails where it exists: a link never replaces.
func writeNew(path string, data []byte, mode os.FileMode) error {
	err := write(path, data, mode, os.Link)
	if errors.Is(err, fs.ErrExist) {
		return fmt.Errorf("%s %w; it is not overwritten", path, ErrExists)
	}
	return err
}

func write(path string, data []byte, mode os.FileMode, place func(from, to string) error) (err error) {
	dir := filepath.Dir(path)
	f, err := os.CreateTemp(dir, "."+filepath.Base(path)+".*") // made with 0600
	if err != nil {
		return err
	}
	defer os.Remove(f.Name()) // gone already after a rename
	_, err = f.Write(data)
	if err == nil {
		err = f.Chmod(mode)
	}
	if err == nil {
		err = f.Sync()
	}
	if cerr := f.Close(); err == nil {
		err = cerr
	}
	if err != nil {
		return fmt.Errorf("writing %s: %w", path, err)
	}
	if err := place(f.Name(), path); err != nil {
		return err
	}
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	defer d.Close()
	return d.Sync()
}
