package agent

import (
	"context"
	"testing"
	"testing/synctest"
)

// One has the turn of a name at a time; who gives up is not waited for, and other names are not held up.
func TestTurns(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var x turns
		first, err := x.take(t.Context(), "a")
		if err != nil {
			t.Fatal(err)
		}
		ctx, cancel := context.WithCancel(t.Context())
		gaveUp, got := make(chan error, 1), make(chan func(), 1)
		go func() {
			_, err := x.take(ctx, "a")
			gaveUp <- err
		}()
		go func() {
			done, _ := x.take(t.Context(), "a")
			got <- done
		}()
		other, err := x.take(t.Context(), "b")
		if err != nil {
			t.Fatal(err)
		}
		other()
		synctest.Wait()
		if len(got) > 0 || len(gaveUp) > 0 {
			t.Fatal("a turn that is taken was given")
		}
		cancel()
		if err := <-gaveUp; err == nil {
			t.Error("who gave up has the turn")
		}
		synctest.Wait()
		if len(got) > 0 {
			t.Fatal("a turn that is taken was given")
		}
		first()
		(<-got)()
		if len(x.taken) != 0 {
			t.Errorf("%d turns are still taken", len(x.taken))
		}
	})
}
