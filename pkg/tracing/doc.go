// Package tracing tells an OpenTelemetry collector what an agent does: one trace for each publish, through all tiers. Its context travels in the catalog's record, as a W3C traceparent.
//
// It is set up by the environment variables that OpenTelemetry defines. Where none asks for it there is no tracer: a nil *Tracer, and the nil *Span that it gives, are good for all methods,
// do nothing and allocate nothing. So who traces never asks whether anybody listens.
//
// Nobody waits for a collector. Spans that ended stand in a bounded queue; what does not fit is dropped, and what a collector did not take in time is given up. Counts says how many were lost.
//
// It is not the process's own: libraries that trace by OpenTelemetry's global provider stay silent. All methods are safe for concurrent use, but those of a Span, which belongs to who started it.
package tracing
