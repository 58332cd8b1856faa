package agent

import (
	"context"
	"fmt"
	"path"
	"slices"
	"strings"

	treev1 "github.com/fanout-io/fanout/proto/fanout/tree/v1"
)

// answering is who answers at an address of fabric.parents or fabric.fallbackParents.
type answering struct {
	addr     string
	fallback bool
	id       *treev1.IdentifyResponse
	err      error
}

// checkParents looks whether the group is attached, and whether somebody answers at each address of fabric.parents who can be a parent.
func (a *Agent) checkParents(ctx context.Context) []check {
	if a.cfg.Headquarters() {
		return nil
	}
	parents := a.cfg.Fabric.Parents
	addrs := append(slices.Clone(parents), a.cfg.Fabric.FallbackParents...)
	answers := make([]answering, len(addrs))
	checks := together(len(addrs), func(i int) check {
		x := answering{addr: addrs[i], fallback: i >= len(parents)}
		x.id, x.err = a.whoAt(ctx, addrs[i])
		answers[i] = x
		return judgeParent(a.cfg.Group, a.cfg.Site, x)
	})
	roster := a.node.Roster()
	attachment := judgeAttachment(a.cfg.Group, roster.Root, roster.Parent, answers)
	if cut := a.cutOff(); cut != nil && attachment.state == checkOK {
		attachment = warn(attachment.name, fmt.Sprintf("%s; above, %s %s", attachment.detail, cut.GetGroup(), cutOffWords(cut)), "nothing is to be done here; see fanoutctl doctor at an agent of "+cut.GetGroup())
	}
	return append([]check{attachment}, checks...)
}

// judgeAttachment judges to which group this one is attached; parent is empty where it is to none, root where there is nobody who could attach it.
func judgeAttachment(group, root, parent string, answers []answering) check {
	const name = "parent"
	own := path.Dir(group)
	switch {
	case parent == own:
		return ok(name, "attached to "+parent)
	case parent == "" && root == "":
		return warn(name, "without a root the group is attached to no parent", "see quorum")
	case parent == "":
		return fail(name, "the group is attached to no parent", "see which of fabric.parents answer; 'fanoutctl tree' says what they said")
	}
	meant := slices.ContainsFunc(answers, func(x answering) bool { return x.fallback && x.id.GetGroup() == parent })
	named := slices.ContainsFunc(answers, func(x answering) bool { return !x.fallback && x.id.GetGroup() == parent })
	if meant && !named {
		return warn(name, fmt.Sprintf("attached to the fallback parent %s: %s was out of reach", parent, own), "start the agents of "+own+", or mend the network to them; the group goes back by itself")
	}
	return warn(name, fmt.Sprintf("attached to %s, past %s: %s neither hears of this group nor passes its content on", parent, own, own), properParents(own))
}

// properParents is the mend where fabric.parents names others than the group above.
func properParents(own string) string {
	return fmt.Sprintf("name agents of %s in fabric.parents, and those of groups further up in fabric.fallbackParents; where there is no %s, leave it as it is", own, own)
}

// judgeParent judges who answers at an address: of the group above, or with a fallback parent one further up.
func judgeParent(group, site string, x answering) check {
	if x.err != nil {
		// With TLS a stranger's certificate says who he is, and no call reaches him.
		if id := strangerOf(x.err); id != nil {
			x.id, x.err = id, nil
		}
	}
	name, key, own := "parent at "+x.addr, "fabric.parents", path.Dir(group)
	if x.fallback {
		key = "fabric.fallbackParents"
	}
	there := x.id.GetGroup()
	who := fmt.Sprintf("%s of %s", x.id.GetSite(), there)
	instead := fmt.Sprintf("take the address out of %s, and name agents of %s there", key, own)
	if x.fallback {
		instead = fmt.Sprintf("take the address out of %s; only agents of groups above %s belong there", key, group)
	}
	switch {
	case x.err != nil:
		if detail, mend := refused(x.err); detail != "" {
			return warn(name, detail, mend)
		}
		return warn(name, "it does not answer: "+callWords(x.err), "start that agent, mend the network to it, or take the address out of "+key)
	case there == group && x.id.GetSite() == site:
		return warn(name, "it is this agent itself, which can't be its own parent", instead)
	case there == group:
		return warn(name, fmt.Sprintf("it is %s, a member of this group, which can't be its parent", x.id.GetSite()), instead)
	case !strings.HasPrefix(group, there+"/"):
		return warn(name, fmt.Sprintf("%s answers, which is not above %s and refuses it", who, group), instead)
	case !x.fallback && there != own:
		return warn(name, fmt.Sprintf("%s answers, which is past %s", who, own), properParents(own))
	}
	return ok(name, who+" answers")
}

// whoAt asks who answers at a fabric address.
func (a *Agent) whoAt(ctx context.Context, addr string) (*treev1.IdentifyResponse, error) {
	ctx, cancel := context.WithTimeout(ctx, doctorTimeout)
	defer cancel()
	conn, err := a.peers.conn(ctx, addr)
	if err != nil {
		return nil, err
	}
	return treev1.NewTreeServiceClient(conn).Identify(ctx, &treev1.IdentifyRequest{})
}
