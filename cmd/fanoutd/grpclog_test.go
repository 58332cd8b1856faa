package main

import (
	"bytes"
	"encoding/json"
	"log/slog"
	"testing"

	"google.golang.org/grpc/grpclog"
)

// TestGRPCLogger: what gRPC writes is a line like all others.
func TestGRPCLogger(t *testing.T) {
	var out bytes.Buffer
	var l grpclog.LoggerV2 = grpcLogger{slog.New(slog.NewJSONHandler(&out, &slog.HandlerOptions{Level: slog.LevelDebug}))}
	l.Infof("so many that %s", "nobody reads them")
	l.Errorln("too_many_pings", 1)
	l.Warningf("%d", 2)
	var got []string
	for dec := json.NewDecoder(&out); dec.More(); {
		var line struct{ Level, Msg, Part, Severity, Text string }
		if err := dec.Decode(&line); err != nil {
			t.Fatal(err)
		}
		if line.Level != "DEBUG" || line.Msg != "grpc" || line.Part != "grpc" {
			t.Errorf("%+v", line)
		}
		got = append(got, line.Severity+": "+line.Text)
	}
	if len(got) != 2 || got[0] != "error: too_many_pings 1" || got[1] != "warning: 2" {
		t.Errorf("got %q", got)
	}
}
