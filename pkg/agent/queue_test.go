package agent

import (
	"context"
	"strconv"
	"testing"
	"testing/synctest"
	"time"
)

func take(t *testing.T, q *queue) key {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), time.Hour)
	defer cancel()
	k, ok := q.next(ctx)
	if !ok {
		t.Fatal("nothing to do within an hour")
	}
	return k
}

func idle(t *testing.T, q *queue) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), time.Millisecond)
	defer cancel()
	if k, ok := q.next(ctx); ok {
		t.Fatalf("%v was handed out", k)
	}
}

func TestQueueHandsAKeyToOneWorkerAtATime(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		q := newQueue()
		k := key{repository: "a", tag: "1"}
		q.add(k)
		q.add(k)
		take(t, q)
		q.add(k) // changed while it is worked on
		idle(t, q)
		q.done(k, 0)
		if got := take(t, q); got != k {
			t.Fatalf("got %v", got)
		}
		q.done(k, 0)
		idle(t, q)
	})
}

func TestQueueTakeIsAloneWithAKey(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		q := newQueue()
		k := key{repository: "a", tag: "1"}
		q.add(k)
		if err := q.take(t.Context(), k); err != nil { // before a worker had it
			t.Fatal(err)
		}
		idle(t, q)
		q.done(k, 0)
		take(t, q) // what was to be done still is
		taken := make(chan error, 1)
		go func() { taken <- q.take(t.Context(), k) }()
		synctest.Wait()
		select {
		case <-taken:
			t.Fatal("taken while a worker has it")
		default:
		}
		q.done(k, 0)
		if err := <-taken; err != nil {
			t.Fatal(err)
		}
		q.add(k)
		idle(t, q)
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		if err := q.take(ctx, k); err == nil {
			t.Fatal("taken twice")
		}
		q.done(k, 0)
		take(t, q)
		q.done(k, 0)
		idle(t, q)
	})
}

func TestQueueBringsFailuresBackAndAnEventEndsTheWait(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		q := newQueue()
		k := key{repository: "a", tag: "1"}
		q.add(k)
		take(t, q)
		q.done(k, time.Minute)
		idle(t, q)
		if n := q.failures(k); n != 1 {
			t.Errorf("%d failures", n)
		}
		begin := time.Now()
		take(t, q)
		if waited := time.Since(begin); waited < 59*time.Second || waited > time.Minute {
			t.Errorf("waited %s", waited)
		}
		q.done(k, time.Hour)
		q.add(k)
		take(t, q)
		q.done(k, 0)
		if n := q.failures(k); n != 0 {
			t.Errorf("%d failures after a success", n)
		}
		q.stop()
	})
}

// TestQueueRenewEndsAWaitAndForgetsFailures: also of a wait that the registry asked for, since a person's retry is a new record.
func TestQueueRenewEndsAWaitAndForgetsFailures(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		q := newQueue()
		k := key{repository: "a", tag: "1"}
		q.add(k)
		for range 8 {
			take(t, q)
			q.done(k, time.Millisecond)
		}
		take(t, q)
		q.postpone(k, time.Hour)
		begin := time.Now()
		q.renew(k)
		if take(t, q); time.Since(begin) > 0 {
			t.Errorf("handed out after %v", time.Since(begin))
		}
		if n := q.failures(k); n != 0 {
			t.Errorf("%d failures are remembered", n)
		}
		q.renew(k) // while it is worked on
		q.done(k, time.Hour)
		if take(t, q); time.Since(begin) > 0 {
			t.Errorf("the second time after %v", time.Since(begin))
		}
	})
}

func TestQueueHurryEndsWaitsThatNobodyAskedFor(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		q := newQueue()
		failing, asked, working := key{repository: "a", tag: "failing"}, key{repository: "a", tag: "asked"}, key{repository: "a", tag: "working"}
		for _, k := range []key{failing, asked, working} {
			q.add(k)
			take(t, q)
		}
		q.done(failing, time.Hour)
		q.postpone(asked, time.Hour)
		q.add(working)
		q.done(working, time.Hour) // tried again at once, since it was added meanwhile
		take(t, q)
		idle(t, q)
		begin := time.Now()
		q.hurry()
		if got := take(t, q); got != failing || time.Since(begin) > time.Second {
			t.Fatalf("got %v after %s", got, time.Since(begin))
		}
		if a, b := q.failures(failing), q.failures(working); a != 0 || b != 0 {
			t.Errorf("%d and %d failures: waits would be long from the start", a, b)
		}
		q.done(failing, 0)
		q.done(working, 0)
		if got := take(t, q); got != asked || time.Since(begin) < 50*time.Minute {
			t.Fatalf("got %v after %s, before the time that the registry asked for", got, time.Since(begin))
		}
		q.stop()
	})
}

