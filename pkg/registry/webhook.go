package registry

import (
	"encoding/json"
	"fmt"
	"time"
)

// Bounds of a webhook.
const (
	// MaxHookBytes is the largest body that is read.
	MaxHookBytes = 4 << 20
	maxHookItems = 10_000
	maxActor     = 128
)

// Actions of an Event.
const (
	ActionPush   = "push"
	ActionDelete = "delete"
)

// Event is what a webhook says happened. It is only a hint to look: webhooks come late, twice, in another order, or never.
type Event struct {
	// Action is ActionPush or ActionDelete.
	Action string
	// Repository that changed.
	Repository string
	// Tag that changed; empty when the event is about a digest alone.
	Tag string
	// Digest; may be empty.
	Digest string
	// Actor who did it, where the registry says so; nothing vouches for it.
	Actor string
	// UserAgent of the client that did it, where the registry says so.
	UserAgent string
	// Time at which the registry says that it happened; may be zero.
	Time time.Time
}

type harborData struct {
	Resources []struct {
		Digest string `json:"digest"`
		Tag    string `json:"tag"`
	} `json:"resources"`
	Repository struct {
		FullName  string `json:"repo_full_name"`
		Namespace string `json:"namespace"`
		Name      string `json:"name"`
	} `json:"repository"`
}

type harborHook struct {
	Type     string `json:"type"`
	Operator string `json:"operator"`
	// Default format.
	OccurAt   int64      `json:"occur_at"`
	EventData harborData `json:"event_data"`
	// CloudEvents format.
	SpecVersion string     `json:"specversion"`
	Time        string     `json:"time"`
	Data        harborData `json:"data"`
}

// ParseHarbor reads a webhook of Harbor, in its Default or its CloudEvents format. Events that change nothing (pulls, scans, replications) give none.
func ParseHarbor(body []byte) ([]Event, error) {
	if len(body) > MaxHookBytes {
		return nil, fmt.Errorf("webhook of %d bytes exceeds %d: %w", len(body), MaxHookBytes, ErrInvalid)
	}
	var h harborHook
	if err := json.Unmarshal(body, &h); err != nil {
		return nil, fmt.Errorf("webhook is not valid JSON (%v): %w", err, ErrInvalid)
	}
	if h.Type == "" {
		return nil, fmt.Errorf("webhook has no type: %w", ErrInvalid)
	}
	var action string
	switch h.Type {
	case "PUSH_ARTIFACT", "harbor.artifact.pushed":
		action = ActionPush
	case "DELETE_ARTIFACT", "harbor.artifact.deleted":
		action = ActionDelete
	default:
		return nil, nil
	}
	data, when := h.EventData, time.Time{}
	if h.SpecVersion != "" {
		data = h.Data
		when, _ = time.Parse(time.RFC3339, h.Time)
	} else if h.OccurAt > 0 {
		when = time.Unix(h.OccurAt, 0)
	}
	return data.events(action, actorName(h.Operator), when.UTC())
}

func (d *harborData) events(action, actor string, when time.Time) ([]Event, error) {
	repo := d.Repository.FullName
	if repo == "" {
		repo = d.Repository.Namespace + "/" + d.Repository.Name
	}
	if len(d.Resources) > maxHookItems {
		return nil, fmt.Errorf("webhook with %d resources exceeds %d: %w", len(d.Resources), maxHookItems, ErrInvalid)
	}
	events := make([]Event, 0, len(d.Resources))
	for _, r := range d.Resources {
		e := Event{Action: action, Repository: repo, Tag: r.Tag, Digest: r.Digest, Actor: actor, Time: when}
		// A push by digest has the digest for a tag.
		if ValidDigest(e.Tag) {
			if e.Digest == "" {
				e.Digest = e.Tag
			}
			e.Tag = ""
		}
		if err := e.check(); err != nil {
			return nil, err
		}
		events = append(events, e)
	}
	return events, nil
}

// check refuses names that no registry could have.
func (e *Event) check() error {
	switch {
	case !ValidRepository(e.Repository):
		return fmt.Errorf("webhook names repository %q: %w", clean(e.Repository), ErrInvalid)
	case e.Tag != "" && !ValidTag(e.Tag):
		return fmt.Errorf("webhook names tag %q: %w", clean(e.Tag), ErrInvalid)
	case e.Digest != "" && !ValidDigest(e.Digest):
		return fmt.Errorf("webhook names digest %q: %w", clean(e.Digest), ErrInvalid)
	case e.Tag == "" && e.Digest == "":
		return fmt.Errorf("webhook about %s names neither tag nor digest: %w", e.Repository, ErrInvalid)
	}
	return nil
}

// actorName bounds a name: it is kept in the catalog, and must not make a push unfit for it.
func actorName(s string) string {
	if len(s) > maxActor {
		s = s[:maxActor]
	}
	return clean(s)
}

type distributionHook struct {
	Events []struct {
		Timestamp string `json:"timestamp"`
		Action    string `json:"action"`
		Target    struct {
			MediaType  string `json:"mediaType"`
			Digest     string `json:"digest"`
			Repository string `json:"repository"`
			Tag        string `json:"tag"`
		} `json:"target"`
		Request struct {
			UserAgent string `json:"useragent"`
		} `json:"request"`
		Actor struct {
			Name string `json:"name"`
		} `json:"actor"`
	} `json:"events"`
}

// ParseDistribution reads notifications of the distribution registry. Pulls, mounts and pushes of blobs give no event; a deletion by digest may be
// that of a blob, which the registry does not tell apart.
func ParseDistribution(body []byte) ([]Event, error) {
	if len(body) > MaxHookBytes {
		return nil, fmt.Errorf("notification of %d bytes exceeds %d: %w", len(body), MaxHookBytes, ErrInvalid)
	}
	var h distributionHook
	if err := json.Unmarshal(body, &h); err != nil {
		return nil, fmt.Errorf("notification is not valid JSON (%v): %w", err, ErrInvalid)
	}
	if len(h.Events) > maxHookItems {
		return nil, fmt.Errorf("notification with %d events exceeds %d: %w", len(h.Events), maxHookItems, ErrInvalid)
	}
	var events []Event
	for _, in := range h.Events {
		if in.Action != ActionPush && in.Action != ActionDelete {
			continue
		}
		if in.Action == ActionPush && !isManifestType(in.Target.MediaType) {
			continue
		}
		e := Event{
			Action: in.Action, Repository: in.Target.Repository, Tag: in.Target.Tag, Digest: in.Target.Digest,
			Actor: actorName(in.Actor.Name), UserAgent: clean(in.Request.UserAgent),
		}
		if when, err := time.Parse(time.RFC3339, in.Timestamp); err == nil {
			e.Time = when.UTC()
		}
		if err := e.check(); err != nil {
			return nil, err
		}
		events = append(events, e)
	}
	return events, nil
}

func isManifestType(mediaType string) bool {
	switch mediaType {
	case MediaTypeOCIManifest, MediaTypeOCIIndex, MediaTypeOCIArtifact, MediaTypeDockerManifest, MediaTypeDockerList:
		return true
	}
	return false
}
