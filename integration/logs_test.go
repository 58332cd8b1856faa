package integration

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"testing"
)

// checkLog holds each line of an agent's log to docs/logs.md: JSON, with the keys that every line has, and none twice. So a panic, or a library that writes past the log, fails the test that it
// happens in.
func checkLog(t testing.TB, name string, log []byte) {
	t.Helper()
	for line := range bytes.Lines(log) {
		if err := checkLine(line); err != nil {
			t.Errorf("%s logged a line that is none (%v): %.2000s", name, err, line)
			return
		}
	}
}

func checkLine(line []byte) error {
	keys := map[string]bool{}
	dec := json.NewDecoder(bytes.NewReader(line))
	if tok, err := dec.Token(); err != nil || tok != json.Delim('{') {
		return errors.New("it is no JSON object")
	}
	for dec.More() {
		tok, err := dec.Token()
		if err != nil {
			return err
		}
		key := tok.(string)
		if keys[key] {
			return fmt.Errorf("the key %q is there twice", key)
		}
		keys[key] = true
		var value json.RawMessage
		if err := dec.Decode(&value); err != nil {
			return fmt.Errorf("%s: %w", key, err)
		}
	}
	for _, key := range []string{"time", "level", "msg"} {
		if !keys[key] {
			return fmt.Errorf("it has no %q", key)
		}
	}
	return nil
}

func TestCheckLine(t *testing.T) {
	good := `{"time":"2026-01-01T00:00:00Z","level":"INFO","msg":"m","site":"a","nested":{"site":"b"}}`
	if err := checkLine([]byte(good)); err != nil {
		t.Error(err)
	}
	for _, bad := range []string{
		`panic: runtime error`, `[1]`, `{"time":"t","level":"INFO"}`, `{"time":"t","level":"INFO","msg":"m","site":"a","site":"b"}`, `{"time":"t","level":"INFO","msg":`,
	} {
		if checkLine([]byte(bad)) == nil {
			t.Errorf("nobody complains of %s", bad)
		}
	}
}
