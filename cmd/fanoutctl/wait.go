package main

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	"google.golang.org/grpc"

	"github.com/fanout-io/fanout/cmd/fanoutctl/internal/client"
	"github.com/fanout-io/fanout/pkg/view"
	adminv1 "github.com/fanout-io/fanout/proto/fanout/admin/v1"
)

// tally counts the sites that want a ref, by how they end.
type tally struct {
	total, delivered, failed int
	left                     int // somebody changed it there, and it is left so
	held                     int // a wave, a freeze or a person's word is waited for
}

func tallyOf(sites []view.Site) (t tally) {
	for _, s := range sites {
		switch s.State {
		case "unsubscribed":
			continue
		case "delivered":
			t.delivered++
		case "failed":
			t.failed++
		case "drifted", "accepted":
			t.left++
		case "held":
			t.held++
		}
		t.total++
	}
	return t
}

// ended says that nothing more is going to happen anywhere unless somebody does something. What failed is tried again.
func (t tally) ended() bool { return t.delivered+t.left+t.held >= t.total }

// rest says in words what is with the sites that ended otherwise than delivered.
func (t tally) rest() string {
	var parts []string
	if t.failed > 0 {
		parts = append(parts, fmt.Sprintf("%d failed", t.failed))
	}
	if t.left > 0 {
		parts = append(parts, fmt.Sprintf("%d left as somebody changed it there", t.left))
	}
	if t.held > 0 {
		parts = append(parts, fmt.Sprintf("%d held for a wave, by a freeze or for a person's decision", t.held))
	}
	if len(parts) == 0 {
		return "what is with the others is not known"
	}
	return strings.Join(parts, ", ")
}

// awaitGone follows a deletion until every site in scope has let go of the tag, or never will by itself. It gives the last picture; nil: none came.
func (a *app) awaitGone(ctx context.Context, c *client.Client, ref string, revision uint64, show func(tally), note func(string)) (*adminv1.WhereResponse, error) {
	var last *adminv1.WhereResponse
	came := false
	over := errors.New("over")
	err := a.persist(ctx, c, &came, note, func(ctx context.Context) error {
		return each(ctx, 0, func(ctx context.Context) (grpc.ServerStreamingClient[adminv1.WhereResponse], error) {
			return c.Where(ctx, &adminv1.WhereRequest{Ref: ref, Watch: true})
		}, func(w *adminv1.WhereResponse) error {
			came = true
			switch {
			case w.GetNoRoot() != "":
				return nil // what one agent knows itself; when there is a root, more comes
			case w.GetRevision() < revision:
				return nil // a member that has not heard of it yet
			case w.GetDigest() != "":
				return fmt.Errorf("it was published again meanwhile, as revision %d with %s", w.GetRevision(), w.GetDigest())
			}
			last = w
			t := tallyOf(view.SitesOf(w.GetSites()))
			show(t)
			if t.ended() {
				return over
			}
			return nil
		})
	})
	if errors.Is(err, over) {
		err = nil
	} else if err == nil {
		err = errors.New("the agent ended its answer before the tag was gone; see: fanoutctl where " + ref)
	}
	return last, settle(ctx, c, err)
}

// goneVerdict makes an exit code of how a deletion ended.
func goneVerdict(ref string, r *adminv1.UnpublishResponse, last *adminv1.WhereResponse, err error) error {
	t := tallyOf(view.SitesOf(last.GetSites()))
	where := "See why with: fanoutctl where " + ref
	some := fmt.Sprintf("%s: deleted as revision %d, and gone from %d of %s; ", ref, r.GetRevision(), t.delivered, view.Plural(t.total, "site"))
	switch {
	case err == nil && t.delivered >= t.total:
		return nil
	case err == nil:
		return &exitError{code: exitPartial, text: some + t.rest(), todo: where}
	case errors.Is(err, errTimeout) && last == nil:
		return &exitError{code: exitTimeout, text: fmt.Sprintf("%s: deleted as revision %d, but timed out before any site was heard of", ref, r.GetRevision()), todo: where}
	case errors.Is(err, errTimeout) && t.failed > 0 && t.delivered+t.failed+t.left+t.held >= t.total:
		return &exitError{code: exitPartial, text: some + t.rest() + "; what failed is tried again", todo: where}
	case errors.Is(err, errTimeout):
		return &exitError{code: exitTimeout, text: "timed out: " + some + "the others are on their way", todo: where}
	}
	var problem *client.Problem
	todo := ""
	if errors.As(err, &problem) {
		todo = problem.Todo
	}
	return &exitError{code: exitFailed, text: fmt.Sprintf("%s: deleted as revision %d, but: %s", ref, r.GetRevision(), err), todo: todo}
}

// unpublish deletes a tag and, with wait, stays until it is gone.
func (a *app) unpublish(ctx context.Context, ref string, wait bool) error {
	return a.talk(ctx, func(ctx context.Context, c *client.Client) error {
		r, err := unary(ctx, func(ctx context.Context) (*adminv1.UnpublishResponse, error) {
			return c.Unpublish(a.traced(ctx), &adminv1.UnpublishRequest{Ref: ref})
		})
		if err != nil {
			return err
		}
		doc := view.UnpublishOf(r)
		if !wait {
			return a.print(doc)
		}
		p := a.newProgress([]string{ref}, true)
		last, err := a.awaitGone(ctx, c, ref, r.GetRevision(), func(t tally) {
			text := fmt.Sprintf("revision %d, gone from %d of %s", r.GetRevision(), t.delivered, view.Plural(t.total, "site"))
			if t.failed > 0 {
				text += fmt.Sprintf(", %d failed", t.failed)
			}
			p.show(0, share(t.delivered, t.total), text, 0)
		}, func(text string) { p.note(0, text) })
		p.close()
		if last != nil {
			sites, asOf := view.SitesOf(last.GetSites()), last.GetAsOf().AsTime().Truncate(time.Second)
			doc.Sites, doc.AsOf = &sites, &asOf
		}
		if err := a.print(doc); err != nil {
			return err
		}
		if a.flags.output == "table" && doc.Sites != nil && missing(*doc.Sites) > 0 {
			if _, err := fmt.Fprintln(a.stdout, "\n"+view.SitesText(a.style(), *doc.Sites, nil)); err != nil {
				return err
			}
		}
		return goneVerdict(ref, r, last, err)
	})
}

func share(have, want int) float64 {
	if want <= 0 {
		return 1
	}
	return float64(have) / float64(want)
}
