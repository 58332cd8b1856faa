// Package view turns the agent's answers into what people and scripts see: documents with fixed keys, the same for fanoutctl's -o json and yaml and for the JSON under /api/v1, and
// tables for terminals.
//
// All of it is pure: answers in, text out; no clock (ages are counted from the moment at which a picture was taken), no terminal.
// The keys of the documents are relied upon by scripts: add to them, never rename.
package view

import (
	"math"
	"slices"
	"strings"
	"time"

	"google.golang.org/protobuf/types/known/timestamppb"

	adminv1 "github.com/fanout-io/fanout/proto/fanout/admin/v1"
	treev1 "github.com/fanout-io/fanout/proto/fanout/tree/v1"
)

// SchemaVersion of all documents. It is raised when a key changes its meaning or goes; new keys don't raise it.
const SchemaVersion = 1

// Tree is the document of `tree`.
type Tree struct {
	SchemaVersion int        `json:"schemaVersion"`
	AsOf          *time.Time `json:"asOf,omitempty"`
	Groups        []Group    `json:"groups"`
	Limits
}

// Group is one group of a Tree.
type Group struct {
	Group       string            `json:"group"`
	Parent      string            `json:"parent"`
	Tier        uint32            `json:"tier"`
	Root        string            `json:"root"`
	Term        uint64            `json:"term"`
	State       string            `json:"state"`
	Revision    uint64            `json:"revision"`
	Lag         uint64            `json:"lag"`
	LagSeconds  float64           `json:"lagSeconds"`
	Reason      string            `json:"reason"`
	Carrier     string            `json:"carrier"`
	Labels      map[string]string `json:"labels"`
	LastContact *time.Time        `json:"lastContact,omitempty"`
	Members     []Member          `json:"members"`
	Freeze      *GroupFreeze      `json:"freeze,omitempty"`
	// Worst state of the group and all that is below it, and the group where that is.
	Worst         string     `json:"worst"`
	WorstAt       string     `json:"worstAt"`
	BytesLeft     int64      `json:"bytesLeft"`
	EtaSeconds    float64    `json:"etaSeconds"`
	DetachedSince *time.Time `json:"detachedSince,omitempty"`
	// Answers: the group's root is heard of now, also where the state is unreachable because of a member.
	Answers bool `json:"answers"`
}

// GroupFreeze is the freeze of a Group that is in force.
type GroupFreeze struct {
	Reason string     `json:"reason"`
	By     string     `json:"by"`
	Since  *time.Time `json:"since,omitempty"`
	Until  *time.Time `json:"until,omitempty"`
}

// Member is one site of a Group.
type Member struct {
	Site         string     `json:"site"`
	State        string     `json:"state"`
	Registry     string     `json:"registry"`
	RegistryType string     `json:"registryType"`
	Revision     uint64     `json:"revision"`
	BytesLeft    int64      `json:"bytesLeft"`
	Rate         int64      `json:"rate"`
	Pending      uint64     `json:"pending"`
	Reason       string     `json:"reason"`
	Version      string     `json:"version"`
	LastContact  *time.Time `json:"lastContact,omitempty"`
	Lag          uint64     `json:"lag"`
	LagSeconds   float64    `json:"lagSeconds"`
	EtaSeconds   float64    `json:"etaSeconds"`
	// Disk of the spool, and RegistryDisk of an embedded registry; null where that is not known.
	Disk               *Disk      `json:"disk,omitempty"`
	RegistryDisk       *Disk      `json:"registryDisk,omitempty"`
	CertificateExpires *time.Time `json:"certificateExpires,omitempty"`
}

// Disk is the room on a file system, in bytes.
type Disk struct {
	Free  int64 `json:"free"`
	Total int64 `json:"total"`
}

func diskOf(d *treev1.Disk) *Disk {
	if d == nil {
		return nil
	}
	return &Disk{Free: d.GetFree(), Total: d.GetTotal()}
}

// Where is the document of `where`.
type Where struct {
	SchemaVersion int    `json:"schemaVersion"`
	Ref           string `json:"ref"`
	Revision      uint64 `json:"revision"`
	Digest        string `json:"digest"`
	// Held is the digest that waits for a promotion or a wave, where the group of the agent that answers shows another one, or none.
	Held  string     `json:"held,omitempty"`
	AsOf  *time.Time `json:"asOf,omitempty"`
	Sites []Site     `json:"sites"`
	Limits
}