func TestDelayGrowsWithinBounds(t *testing.T) {
	for n := range 100 {
		if d := delay(n, backoffMax, 0); d <= 0 || d > backoffMax {
			t.Fatalf("%d failures: %s", n, d)
		}
	}
	if d := delay(0, backoffMax, time.Hour); d <= time.Hour || d > 66*time.Minute {
		t.Errorf("a registry that asks for an hour gets %s", d)
	}
}

func TestQueueKeepsWorkersForOtherRepositories(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		q := newQueue()
		const tags = 3 * perRepository
		for i := range tags {
			q.add(key{repository: "hanging", tag: strconv.Itoa(i)})
		}
		q.add(key{repository: "other", tag: "1"})
		var taken []key
		for range perRepository {
			taken = append(taken, take(t, q))
		}
		if k := take(t, q); k.repository != "other" {
			t.Fatalf("%v was handed out besides %d of its repository", k, perRepository)
		}
		idle(t, q)
		seen := map[key]bool{}
		for len(taken) > 0 {
			k := taken[0]
			taken = taken[1:]
			if seen[k] {
				t.Fatalf("%v was handed out twice", k)
			}
			seen[k] = true
			q.done(k, 0)
			if len(seen)+len(taken) < tags {
				taken = append(taken, take(t, q))
			}
		}
		idle(t, q)
	})
}

func TestQueueHandsOutWhatWasPromptedBeforeWhatWasSwept(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		q := newQueue()
		ref := func(i int) key { return key{repository: "r" + strconv.Itoa(i), tag: "1"} }
		for i := range 2 * sweepWorkers {
			q.addFor(ref(i), swept)
		}
		q.addFor(ref(0), sweptWhole)
		q.add(ref(9))
		if k := take(t, q); k != ref(9) || q.cause(k) != prompted {
			t.Fatalf("%v was handed out for cause %d before what was prompted", k, q.cause(k))
		}
		for i := range sweepWorkers {
			if k := take(t, q); k != ref(i) || q.cause(k) != map[bool]cause{true: sweptWhole, false: swept}[i == 0] {
				t.Fatalf("%v was handed out for cause %d in place %d", k, q.cause(k), i)
			}
		}
		idle(t, q) // the sweep has its share of the workers
		q.add(ref(2))
		q.add(ref(100))
		if k := take(t, q); k != ref(100) {
			t.Fatalf("%v was handed out", k)
		}
		q.done(ref(2), 0) // it is prompted now
		if k := take(t, q); k != ref(2) || q.cause(k) != prompted {
			t.Fatalf("%v was handed out for cause %d", k, q.cause(k))
		}
		seen := map[key]bool{}
		for i := range sweepWorkers {
			if i == 2 {
				continue
			}
			q.done(ref(i), 0)
		}
		for range sweepWorkers - 1 { // 8 and those from 10 on; 9 went by the other line
			k := take(t, q)
			if seen[k] || k == ref(9) {
				t.Fatalf("%v was handed out twice", k)
			}
			seen[k] = true
		}
		idle(t, q)
	})
}

func TestQueueSweepLeavesAFailureToItsWait(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		q := newQueue()
		k := key{repository: "a", tag: "1"}
		q.addFor(k, swept)
		take(t, q)
		begin := time.Now()
		q.done(k, time.Minute)
		q.addFor(k, sweptWhole)
		idle(t, q)
		if take(t, q); time.Since(begin) < time.Minute || q.cause(k) != sweptWhole {
			t.Fatalf("handed out after %s for cause %d", time.Since(begin), q.cause(k))
		}
		q.stop()
	})
}

func TestPaceSpreadsQuestionsAndEndsInTime(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		hurry := newNudge()
		spent := func(p *pace, n int) time.Duration {
			begin := time.Now()
			for range n {
				if err := p.wait(t.Context(), 1); err != nil {
					t.Fatal(err)
				}
			}
			return time.Since(begin)
		}
		const within = 150 * time.Second
		if d := spent(newPace(10_000, within, hurry), 10_000); d < within*9/10 || d > within {
			t.Errorf("10,000 questions were spread over %s", d)
		}
		// There are ten times as many as was thought.
		if d := spent(newPace(1_000, within, hurry), 10_000); d > within+time.Second {
			t.Errorf("a sweep that was longer than thought took %s", d)
		}
		if d := spent(newPace(40, within, hurry), 40); d != 0 {
			t.Errorf("few questions waited %s", d)
		}
		p := newPace(10_000, within, hurry)
		spent(p, 5000)
		hurry.set()
		if d := spent(p, 5000); d > time.Second {
			t.Errorf("5,000 questions took %s after something happened", d)
		}
		select {
		case <-hurry:
		default:
			t.Error("whoever wanted a sweep sooner is forgotten")
		}
	})
}
