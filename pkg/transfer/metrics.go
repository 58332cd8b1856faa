package transfer

import "github.com/prometheus/client_golang/prometheus"

// Labels' values.
const (
	kindUpstream = "upstream" // outside the own group
	kindFellow   = "fellow"

	resentBreak    = "break"    // pieces in flight when a stream broke
	resentMismatch = "mismatch" // content that failed its check
	resentEvicted  = "evicted"  // fetched once, gone from the spool, fetched again
)

type fetchMetrics struct {
	received *prometheus.CounterVec
	resent   *prometheus.CounterVec
	flights  *prometheus.CounterVec
	errors   *prometheus.CounterVec
	active   prometheus.Gauge
	duration prometheus.Histogram
}

type serveMetrics struct {
	sent    *prometheus.CounterVec
	streams prometheus.Gauge
	refused *prometheus.CounterVec
}

func newFetchMetrics(r prometheus.Registerer) (*fetchMetrics, error) {
	m := &fetchMetrics{
		received: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "fanout_transfer_received_bytes_total", Help: "Bytes of blobs received, by kind of source.",
		}, []string{"source"}),
		resent: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "fanout_transfer_resent_bytes_total", Help: "Bytes received that had to be received again, by reason.",
		}, []string{"reason"}),
		flights: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "fanout_transfer_flights_total", Help: "Flights ended, by result.",
		}, []string{"result"}),
		errors: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "fanout_transfer_source_errors_total", Help: "Times that a source failed a flight, by kind of failure.",
		}, []string{"kind"}),
		active: prometheus.NewGauge(prometheus.GaugeOpts{
			Name: "fanout_transfer_active_flights", Help: "Flights under way or waiting for their turn.",
		}),
		duration: prometheus.NewHistogram(prometheus.HistogramOpts{
			Name: "fanout_transfer_duration_seconds", Help: "Time that a blob took to arrive, from when it was wanted, its turn included.",
			Buckets: prometheus.ExponentialBuckets(0.01, 4, 11), // 10 ms to 2.9 h
		}),
	}
	return m, register(r, m.received, m.resent, m.flights, m.errors, m.active, m.duration)
}

func newServeMetrics(r prometheus.Registerer) (*serveMetrics, error) {
	m := &serveMetrics{
		sent: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "fanout_transfer_sent_bytes_total", Help: "Bytes of blobs sent, by where they came from.",
		}, []string{"from"}),
		streams: prometheus.NewGauge(prometheus.GaugeOpts{
			Name: "fanout_transfer_serving_streams", Help: "Fetch streams being answered.",
		}),
		refused: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "fanout_transfer_refused_total", Help: "Fetch streams that ended with an error, by status code.",
		}, []string{"code"}),
	}
	return m, register(r, m.sent, m.streams, m.refused)
}

func register(r prometheus.Registerer, cs ...prometheus.Collector) error {
	if r == nil {
		return nil
	}
	for _, c := range cs {
		if err := r.Register(c); err != nil {
			return err
		}
	}
	return nil
}
