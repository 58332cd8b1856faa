package view

import (
	"fmt"
	"strings"
	"time"

	adminv1 "github.com/fanout-io/fanout/proto/fanout/admin/v1"
	catalogv1 "github.com/fanout-io/fanout/proto/fanout/catalog/v1"
)

// Policies is the document of `policy`.
type Policies struct {
	SchemaVersion int      `json:"schemaVersion"`
	Policies      []Policy `json:"policies"`
}

// Policy is one of them.
type Policy struct {
	Name             string   `json:"name"`
	Repositories     []string `json:"repositories"`
	Delivery         string   `json:"delivery"`
	MaxFreezeSeconds float64  `json:"maxFreezeSeconds"` // 0: not bounded
}

// PoliciesOf makes the document of an answer.
func PoliciesOf(list []*catalogv1.Policy) Policies {
	doc := Policies{SchemaVersion: SchemaVersion, Policies: []Policy{}}
	for _, p := range list {
		doc.Policies = append(doc.Policies, Policy{
			Name: p.GetName(), Repositories: append([]string{}, p.GetRepositories()...), Delivery: p.GetDelivery(), MaxFreezeSeconds: seconds(p.GetMaxFreeze()),
		})
	}
	return doc
}

// Text of the policies, in the order in which they count.
func (d Policies) Text(s Style) string {
	if len(d.Policies) == 0 {
		return "No policies: every repository is delivered as cascade.\n"
	}
	rows := make([][]cell, 0, len(d.Policies))
	for _, p := range d.Policies {
		freeze := ""
		if p.MaxFreezeSeconds > 0 {
			freeze = span(duration(p.MaxFreezeSeconds))
		}
		rows = append(rows, []cell{plain(p.Name), plain(p.Delivery), plain(freeze), plain(strings.Join(p.Repositories, ", "))})
	}
	return table(s, []string{"POLICY", "DELIVERY", "MAX FREEZE", "REPOSITORIES"}, rows) + "\nThe first that matches counts; a repository without one is delivered as cascade.\n"
}

// Freeze is the document of `freeze` and `thaw`.
type Freeze struct {
	SchemaVersion int        `json:"schemaVersion"`
	Group         string     `json:"group"`
	Frozen        bool       `json:"frozen"`
	Reason        string     `json:"reason"`
	By            string     `json:"by"`
	Since         *time.Time `json:"since,omitempty"`
	Until         *time.Time `json:"until,omitempty"`
	// Shorter are refs that are frozen for less time, as their policies bound it.
	Shorter []ShorterFreeze `json:"shorter,omitempty"`
	// Thawed: a freeze was in force and was ended.
	Thawed bool `json:"thawed,omitempty"`
}

// ShorterFreeze says of how many refs a freeze ends sooner.
type ShorterFreeze struct {
	Until   *time.Time `json:"until"`
	Refs    uint64     `json:"refs"`
	Example string     `json:"example"`
}

// FreezeOf makes the document of an answer about a group; without a freeze there is none.
func FreezeOf(group string, r *adminv1.SetFreezeResponse) Freeze {
	f := r.GetFreeze()
	doc := Freeze{SchemaVersion: SchemaVersion, Group: group, Thawed: r.GetThawed()}
	if f != nil {
		doc.Frozen, doc.Reason, doc.By, doc.Since, doc.Until = true, f.GetReason(), f.GetBy(), moment(f.GetSince()), moment(f.GetUntil())
	}
	for _, x := range r.GetShorter() {
		doc.Shorter = append(doc.Shorter, ShorterFreeze{moment(x.GetUntil()), x.GetRefs(), x.GetExample()})
	}
	return doc
}

// Text says what is in force.
func (f Freeze) Text(s Style) string {
	group := s.paint(bold, Clean(f.Group))
	if f.Thawed {
		return group + " is thawed: its tags move again\n"
	}
	if !f.Frozen {
		return group + " is not frozen: its tags move\n"
	}
	text := fmt.Sprintf("%s is frozen until %s", group, stamp(f.Until))
	if f.Since != nil && f.Until != nil {
		text += ", " + span(f.Until.Sub(*f.Since).Round(time.Minute)) + " in all"
	}
	text += "\n" + wrap(f.Reason, 2, textWidth)
	for _, x := range f.Shorter {
		text += fmt.Sprintf("Until %s only, by their policy: %s, as %s\n", stamp(x.Until), plural(int(x.Refs), "ref"), Clean(x.Example))
	}
	return text + "Its tags and those of the groups below stay as they are; content still comes.\n" +
		"Before that time they move again with: fanoutctl thaw " + Clean(f.Group) + "\n"
}