// Site is one ref at one site.
type Site struct {
	Site        string     `json:"site"`
	Group       string     `json:"group"`
	State       string     `json:"state"`
	Digest      string     `json:"digest"`
	Want        string     `json:"want"`
	Reason      string     `json:"reason"`
	Since       *time.Time `json:"since"` // null: not known, as where the ref is delivered
	BytesLeft   int64      `json:"bytesLeft"`
	NextAttempt *time.Time `json:"nextAttempt,omitempty"`
	Attempts    uint32     `json:"attempts"`
	Cause       string     `json:"cause,omitempty"`
	Mend        string     `json:"mend,omitempty"`
	Held        string     `json:"held,omitempty"` // the digest that waits there for a promotion or a wave
}

// Pending is the document of /api/v1/pending.
type Pending struct {
	SchemaVersion int          `json:"schemaVersion"`
	Site          string       `json:"site"`
	Group         string       `json:"group"`
	AsOf          *time.Time   `json:"asOf,omitempty"`
	Refs          []PendingRef `json:"refs"`
	// RefsTotal may be more than are listed.
	RefsTotal uint64 `json:"refsTotal"`
}

// PendingRef is one ref that a site does not show as it should, with what keeps it and what a person does about it, where that is known.
type PendingRef struct {
	Ref string `json:"ref"`
	Site
	Cause   string `json:"cause"` // also where there is none
	Summary string `json:"summary"`
	Mend    string `json:"mend"`
}

// Publish is the line of `publish`.
type Publish struct {
	SchemaVersion int     `json:"schemaVersion"`
	Ref           string  `json:"ref"`
	Digest        string  `json:"digest"`
	Revision      uint64  `json:"revision"`
	Copies        uint32  `json:"copies"`
	Message       string  `json:"message,omitempty"`
	Sites         *[]Site `json:"sites,omitempty"` // with --wait: the delivery receipt
	// AsOf is when the sites were asked about.
	AsOf *time.Time `json:"asOf,omitempty"`
}

// Images is the document of `images`.
type Images struct {
	SchemaVersion int     `json:"schemaVersion"`
	Images        []Image `json:"images"`
}

// Image is one record of the catalog.
type Image struct {
	Ref         string     `json:"ref"`
	Digest      string     `json:"digest"`
	MediaType   string     `json:"mediaType"`
	Size        int64      `json:"size"`
	Revision    uint64     `json:"revision"`
	PublishedAt *time.Time `json:"publishedAt,omitempty"`
	PublishedBy string     `json:"publishedBy"`
	Origin      string     `json:"origin"`
	Referrers   uint32     `json:"referrers"`
	Deleted     bool       `json:"deleted"`
}

// Event is the line of `events`.
type Event struct {
	SchemaVersion int        `json:"schemaVersion"`
	Time          *time.Time `json:"time,omitempty"`
	Type          string     `json:"type"`
	Reason        string     `json:"reason"`
	Site          string     `json:"site"`
	Ref           string     `json:"ref"`
	Message       string     `json:"message"`
	Count         uint32     `json:"count"`
	First         *time.Time `json:"first,omitempty"`
}

// Members is the document of `member list`.
type Members struct {
	SchemaVersion int          `json:"schemaVersion"`
	Group         string       `json:"group"`
	Members       []MemberInfo `json:"members"`
}

// MemberInfo is one raft member of a group.
type MemberInfo struct {
	Site          string `json:"site"`
	ID            string `json:"id"`
	Role          string `json:"role"`
	Voter         bool   `json:"voter"`
	RaftAddress   string `json:"raftAddress"`
	FabricAddress string `json:"fabricAddress"`
	State         string `json:"state"`
	RegistryType  string `json:"registryType"`
}

// MemberAdded is the document of `member add`.
type MemberAdded struct {
	SchemaVersion int        `json:"schemaVersion"`
	Member        MemberInfo `json:"member"`
}

// MemberRemoved is the document of `member remove`.
type MemberRemoved struct {
	SchemaVersion int    `json:"schemaVersion"`
	Site          string `json:"site"`
}

// Lead is the document of `member lead`.
type Lead struct {
	SchemaVersion int    `json:"schemaVersion"`
	Site          string `json:"site"`
}

// Version is the document of `version`.
type Version struct {
	SchemaVersion int            `json:"schemaVersion"`
	Client        ClientVersion  `json:"client"`
	Server        *ServerVersion `json:"server,omitempty"`
	ServerError   string         `json:"serverError,omitempty"`
}

// ClientVersion is fanoutctl's own.
type ClientVersion struct {
	Version  string `json:"version"`
	Go       string `json:"go"`
	Platform string `json:"platform"`
}

// ServerVersion is the agent's.
type ServerVersion struct {
	Version string `json:"version"`
	Site    string `json:"site"`
	Group   string `json:"group"`
}

