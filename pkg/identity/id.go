package identity

import (
	"crypto/x509"
	"fmt"
	"strings"

	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"github.com/spiffe/go-spiffe/v2/svid/x509svid"
)

// Bounds of a name. X.509 has none; logs, metrics and file names do.
const (
	MaxSegment = 63  // bytes of a site's or user's name and of each part of a group's path
	MaxGroup   = 255 // bytes of a group's path
)

// ID is an agent (Group and Site) or a person (User and, for a person who belongs to one group, Group).
type ID struct {
	Group string // path, such as hq/guangdong
	Site  string
	User  string
}

// IsSite says that the ID is an agent's.
func (id ID) IsSite() bool { return id.Site != "" }

// IsUser says that the ID is a person's.
func (id ID) IsUser() bool { return id.User != "" }

// String is the path of the SPIFFE ID without its first slash, such as group/hq/site/hq-a. The zero ID gives "".
func (id ID) String() string {
	var b strings.Builder
	if id.Group != "" {
		b.WriteString("group/" + id.Group)
	}
	for _, part := range [][2]string{{"site", id.Site}, {"user", id.User}} {
		if part[1] == "" {
			continue
		}
		if b.Len() > 0 {
			b.WriteByte('/')
		}
		b.WriteString(part[0] + "/" + part[1])
	}
	return b.String()
}

// Validate says what is wrong with the ID, if anything is.
func (id ID) Validate() error {
	switch {
	case id.Site == "" && id.User == "":
		return fmt.Errorf("%w: it names neither a site nor a user", ErrID)
	case id.Site != "" && id.User != "":
		return fmt.Errorf("%w: it names both a site and a user", ErrID)
	case id.Site != "" && id.Group == "":
		return fmt.Errorf("%w: site %q has no group", ErrID, id.Site)
	case len(id.Group) > MaxGroup:
		return fmt.Errorf("%w: the group is longer than %d bytes", ErrID, MaxGroup)
	}
	if id.Group != "" {
		for part := range strings.SplitSeq(id.Group, "/") {
			if err := validSegment("group", part); err != nil {
				return err
			}
		}
	}
	if id.Site != "" {
		return validSegment("site", id.Site)
	}
	return validSegment("user", id.User)
}

func validSegment(what, s string) error {
	if len(s) > MaxSegment {
		return fmt.Errorf("%w: part of the %s is longer than %d bytes", ErrID, what, MaxSegment)
	}
	if err := spiffeid.ValidatePathSegment(s); err != nil {
		return fmt.Errorf("%w: %s %q: %w", ErrID, what, s, err)
	}
	return nil
}

// URI is the whole SPIFFE ID in a trust domain.
func (id ID) URI(trustDomain string) (string, error) {
	if err := id.Validate(); err != nil {
		return "", err
	}
	td, err := parseTrustDomain(trustDomain)
	if err != nil {
		return "", err
	}
	return td.IDString() + "/" + id.String(), nil
}

// ParseID reads a whole SPIFFE ID. It accepts exactly what ID.URI makes, byte for byte.
func ParseID(uri string) (id ID, trustDomain string, err error) {
	s, err := spiffeid.FromString(uri)
	if err != nil {
		return ID{}, "", fmt.Errorf("%w: %q: %w", ErrID, clip(uri), err)
	}
	id, err = fromSPIFFE(s)
	if err != nil {
		return ID{}, "", err
	}
	return id, s.TrustDomain().Name(), nil
}

// fromSPIFFE reads the path from its end: the last two parts say who, what is before them where. So a group may have a part
// that is called "site" and there is still one reading only.
func fromSPIFFE(s spiffeid.ID) (ID, error) {
	bad := func() (ID, error) {
		return ID{}, fmt.Errorf("%w: %q; want spiffe://%s/group/PATH/site/NAME or spiffe://%s/user/NAME",
			ErrID, clip(s.String()), s.TrustDomain().Name(), s.TrustDomain().Name())
	}
	parts := strings.Split(strings.TrimPrefix(s.Path(), "/"), "/")
	n := len(parts)
	if n < 2 {
		return bad()
	}
	var id ID
	switch parts[n-2] {
	case "site":
		id.Site = parts[n-1]
	case "user":
		id.User = parts[n-1]
	default:
		return bad()
	}
	if where := parts[:n-2]; len(where) > 0 {
		if where[0] != "group" || len(where) < 2 {
			return bad()
		}
		id.Group = strings.Join(where[1:], "/")
	}
	if err := id.Validate(); err != nil {
		return ID{}, err
	}
	return id, nil
}

// CertID reads the ID in a certificate, without asking who stands behind it.
func CertID(cert *x509.Certificate) (id ID, trustDomain string, err error) {
	s, err := x509svid.IDFromCert(cert)
	if err != nil {
		return ID{}, "", fmt.Errorf("%w: %w", ErrID, err)
	}
	id, err = fromSPIFFE(s)
	if err != nil {
		return ID{}, "", err
	}
	return id, s.TrustDomain().Name(), nil
}

func parseTrustDomain(name string) (spiffeid.TrustDomain, error) {
	if strings.Contains(name, "/") || strings.Contains(name, ":") {
		return spiffeid.TrustDomain{}, fmt.Errorf("trust domain %q: want a name such as example.com", clip(name))
	}
	td, err := spiffeid.TrustDomainFromString(name)
	if err != nil {
		return spiffeid.TrustDomain{}, fmt.Errorf("trust domain %q: %w; want a name such as example.com", clip(name), err)
	}
	return td, nil
}

// clip bounds what a stranger can put into our messages.
func clip(s string) string {
	const most = 300
	if len(s) <= most {
		return s
	}
	return s[:most] + "…"
}
