package store

import (
	"encoding/json"
	"errors"
	"testing"
	"time"
)

func FuzzDecodeRefState(f *testing.F) {
	full, err := json.Marshal(RefState{Base: "sha256:00", BaseRevision: 7, Intent: "sha256:11", IntentRevision: 8, Epoch: "e1", At: time.Unix(1, 0)})
	if err != nil {
		f.Fatal(err)
	}
	for _, b := range [][]byte{full, []byte("{}"), []byte("null"), nil, []byte(`{"At":"x"}`), []byte("[")} {
		f.Add(b)
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		var st RefState
		if err := decodeRefState("app:1", b, &st); err != nil {
			if !errors.Is(err, ErrDamaged) {
				t.Fatal(err)
			}
			return
		}
		again, err := json.Marshal(st)
		if err != nil {
			t.Fatalf("%+v can't be written: %v", st, err)
		}
		var second RefState
		if err := decodeRefState("app:1", again, &second); err != nil || !second.At.Equal(st.At) {
			t.Fatalf("%s: %+v, %v", again, second, err)
		}
	})
}
