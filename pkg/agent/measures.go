package agent

import (
	"iter"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"

	catalogv1 "github.com/fanout-io/fanout/proto/fanout/catalog/v1"
	treev1 "github.com/fanout-io/fanout/proto/fanout/tree/v1"

	"github.com/fanout-io/fanout/pkg/catalog"
	"github.com/fanout-io/fanout/pkg/store"
)

// measures are the metrics that the agent itself counts. Each one is explained in docs/metrics.md. No label is a ref, tag, digest or blob: those are without number.
type measures struct {
	deliveries  *prometheus.CounterVec
	failures    *prometheus.CounterVec
	duration    prometheus.Histogram
	lastSuccess prometheus.Gauge
	saved       *prometheus.CounterVec
	sweep       prometheus.Histogram
	questions   prometheus.Counter
	links       *links
	scrub       scrubMetrics
}

// Labels of saved bytes.
const (
	savedMounted = "mounted" // taken from another repository of the same registry
	savedPresent = "present" // in the repository already
)

func newMeasures() *measures {
	m := &measures{
		deliveries: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "fanout_deliveries_total", Help: "Attempts to bring a ref into the registry, by result: delivered, failed.",
		}, []string{"result"}),
		failures: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "fanout_delivery_failures_total", Help: "Attempts to bring a ref into the registry that failed, by reason.",
		}, []string{"reason"}),
		duration: prometheus.NewHistogram(prometheus.HistogramOpts{
			Name: "fanout_delivery_duration_seconds", Help: "Time of the attempt that brought a ref into the registry.",
			Buckets: prometheus.ExponentialBuckets(0.05, 4, 10), // 50 ms to 3.6 h
		}),
		lastSuccess: prometheus.NewGauge(prometheus.GaugeOpts{
			Name: "fanout_delivery_last_success_timestamp_seconds", Help: "When a ref was last brought into the registry; 0: none was.",
		}),
		saved: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "fanout_delivery_saved_bytes_total", Help: "Bytes of blobs that were not fetched though content that was new here needed them, by why: mounted from another repository, present in its own already.",
		}, []string{"how"}),
		sweep: prometheus.NewHistogram(prometheus.HistogramOpts{
			Name: "fanout_sweep_duration_seconds", Help: "Time of a sweep through the registry, which is spread over a part of the interval.",
			Buckets: prometheus.ExponentialBuckets(0.1, 4, 9), // 100 ms to 1.8 h
		}),
		questions: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "fanout_sweep_questions_total", Help: "Requests to the registry by sweeps.",
		}),
		links: newLinks(),
		scrub: newScrubMetrics(),
	}
	for _, how := range []string{savedMounted, savedPresent} {
		m.saved.WithLabelValues(how) // with 0, so that an increase has something to begin with
	}
	return m
}

func (m *measures) collectors() []prometheus.Collector {
	return []prometheus.Collector{m.deliveries, m.failures, m.duration, m.lastSuccess, m.saved, m.sweep, m.questions, m.links.bytes, m.scrub.looked, m.scrub.bytes, m.scrub.damaged}
}

// rememberSuccess takes up when a ref was last brought here before this start.
func (a *Agent) rememberSuccess() error {
	var last time.Time
	err := a.store.RefStates(func(_ string, st store.RefState) bool {
		if r := st.Receipt; r != nil && r.At.After(last) {
			last = r.At
		}
		return true
	})
	if !last.IsZero() {
		a.counts.lastSuccess.Set(float64(last.UnixNano()) / float64(time.Second))
	}
	return err
}

func (a *Agent) registerMeasures() error {
	if err := a.rememberSuccess(); err != nil {
		return err
	}
	all := append(a.counts.collectors(), collectors.NewGoCollector(), collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}), a.buildInfo(), seen{a})
	for _, c := range all {
		if err := a.metrics.Register(c); err != nil {
			return err
		}
	}
	return nil
}

// delivered notes an attempt that began then and went well.
func (m *measures) delivered(began time.Time) {
	m.deliveries.WithLabelValues("delivered").Inc()
	m.duration.Observe(time.Since(began).Seconds())
	m.lastSuccess.SetToCurrentTime()
}

func (m *measures) failed(reason string) {
	m.deliveries.WithLabelValues("failed").Inc()
	m.failures.WithLabelValues(reason).Inc()
}

