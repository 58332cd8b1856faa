package registry

import (
	"errors"
	"regexp"
	"strings"
)

// QuotaRefusal is what Harbor says of a quota that a push would exceed, in Harbor's units, such as "2.9 GiB".
type QuotaRefusal struct {
	// Project whose quota it is.
	Project string
	// Adding is what the push would add, Used what the project uses, Limit what it may use. All are empty where the registry does not say.
	Adding, Used, Limit string
}

// harborQuota are Harbor's words; nothing else of its answer has the figures, and to ask for them takes rights that a robot account need not have.
var harborQuota = regexp.MustCompile(`adding (\S+ \S+) of storage resource, which when updated to current usage of (\S+ \S+) will exceed the configured upper limit of (\S+ \S+?)\.?$`)

// QuotaOf gives the figures of an ErrQuota; false: err is none.
func QuotaOf(err error) (QuotaRefusal, bool) {
	var e *Error
	if !errors.As(err, &e) || !errors.Is(e, ErrQuota) {
		return QuotaRefusal{}, false
	}
	project, _, _ := strings.Cut(e.Repository, "/")
	q := QuotaRefusal{Project: project}
	if m := harborQuota.FindStringSubmatch(strings.TrimSpace(e.Message)); m != nil {
		q.Adding, q.Used, q.Limit = m[1], m[2], m[3]
	}
	return q, true
}
