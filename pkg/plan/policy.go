package plan

import (
	"cmp"
	"time"

	"google.golang.org/protobuf/types/known/durationpb"

	catalogv1 "github.com/fanout-io/fanout/proto/fanout/catalog/v1"
)

// ParsePolicies reads policies, several documents in a file; their order counts. Errors are as those of Parse.
func ParsePolicies(name string, data []byte) ([]*catalogv1.Policy, []Warning, error) {
	src := &source{name: name}
	docs := src.documents(data)
	if len(src.problems) > 0 {
		return nil, nil, src.err()
	}
	if len(docs) == 0 {
		src.fail(0, "", "has nothing in it; write a policy. One with repositories ['**'] and delivery cascade is as none")
	}
	if len(docs) > MaxPolicies {
		src.fail(docs[MaxPolicies].line, "", "has %d policies; at most %d are allowed", len(docs), MaxPolicies)
		return nil, nil, src.err()
	}
	var policies []*catalogv1.Policy
	var warnings []Warning
	total := 0
	names, patterns := map[string]int{}, map[string]string{}
	for _, doc := range docs {
		p := doc.policy()
		if p == nil {
			continue
		}
		if first, twice := names[p.Name]; twice && p.Name != "" {
			src.fail(doc.line, "metadata.name", "%s is the name of the policy in line %d too; give each its own", quote(p.Name), first)
		}
		names[p.Name] = doc.line
		if total += len(p.Repositories); total > maxPatterns {
			src.fail(doc.line, "spec.repositories", "with these the policies have %d patterns; at most %d are allowed, so write wider ones", total, maxPatterns)
			break
		}
		for _, pattern := range p.Repositories {
			if first := cmp.Or(patterns[everything], patterns[pattern]); first != "" {
				warnings = append(warnings, Warning{File: name, Line: doc.line, Key: "spec.repositories",
					Text: "policy " + p.Name + ": " + pattern + " is matched by policy " + first + " already, which comes first and counts"})
			}
		}
		for _, pattern := range p.Repositories {
			if patterns[pattern] == "" {
				patterns[pattern] = p.Name
			}
		}
		policies = append(policies, p)
	}
	if err := src.err(); err != nil {
		return nil, nil, err
	}
	return policies, warnings, nil
}

func (v value) policy() *catalogv1.Policy {
	name, spec, ok := v.head("Policy")
	if !ok {
		return nil
	}
	p := &catalogv1.Policy{Name: name}
	o, ok := spec.object("repositories", "delivery", "maxFreeze")
	if !ok {
		return nil
	}
	if r, found := o.need("repositories", "write patterns such as ['prod/**']"); found {
		for _, item := range r.texts(maxEntries, "write patterns such as ['prod/**']") {
			item.pattern(true, nil, "")
			p.Repositories = append(p.Repositories, item.node.Value)
		}
	}
	if d, found := o.need("delivery", "write cascade or staged"); found {
		p.Delivery = d.oneOf("cascade", "staged")
	}
	if d, found := o.get("maxFreeze"); found {
		if most := d.duration(time.Minute, MaxTime); most > 0 {
			p.MaxFreeze = durationpb.New(most)
		}
	}
	return p
}