// SavedCatalog is the document of `catalog save`.
type SavedCatalog struct {
	SchemaVersion int    `json:"schemaVersion"`
	File          string `json:"file"`
	Epoch         string `json:"epoch"`
	Revision      uint64 `json:"revision"`
	Records       uint64 `json:"records"`
}

// RestoredCatalog is the document of `catalog restore` and `catalog adopt`.
type RestoredCatalog struct {
	SchemaVersion int    `json:"schemaVersion"`
	Epoch         string `json:"epoch"`
	From          string `json:"from"`
	Revision      uint64 `json:"revision"`
	Records       uint64 `json:"records"`
}

// AcceptedEpoch is the document of `epoch accept`.
type AcceptedEpoch struct {
	SchemaVersion int    `json:"schemaVersion"`
	Epoch         string `json:"epoch"`
	Held          string `json:"held"`
	HeldRevision  uint64 `json:"heldRevision"`
}

// Certificate is the document of `ca init` and `ca issue`.
type Certificate struct {
	SchemaVersion int        `json:"schemaVersion"`
	ID            string     `json:"id"`
	Cert          string     `json:"cert"`
	Key           string     `json:"key"`
	CA            string     `json:"ca"`
	NotAfter      *time.Time `json:"notAfter,omitempty"`
}

// Contexts is the document of `config contexts`.
type Contexts struct {
	SchemaVersion int       `json:"schemaVersion"`
	Contexts      []Context `json:"contexts"`
}

// Context is one context of the user's configuration.
type Context struct {
	Name        string `json:"name"`
	Current     bool   `json:"current"`
	Server      string `json:"server"`
	Cert        string `json:"cert"`
	Key         string `json:"key"`
	CA          string `json:"ca"`
	TrustDomain string `json:"trustDomain"`
}

// TreeOf makes the document of an answer.
func TreeOf(r *adminv1.TreeResponse) Tree {
	t := Tree{SchemaVersion: SchemaVersion, AsOf: moment(r.GetAsOf()), Groups: []Group{}, Limits: limitsOf(r.GetCutOff(), r.GetNoRoot())}
	for _, g := range r.GetGroups() {
		doc := Group{
			Group: g.GetGroup(), Parent: g.GetParent(), Tier: g.GetTier(), Root: g.GetRoot(), Term: g.GetTerm(), State: g.GetState(),
			Revision: g.GetRevision(), Lag: g.GetLag(), LagSeconds: finite(g.GetLagSeconds()), Reason: g.GetReason(), Carrier: g.GetCarrier(),
			Labels: g.GetLabels(), LastContact: moment(g.GetLastContact()), Members: []Member{},
			Worst: g.GetWorst(), WorstAt: g.GetWorstAt(), BytesLeft: g.GetBytesLeft(), EtaSeconds: finite(g.GetEtaSeconds()), DetachedSince: moment(g.GetDetachedSince()), Answers: g.GetAnswers(),
		}
		if doc.Labels == nil {
			doc.Labels = map[string]string{}
		}
		if f := g.GetFreeze(); f != nil {
			doc.Freeze = &GroupFreeze{Reason: f.GetReason(), By: f.GetBy(), Since: moment(f.GetSince()), Until: moment(f.GetUntil())}
		}
		for _, m := range g.GetMembers() {
			doc.Members = append(doc.Members, Member{
				Site: m.GetSite(), State: m.GetState(), Registry: m.GetRegistry(), RegistryType: m.GetRegistryType(), Revision: m.GetRevision(),
				BytesLeft: m.GetBytesLeft(), Rate: m.GetRate(), Pending: m.GetPending(), Reason: m.GetReason(), Version: m.GetVersion(),
				LastContact: moment(m.GetLastContact()), Lag: m.GetLag(), LagSeconds: finite(m.GetLagSeconds()), EtaSeconds: finite(m.GetEtaSeconds()),
				Disk: diskOf(m.GetDisk()), RegistryDisk: diskOf(m.GetRegistryDisk()), CertificateExpires: moment(m.GetCertificateExpires()),
			})
		}
		t.Groups = append(t.Groups, doc)
	}
	return t
}

// WhereOf makes the document of an answer.
func WhereOf(r *adminv1.WhereResponse) Where {
	return Where{
		SchemaVersion: SchemaVersion, Ref: r.GetRef(), Revision: r.GetRevision(), Digest: r.GetDigest(), AsOf: moment(r.GetAsOf()),
		Held: r.GetHeld(), Sites: SitesOf(r.GetSites()), Limits: limitsOf(r.GetCutOff(), r.GetNoRoot()),
	}
}