var (
	descSpoolUsed    = prometheus.NewDesc("fanout_spool_used_bytes", "Bytes in the spool.", nil, nil)
	descSpoolLimit   = prometheus.NewDesc("fanout_spool_limit_bytes", "Bytes that the spool may have.", nil, nil)
	descSpoolEvicted = prometheus.NewDesc("fanout_spool_evicted_bytes_total", "Bytes that left the spool to make room.", nil, nil)
	descDiskFree     = prometheus.NewDesc("fanout_disk_free_bytes", "Bytes left on a disk: that of dataDir, and that of the embedded registry.", []string{"disk"}, nil)
	descRegistryUp   = prometheus.NewDesc("fanout_registry_up", "1 if the last check of the registry went well; a witness has none.", nil, nil)
	descCertLifetime = prometheus.NewDesc("fanout_certificate_lifetime_seconds", "How long a certificate of this agent is good for as a whole, from its beginning to its end.", []string{"certificate"}, nil)
	descCertificate  = prometheus.NewDesc("fanout_certificate_expiry_timestamp_seconds", "When a certificate of this agent ends, or the authority that it trusts.", []string{"certificate"}, nil)
	descPending      = prometheus.NewDesc("fanout_pending_refs", "Refs that this registry does not show as it should, by state. drifted and accepted are differences that the settings leave.", []string{"state"}, nil)
	descConflicts    = prometheus.NewDesc("fanout_conflicts", "Pushes at headquarters that lost against another of their tag and that nobody has judged; at headquarters only.", nil, nil)
	descDeletions    = prometheus.NewDesc("fanout_deletions_held", "Deletions that wait for an operator's word; at headquarters only.", nil, nil)
	descSpans        = prometheus.NewDesc("fanout_trace_spans_total", "Spans that ended and are to be sent to the collector of traces.", nil, nil)
	descSpansSent    = prometheus.NewDesc("fanout_trace_spans_sent_total", "Spans that the collector of traces has taken. What is not among them a minute later is lost.", nil, nil)
	descTerm         = prometheus.NewDesc("fanout_raft_term", "Term of the group's raft.", nil, nil)
	descHasRoot      = prometheus.NewDesc("fanout_raft_has_root", "1 while this member knows the group's root.", nil, nil)

	descSiteState   = prometheus.NewDesc("fanout_site_state", "1, with the state of a site as the tree shows it; at roots, for the sites of their group and below it.", []string{"group", "site", "state"}, nil)
	descSiteLag     = prometheus.NewDesc("fanout_site_lag_revisions", "Revisions of the catalog that a site has not seen yet; at roots.", []string{"group", "site"}, nil)
	descSiteLagTime = prometheus.NewDesc("fanout_site_lag_seconds", "How long a site has lacked the oldest of what it lacks; 0: nothing. At roots.", []string{"group", "site"}, nil)
	descSiteLeft    = prometheus.NewDesc("fanout_site_left_bytes", "Bytes that a site has still to fetch; at roots.", []string{"group", "site"}, nil)
	descSitePending = prometheus.NewDesc("fanout_site_pending_refs", "Refs that a site does not show as it should; at roots.", []string{"group", "site"}, nil)
	descSiteContact = prometheus.NewDesc("fanout_site_last_contact_timestamp_seconds", "When a site was last heard of; at roots.", []string{"group", "site"}, nil)
)

// pendingStates are reported with 0 too, so that a rate or an alert has something to begin with.
var pendingStates = []string{"waiting", "delivering", "failed", "held", "drifted", "accepted"}

// seen is read when somebody asks for metrics: what the agent knows anyway.
type seen struct{ a *Agent }

func (s seen) Describe(ch chan<- *prometheus.Desc) {
	for _, d := range []*prometheus.Desc{
		descSpoolUsed, descSpoolLimit, descSpoolEvicted, descDiskFree, descRegistryUp, descCertificate, descCertLifetime, descPending, descConflicts, descDeletions, descSpans, descSpansSent, descTerm, descHasRoot,
		descSiteState, descSiteLag, descSiteLagTime, descSiteLeft, descSitePending, descSiteContact,
	} {
		ch <- d
	}
}

func (s seen) Collect(ch chan<- prometheus.Metric) {
	s.own(ch)
	if s.a.node.IsRoot() {
		s.below(ch)
	}
}

func gauge(ch chan<- prometheus.Metric, d *prometheus.Desc, v float64, labels ...string) {
	ch <- prometheus.MustNewConstMetric(d, prometheus.GaugeValue, v, labels...)
}

func flag(yes bool) float64 {
	if yes {
		return 1
	}
	return 0
}

func tally[T any](all iter.Seq[T], of func(T) bool) (n float64) {
	for x := range all {
		n += flag(of(x))
	}
	return n
}

