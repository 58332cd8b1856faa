package main

import (
	"context"
	"fmt"
	"strings"

	"github.com/spf13/cobra"
	"google.golang.org/protobuf/proto"

	"github.com/fanout-io/fanout/cmd/fanoutctl/internal/client"
	"github.com/fanout-io/fanout/pkg/view"
	adminv1 "github.com/fanout-io/fanout/proto/fanout/admin/v1"
	catalogv1 "github.com/fanout-io/fanout/proto/fanout/catalog/v1"
)

func (a *app) diffCommand() *cobra.Command {
	return &cobra.Command{
		Use:   "diff A B",
		Short: "Compare two sites, or groups",
		Long: `Compares what two sites should show, by one digest of their catalogs, and what their registries do show: under every
tag of the catalog the digest and the referrers that are listed, by one digest too. Only where these differ are the
refs listed, with what each site's catalog says and its registry shows. The manifests and blobs under the tags are not
looked at: that is for "fanoutctl verify". A group stands for its root, or its first member that has a registry. Sites
that subscribe to different repositories are compared in what both have. A witness has no registry: its catalog alone
is compared.

Exit codes: 0 equal, 4 not equal, 3 one of the two could not be looked at.`,
		Example: `  fanoutctl diff hq-a hq-b
  fanoutctl diff hq hq/guangdong -o json`,
		Args:              args(2, 2, "two sites or groups"),
		ValidArgsFunction: a.completeSites(2),
		RunE: func(cmd *cobra.Command, args []string) error {
			return a.talk(cmd.Context(), func(ctx context.Context, c *client.Client) error {
				doc, err := a.diff(ctx, c, args[0], args[1])
				if err != nil {
					return err
				}
				if err := a.print(doc); err != nil {
					return err
				}
				if !doc.Equal {
					return &exitError{code: exitNotEqual}
				}
				return nil
			})
		},
	}
}

// diff compares two sites by digest first, and by ref where those differ.
func (a *app) diff(ctx context.Context, c *client.Client, nameA, nameB string) (view.Diff, error) {
	tree, err := oneTree(ctx, c)
	if err != nil {
		return view.Diff{}, err
	}
	var sites [2]string
	for i, name := range []string{nameA, nameB} {
		if sites[i], err = siteNamed(tree, name); err != nil {
			return view.Diff{}, err
		}
	}
	within, err := a.scopes(ctx, c, sites)
	if err != nil {
		return view.Diff{}, err
	}
	compare := func(list bool) (view.Diff, error) {
		var both [2]view.VerifiedSite
		for i, site := range sites {
			if both[i], err = a.tagsOf(ctx, c, &adminv1.VerifyRequest{Site: site, List: list, Within: within}); err != nil {
				return view.Diff{}, err
			}
		}
		return view.DiffOf(both[0], both[1]), nil
	}
	d, err := compare(false)
	if err != nil || d.Equal {
		return d, err
	}
	return compare(true)
}

// tagsOf looks at the tags of one site. That it can't be reached is an error of its own.
func (a *app) tagsOf(ctx context.Context, c *client.Client, req *adminv1.VerifyRequest) (view.VerifiedSite, error) {
	req.TagsOnly = true
	doc, err := a.verify(ctx, c, req)
	switch {
	case err != nil:
		return view.VerifiedSite{}, err
	case len(doc.Sites) != 1 || doc.Sites[0].State == view.VerifyUnknown && doc.Sites[0].Reason == "":
		return view.VerifiedSite{}, awayError(req.GetSite(), "its last word did not come")
	case doc.Sites[0].State == view.VerifyUnreachable:
		return view.VerifiedSite{}, awayError(req.GetSite(), doc.Sites[0].Reason)
	}
	for _, d := range doc.Sites[0].Differences {
		if d.Ref == "" && d.Kind == "unreadable" { // what it says that it shows was not looked at
			return view.VerifiedSite{}, awayError(req.GetSite(), d.Reason)
		}
	}
	return doc.Sites[0], nil
}

func awayError(site, why string) error {
	return &exitError{code: exitPartial, text: site + " could not be looked at: " + why, todo: "See: fanoutctl tree"}
}

// siteNamed finds the site that a name stands for.
func siteNamed(tree *adminv1.TreeResponse, name string) (string, error) {
	for _, g := range tree.GetGroups() {
		for _, m := range g.GetMembers() {
			if m.GetSite() == name {
				return name, nil
			}
		}
	}
	for _, g := range tree.GetGroups() {
		if g.GetGroup() != strings.TrimSuffix(name, "/") {
			continue
		}
		found := ""
		for _, m := range g.GetMembers() {
			if m.GetRegistryType() != "none" && (found == "" || m.GetSite() == g.GetRoot()) {
				found = m.GetSite()
			}
		}
		if found != "" {
			return found, nil
		}
		return "", fmt.Errorf("group %s has no member with a registry", name)
	}
	return "", &client.Problem{What: fmt.Sprintf("there is no site and no group %q", name), Todo: "See: fanoutctl tree"}
}

// scopes gives those within which the two are to be compared: none where they are equal.
func (a *app) scopes(ctx context.Context, c *client.Client, sites [2]string) ([]*catalogv1.Scope, error) {
	var within []*catalogv1.Scope
	var both [2]*catalogv1.Scope
	for i, site := range sites {
		v, err := unary(ctx, func(ctx context.Context) (*adminv1.ViewResponse, error) {
			return c.View(ctx, &adminv1.ViewRequest{Site: site})
		})
		if client.Lost(err) {
			// Is it that site, or the agent that we ask?
			if _, away := a.tagsOf(ctx, c, &adminv1.VerifyRequest{Site: site}); away != nil {
				return nil, away
			}
		}
		if err != nil {
			return nil, err
		}
		if both[i] = v.GetScope(); both[i] != nil {
			within = append(within, both[i])
		}
	}
	if proto.Equal(both[0], both[1]) {
		return nil, nil
	}
	return within, nil
}