// SitesOf makes the part of a document that says where a ref is.
func SitesOf(refs []*adminv1.SiteRef) []Site {
	sites := []Site{}
	for _, s := range refs {
		sites = append(sites, Site{
			Site: s.GetSite(), Group: s.GetGroup(), State: s.GetState(), Digest: s.GetDigest(), Want: s.GetWant(), Reason: s.GetReason(),
			Since: moment(s.GetSince()), BytesLeft: s.GetBytesLeft(), NextAttempt: moment(s.GetNextAttempt()), Attempts: s.GetAttempts(),
			Cause: s.GetTrouble().GetCause(), Mend: s.GetTrouble().GetMend(), Held: s.GetHeld(),
		})
	}
	return sites
}

// PendingOf makes the document of an answer.
func PendingOf(r *adminv1.PendingResponse) Pending {
	doc := Pending{SchemaVersion: SchemaVersion, Site: r.GetSite(), Group: r.GetGroup(), AsOf: moment(r.GetAsOf()), Refs: []PendingRef{}, RefsTotal: r.GetRefsTotal()}
	for _, p := range r.GetRefs() {
		t, at := p.GetTrouble(), SitesOf([]*adminv1.SiteRef{p.GetAt()})[0]
		doc.Refs = append(doc.Refs, PendingRef{Ref: p.GetRef(), Site: at, Cause: t.GetCause(), Summary: t.GetSummary(), Mend: t.GetMend()})
	}
	return doc
}

// PublishOf makes the line of a publish; sites may be nil.
func PublishOf(r *adminv1.PublishResponse, sites *[]Site) Publish {
	return Publish{
		SchemaVersion: SchemaVersion, Ref: r.GetRef(), Digest: r.GetDigest(), Revision: r.GetRevision(), Copies: r.GetCopies(),
		Message: r.GetMessage(), Sites: sites,
	}
}

// ImageOf makes one image of the document.
func ImageOf(r *adminv1.ImagesResponse) Image {
	return Image{
		Ref: r.GetRef(), Digest: r.GetDigest(), MediaType: r.GetMediaType(), Size: r.GetSize(), Revision: r.GetRevision(),
		PublishedAt: moment(r.GetPublishedAt()), PublishedBy: r.GetPublishedBy(), Origin: r.GetOrigin(), Referrers: r.GetReferrers(),
		Deleted: r.GetDeleted(),
	}
}

// EventOf makes the line of an event.
func EventOf(r *adminv1.EventsResponse) Event {
	return Event{
		SchemaVersion: SchemaVersion, Time: moment(r.GetTime()), Type: r.GetType(), Reason: r.GetReason(), Site: r.GetSite(), Ref: r.GetRef(),
		Message: r.GetMessage(), Count: r.GetCount(), First: moment(r.GetFirst()),
	}
}

// MembersOf makes the document of an answer.
func MembersOf(r *adminv1.MembersResponse) Members {
	doc := Members{SchemaVersion: SchemaVersion, Group: r.GetGroup(), Members: []MemberInfo{}}
	for _, m := range r.GetMembers() {
		doc.Members = append(doc.Members, MemberInfoOf(m))
	}
	slices.SortStableFunc(doc.Members, func(a, b MemberInfo) int { return strings.Compare(a.Site, b.Site) })
	return doc
}

// RestoredOf makes the document of an answer.
func RestoredOf(r *adminv1.RestoreCatalogResponse) RestoredCatalog {
	return RestoredCatalog{SchemaVersion: SchemaVersion, Epoch: r.GetEpoch(), From: r.GetFrom(), Revision: r.GetRevision(), Records: r.GetRecords()}
}

// AcceptedOf makes the document of an answer.
func AcceptedOf(r *adminv1.AcceptEpochResponse) AcceptedEpoch {
	return AcceptedEpoch{SchemaVersion: SchemaVersion, Epoch: r.GetEpoch(), Held: r.GetHeld(), HeldRevision: r.GetHeldRevision()}
}

// MemberInfoOf makes the part of a document that describes a member.
func MemberInfoOf(m *adminv1.MemberInfo) MemberInfo {
	return MemberInfo{
		Site: m.GetSite(), ID: m.GetId(), Role: m.GetRole(), Voter: m.GetVoter(), RaftAddress: m.GetRaftAddress(),
		FabricAddress: m.GetFabricAddress(), State: m.GetState(), RegistryType: m.GetRegistryType(),
	}
}

// moment gives nil for a time that is absent, zero or outside what RFC 3339 can say.
func moment(ts *timestamppb.Timestamp) *time.Time {
	if ts == nil || !ts.IsValid() || ts.GetSeconds() == 0 && ts.GetNanos() == 0 {
		return nil
	}
	t := ts.AsTime()
	if t.IsZero() {
		return nil
	}
	return &t
}

func finite(f float64) float64 {
	if math.IsNaN(f) || math.IsInf(f, 0) {
		return 0
	}
	return f
}