// own is what concerns this agent alone.
func (s seen) own(ch chan<- prometheus.Metric) {
	a := s.a
	used, limit := a.store.Spool().Usage()
	gauge(ch, descSpoolUsed, float64(used))
	gauge(ch, descSpoolLimit, float64(limit))
	ch <- prometheus.MustNewConstMetric(descSpoolEvicted, prometheus.CounterValue, float64(a.store.Spool().Counters().EvictedBytes))
	if left, ok := room(a.cfg.DataDir); ok {
		gauge(ch, descDiskFree, float64(left), "data")
	}
	if a.embedded != nil {
		if left, ok := room(a.cfg.Registry.Data); ok {
			gauge(ch, descDiskFree, float64(left), "registry")
		}
	}
	if a.registry != nil {
		a.mu.Lock()
		up := a.regErr == nil
		a.mu.Unlock()
		gauge(ch, descRegistryUp, flag(up))
	}
	if a.identity != nil {
		gauge(ch, descCertificate, float64(a.identity.NotAfter().Unix()), "fabric")
		gauge(ch, descCertificate, float64(a.identity.AuthorityNotAfter().Unix()), "authority")
		gauge(ch, descCertLifetime, a.identity.Lifetime().Seconds(), "fabric")
	}
	if c := a.httpCert.Load(); c != nil && c.Leaf != nil {
		gauge(ch, descCertificate, float64(c.Leaf.NotAfter.Unix()), "http")
		gauge(ch, descCertLifetime, c.Leaf.NotAfter.Sub(c.Leaf.NotBefore).Seconds(), "http")
	}
	pending, _ := a.progress.snapshot()
	byState := map[string]int{}
	for _, p := range pending {
		if p.GetRefused() {
			byState["failed"]++ // also while it is tried again, as the tree has it: an alert waits for it to stay
			continue
		}
		byState[p.GetState()]++
	}
	for _, state := range pendingStates {
		gauge(ch, descPending, float64(byState[state]), state)
	}
	ended, sent := a.tracer.Counts()
	ch <- prometheus.MustNewConstMetric(descSpans, prometheus.CounterValue, float64(ended))
	ch <- prometheus.MustNewConstMetric(descSpansSent, prometheus.CounterValue, float64(sent))
	gauge(ch, descTerm, float64(a.node.Term()))
	gauge(ch, descHasRoot, flag(a.node.Roster().Root != ""))
	if a.cfg.Headquarters() {
		snap := a.node.Catalog()
		gauge(ch, descConflicts, tally(snap.AllConflicts(), func(*catalogv1.Conflict) bool { return true }))
		gauge(ch, descDeletions, tally(snap.AllDeletions(), (*catalogv1.Deletion).GetHeld))
	}
}

// below is what a root knows of the sites of its group and below it.
func (s seen) below(ch chan<- prometheus.Metric) {
	head := s.a.node.Roster().Head
	view := s.a.node.Health()
	for _, h := range view.Sites {
		group, site := h.GetGroup(), h.GetSite()
		state := h.GetState()
		if state == "" {
			state = "unknown"
		}
		gauge(ch, descSiteState, 1, group, site, state)
		if t := h.GetLastContact(); t.IsValid() {
			gauge(ch, descSiteContact, float64(t.AsTime().UnixMilli())/1000, group, site)
		}
		if h.GetRegistryType() == "none" || !heard(h) {
			continue
		}
		lag := uint64(0)
		if head > h.GetRevision() {
			lag = head - h.GetRevision()
		}
		gauge(ch, descSiteLag, float64(lag), group, site)
		gauge(ch, descSiteLagTime, s.a.lacking(h).Seconds(), group, site)
		gauge(ch, descSiteLeft, float64(h.GetBytesLeft()), group, site)
		gauge(ch, descSitePending, float64(toDo(h)), group, site)
	}
}

// lacking is how long a site has lacked the oldest of what it is to show: the first record that it has not seen, or what is pending there and not left so on purpose.
func (a *Agent) lacking(h *treev1.SiteHealth) time.Duration {
	longest := a.unseen(h.GetGroup(), h.GetRevision())
	if h.GetPendingTotal() == 0 {
		return longest
	}
	for _, p := range a.node.PendingAt(h.GetSite()) {
		if state := p.GetState(); state != "held" && state != "accepted" && state != "drifted" && p.GetSince().IsValid() {
			longest = max(longest, time.Since(p.GetSince().AsTime()))
		}
	}
	return longest
}

// unseen is how long ago headquarters committed the oldest record in a group's scope that comes after a revision; 0: there is none.
func (a *Agent) unseen(group string, revision uint64) time.Duration {
	snap := a.node.Catalog()
	if revision >= snap.Position().GetRevision() {
		return 0
	}
	demand := whole()
	if g, ok := snap.Group(group); ok && group != a.cfg.Group {
		demand = g.GetDemand()
	}
	for rec := range snap.Since(revision) { // they come in order
		if at := rec.GetPublishedAt(); at.IsValid() && catalog.MatchScope(demand, rec.GetRepository()) {
			return max(0, time.Since(at.AsTime()))
		}
	}
	return 0
}
