package main

import (
	"fmt"
	"log/slog"
	"strings"
)

// grpcLogger passes gRPC's own log on to slog. What concerns an operator is logged by whoever made the call, with the site; so all of this is debug.
// It implements grpclog.LoggerV2.
type grpcLogger struct{ log *slog.Logger }

func (l grpcLogger) say(level string, text string) {
	l.log.Debug("grpc", "part", "grpc", "severity", level, "text", strings.TrimSpace(text))
}

func (l grpcLogger) Info(...any)                    {}
func (l grpcLogger) Infoln(...any)                  {}
func (l grpcLogger) Infof(string, ...any)           {}
func (l grpcLogger) V(int) bool                     { return false }
func (l grpcLogger) Warning(args ...any)            { l.say("warning", fmt.Sprint(args...)) }
func (l grpcLogger) Warningln(args ...any)          { l.say("warning", fmt.Sprintln(args...)) }
func (l grpcLogger) Error(args ...any)              { l.say("error", fmt.Sprint(args...)) }
func (l grpcLogger) Errorln(args ...any)            { l.say("error", fmt.Sprintln(args...)) }
func (l grpcLogger) Fatal(args ...any)              { l.say("fatal", fmt.Sprint(args...)) }
func (l grpcLogger) Fatalln(args ...any)            { l.say("fatal", fmt.Sprintln(args...)) }
func (l grpcLogger) Warningf(f string, args ...any) { l.say("warning", fmt.Sprintf(f, args...)) }
func (l grpcLogger) Errorf(f string, args ...any)   { l.say("error", fmt.Sprintf(f, args...)) }
func (l grpcLogger) Fatalf(f string, args ...any)   { l.say("fatal", fmt.Sprintf(f, args...)) }
