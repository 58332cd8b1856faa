package main

import (
	"slices"
	"strings"
	"testing"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	adminv1 "github.com/fanout-io/fanout/proto/fanout/admin/v1"
)

// TestGroupForget: nothing is forgotten before somebody said yes to what it is.
func TestGroupForget(t *testing.T) {
	var asked []string
	server := onSocket(t, &fake{forget: func(r *adminv1.ForgetGroupRequest) (*adminv1.ForgetGroupResponse, error) {
		word := "forget " + r.GetGroup()
		if r.GetDryRun() {
			word = "look at " + r.GetGroup()
		}
		if asked = append(asked, word); r.GetGroup() == "hq/gd" {
			return nil, status.Error(codes.FailedPrecondition, "hq/gd is synced: stop its agents first")
		}
		return &adminv1.ForgetGroupResponse{Groups: []string{"hq/hn"}, Sites: []string{"hn-a"}}, nil
	}})
	for _, c := range []struct {
		args, typed string
		code        int
		asked       []string
		says        string
	}{
		{"hq/hn", "y\n", exitOK, []string{"look at hq/hn", "forget hq/hn"}, "Would be forgotten: 1 group (hq/hn) with 1 site (hn-a)"},
		{"hq/hn", "n\n", exitFailed, []string{"look at hq/hn"}, "nothing was forgotten"},
		{"hq/hn --yes", "", exitOK, []string{"forget hq/hn"}, ""},
		{"hq/gd", "y\n", exitFailed, []string{"look at hq/gd"}, "stop its agents first"},
		{"", "y\n", exitUsage, nil, "one GROUP"},
	} {
		asked = nil
		r := runTyping(t, c.typed, append([]string{"--server", server, "group", "forget"}, strings.Fields(c.args)...)...)
		if r.code != c.code || !slices.Equal(asked, c.asked) || !strings.Contains(r.err, c.says) {
			t.Errorf("%q with %q: asked for %q: %+v", c.args, c.typed, asked, r)
		}
		if (c.code == exitOK) != strings.Contains(r.out, "Forgotten: 1 group (hq/hn)") {
			t.Errorf("%q: %s", c.args, r.out)
		}
	}
	asked = nil
	if r := runCtl(t, "--server", server, "group", "forget", "hq/hn"); r.code != exitUsage || asked != nil || !strings.Contains(r.err, "--yes") {
		t.Errorf("where nobody can be asked: %q, %+v", asked, r)
	}
}
