package tree

import "github.com/prometheus/client_golang/prometheus"

// metrics of a node. Groups and sites are few and configured, but each agent speaks of itself only, so there are no such labels.
type metrics struct {
	root, head, attached, children       prometheus.Gauge
	proposed                             *prometheus.CounterVec
	received, sent, resyncs, attachments prometheus.Counter
}

// newMetrics registers them. Revision and members are asked for when somebody looks.
func newMetrics(r prometheus.Registerer, revision, members func() float64) (*metrics, error) {
	asked := func(name, help string, now func() float64) prometheus.Collector {
		return prometheus.NewGaugeFunc(prometheus.GaugeOpts{Namespace: "fanout", Subsystem: "tree", Name: name, Help: help}, now)
	}
	gauge := func(name, help string) prometheus.Gauge {
		return prometheus.NewGauge(prometheus.GaugeOpts{Namespace: "fanout", Subsystem: "tree", Name: name, Help: help})
	}
	counter := func(name, help string) prometheus.Counter {
		return prometheus.NewCounter(prometheus.CounterOpts{Namespace: "fanout", Subsystem: "tree", Name: name, Help: help})
	}
	m := &metrics{
		root:        gauge("root", "1 while this member is its group's root."),
		head:        gauge("head_revision", "Newest revision of headquarters' catalog known to this member."),
		attached:    gauge("attached", "1 while this member holds the group's stream to its parent."),
		children:    gauge("children", "Child groups attached to this member."),
		received:    counter("records_received_total", "Records received from the parent."),
		sent:        counter("records_sent_total", "Records sent to children."),
		attachments: counter("attachments_total", "Times that this member, as the root, attached its group to a parent."),
		resyncs:     counter("resyncs_sent_total", "Resyncs of children begun."),
		proposed: prometheus.NewCounterVec(prometheus.CounterOpts{
			Namespace: "fanout", Subsystem: "tree", Name: "proposals_total", Help: "Proposals by outcome: committed, failed, again.",
		}, []string{"outcome"}),
	}
	if r == nil {
		return m, nil
	}
	for _, c := range []prometheus.Collector{
		m.root, m.head, m.attached, m.children, m.received, m.sent, m.resyncs, m.attachments, m.proposed,
		asked("revision", "Revision of headquarters' catalog that this member has committed.", revision),
		asked("members_connected", "Members connected to this root, itself included; 0 at others.", members),
	} {
		if err := r.Register(c); err != nil {
			return nil, err
		}
	}
	return m, nil
}

func (m *metrics) proposals(outcome string) { m.proposed.WithLabelValues(outcome).Inc() }
