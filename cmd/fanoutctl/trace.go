package main

import (
	"context"
	"regexp"

	"google.golang.org/grpc/metadata"
)

// traceparent is what W3C Trace Context calls so, as far as it can be told without a library: the agent looks again.
var traceparent = regexp.MustCompile(`^[0-9a-f]{2}-[0-9a-f]{32}-[0-9a-f]{16}-[0-9a-f]{2}$`)

// traced has what an agent does for a call belong to the trace of whoever started this command: a pipeline that traces itself says so in TRACEPARENT.
func (a *app) traced(ctx context.Context) context.Context {
	if v := a.env("TRACEPARENT"); traceparent.MatchString(v) {
		return metadata.AppendToOutgoingContext(ctx, "traceparent", v)
	}
	return ctx
}
