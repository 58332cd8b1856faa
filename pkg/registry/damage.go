package registry

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net/http"
	"os"
	"path/filepath"
	"strings"
)

// DropDamaged removes the content of a digest, blob or manifest, from the storage of the registry if its bytes are not what the digest says; from then on the registry says
// that it is not there, in all repositories, and takes it when it is put again. The registry itself would keep the damaged file then: where there is one, it throws away what is
// uploaded. False: there is nothing, or it is sound. The file is read whole; it may be called while the registry serves.
func (e *Embedded) DropDamaged(ctx context.Context, digest string) (bool, error) {
	if !ValidDigest(digest) {
		return false, fmt.Errorf("%q is not a sha256 digest: %w", digest, ErrInvalid)
	}
	word := strings.TrimPrefix(digest, "sha256:")
	path := filepath.Join(e.cfg.Dir, "data", "docker", "registry", "v2", "blobs", "sha256", word[:2], word, "data")
	f, err := os.Open(path)
	if errors.Is(err, fs.ErrNotExist) {
		return false, nil
	}
	if err != nil {
		return false, fmt.Errorf("looking at %s: %w", digest, err)
	}
	defer f.Close()
	h := sha256.New()
	_, err = io.Copy(h, reader{ctx, f})
	if ctx.Err() != nil {
		return false, ctx.Err()
	}
	// A disk that can't read the file any more has lost it as well.
	if err == nil && hex.EncodeToString(h.Sum(nil)) == word {
		return false, nil
	}
	if err := os.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return false, fmt.Errorf("removing damaged content: %w", err)
	}
	return true, nil
}

// reader ends with its context.
type reader struct {
	ctx context.Context
	r   io.Reader
}

func (r reader) Read(p []byte) (int, error) {
	if err := r.ctx.Err(); err != nil {
		return 0, err
	}
	return r.r.Read(p)
}

// DeleteBlob takes a blob out of a repository, so that it can be put again; one that is not there is taken out already. It is only for blobs whose bytes are wrong. ErrUnsupported: the
// registry does not do that, or it is a Harbor, whose database would go on saying that the blob is there: then the mend is in its storage.
func (c *Client) DeleteBlob(ctx context.Context, repo, digest string) error {
	if err := checkDigest(repo, digest); err != nil {
		return err
	}
	in := blobCall("delete blob", repo, digest, http.MethodDelete)
	if c.harbor {
		return &Error{Op: in.op, Repository: repo, Reference: digest, Message: "Harbor keeps books of its blobs that this would make wrong", kind: ErrUnsupported}
	}
	in.scopes = []string{"repository:" + repo + ":delete,pull"}
	in.want = []int{http.StatusOK, http.StatusAccepted, http.StatusNoContent, http.StatusNotFound}
	resp, err := c.do(ctx, in)
	if err != nil {
		return err
	}
	closeBody(resp)
	return nil
}
