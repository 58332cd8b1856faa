package tree

import (
	"context"
	"io"
	"log"
	"log/slog"
	"sync"
	"time"

	"github.com/hashicorp/go-hclog"
)

// raftLogger passes raft's log on to slog. What raft calls info is debug here: an operator reads of roots, not of raft states.
type raftLogger struct {
	log  *slog.Logger
	args []any
	said *said
}

// said bounds what raft warns of: of a member that is down it speaks several times a second, as long as it is.
type said struct {
	mu   sync.Mutex
	last map[string]time.Time // by message, of which raft has some dozens
}

// sayAgain is after how long a warning of raft is one again. In between it is at debug.
const sayAgain = time.Minute

// now says whether a message was not said lately, and notes that it is.
func (s *said) now(msg string, at time.Time) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if before, ok := s.last[msg]; ok && at.Sub(before) < sayAgain {
		return false
	}
	s.last[msg] = at
	return true
}

// Its keys, of which one is "time", stand in a group of their own.
func newRaftLogger(l *slog.Logger) hclog.Logger {
	return &raftLogger{log: l.With("part", "raft").WithGroup("raft"), said: &said{last: map[string]time.Time{}}}
}

func (l *raftLogger) Log(level hclog.Level, msg string, args ...any) {
	to := slog.LevelDebug
	switch level {
	case hclog.Warn:
		to = slog.LevelWarn
	case hclog.Error:
		// Most are of peers that are down, which raft retries for ever; none is the end of anything.
		to = slog.LevelWarn
	}
	if to == slog.LevelWarn && !l.said.now(msg, time.Now()) {
		to = slog.LevelDebug
	}
	if !l.log.Enabled(context.Background(), to) {
		return
	}
	for i, a := range args {
		if f, ok := a.(hclog.Format); ok && len(f) > 0 {
			args[i] = f[1:]
		}
	}
	l.log.Log(context.Background(), to, msg, args...)
}

func (l *raftLogger) Trace(msg string, args ...any) {}
func (l *raftLogger) Debug(msg string, args ...any) { l.Log(hclog.Debug, msg, args...) }
func (l *raftLogger) Info(msg string, args ...any)  { l.Log(hclog.Info, msg, args...) }
func (l *raftLogger) Warn(msg string, args ...any)  { l.Log(hclog.Warn, msg, args...) }
func (l *raftLogger) Error(msg string, args ...any) { l.Log(hclog.Error, msg, args...) }

func (l *raftLogger) IsTrace() bool { return false }
func (l *raftLogger) IsDebug() bool { return l.log.Enabled(context.Background(), slog.LevelDebug) }
func (l *raftLogger) IsInfo() bool  { return l.IsDebug() }
func (l *raftLogger) IsWarn() bool  { return true }
func (l *raftLogger) IsError() bool { return true }

func (l *raftLogger) ImpliedArgs() []any { return l.args }
func (l *raftLogger) With(args ...any) hclog.Logger {
	return &raftLogger{log: l.log.With(args...), args: append(l.args[:len(l.args):len(l.args)], args...), said: l.said}
}
func (l *raftLogger) Name() string                   { return "raft" }
func (l *raftLogger) Named(string) hclog.Logger      { return l }
func (l *raftLogger) ResetNamed(string) hclog.Logger { return l }
func (l *raftLogger) SetLevel(hclog.Level)           {}
func (l *raftLogger) GetLevel() hclog.Level {
	if l.IsDebug() {
		return hclog.Debug
	}
	return hclog.Warn
}

func (l *raftLogger) StandardLogger(*hclog.StandardLoggerOptions) *log.Logger {
	return log.New(l.StandardWriter(nil), "", 0)
}

func (l *raftLogger) StandardWriter(*hclog.StandardLoggerOptions) io.Writer {
	return slogWriter{l.log}
}

type slogWriter struct{ log *slog.Logger }

func (w slogWriter) Write(p []byte) (int, error) {
	w.log.Debug("raft", "text", string(p))
	return len(p), nil
}
