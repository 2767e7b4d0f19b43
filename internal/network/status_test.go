package network

import (
	"os"
	"strings"
	"testing"
	"time"
)

// ages makes the plugins' last answer older.
func (s *site) ages(by time.Duration) {
	last := *s.status.Load()
	last.at, last.ready = last.at.Add(-by), last.ready.Add(-by)
	s.status.Store(&last)
}

// answered waits until the plugins have said what they say now.
func (s *site) answered() {
	done, _ := s.ask(s.loaded.Load())
	<-done
}

func TestStatus(t *testing.T) {
	s := newScript(t, `echo $CNI_COMMAND >> $dir/calls; cat $dir/say; [ ! -s $dir/say ]`)
	calls := func() int { return strings.Count(s.read(t, "calls"), "STATUS") }
	ready := func(reason string, called int) {
		t.Helper()
		_, err := s.Choose(t.Context())
		if (err == nil) != (reason == "") || (err != nil && !strings.Contains(err.Error(), reason)) {
			t.Errorf("got %v, want %q", err, reason)
		}
		if got := calls(); got != called {
			t.Errorf("the plugin was asked %d times, want %d", got, called)
		}
	}
	say := func(text string) { s.write(t, "say", text) }
	say("")
	ready("", 1)
	say(`{"code": 50, "msg": "no route reflector"}`)
	ready("", 1) // the answer is fresh
	s.ages(statusAge)
	ready("no route reflector", 2)
	ready("no route reflector", 2)
	say("")
	s.ages(statusAge)
	ready("", 3)
	// Another configuration has no answer yet.
	s.write(t, "net.d/10-script.conflist", strings.Replace(s.read(t, "net.d/10-script.conflist"), "yes", "no", 1))
	ready("", 4)
	// A version without the verb is not asked.
	s.write(t, "net.d/10-script.conflist", strings.Replace(s.read(t, "net.d/10-script.conflist"), "1.1.0", "1.0.0", 1))
	ready("", 4)
	// The plugin may go at any time.
	if err := os.Remove(s.dir + "/bin/script"); err != nil {
		t.Fatal(err)
	}
	ready(`plugin "script" is in none of`, 4)
}

// Each reader past the freshness of the last answer waited for a plugin that hung.
func TestReadersDoNotWaitForAPluginThatHangs(t *testing.T) {
	s := newScript(t, `echo $CNI_COMMAND >> $dir/calls; while [ -s $dir/hang ]; do sleep 0.01; done`)
	s.write(t, "hang", "")
	if err := s.Ready(); err != nil {
		t.Fatal(err)
	}
	s.write(t, "hang", "yes")
	s.ages(statusAge)
	begun := time.Now()
	for range 100 {
		if err := s.Ready(); err != nil {
			t.Fatal(err)
		}
	}
	if took := time.Since(begun); took > statusTime/2 {
		t.Errorf("100 readers took %s", took)
	}
	if _, err := s.Choose(t.Context()); err == nil || !strings.Contains(err.Error(), "says it is not ready") {
		t.Errorf("who waits is told %v", err)
	}
	if calls := strings.Count(s.read(t, "calls"), "STATUS"); calls != 2 {
		t.Errorf("the plugin was asked %d times", calls)
	}
	if err := s.Answer(); err == nil {
		t.Error("the last answer is that it hung")
	}
	s.write(t, "hang", "")
	s.ages(statusAge)
	if err := s.Answer(); err == nil {
		t.Error("a reader has waited for the plugin")
	}
	s.answered()
	if err := s.Answer(); err != nil {
		t.Errorf("it is back: %v", err)
	}
}

// A plugin whose disk does not answer cannot be killed: whoever asked for the first answer
// waited for it for ever, and everybody else was told the last one.
func TestPluginThatCannotBeKilledIsNotReady(t *testing.T) {
	s := newScript(t, `true`)
	forEver := func() {
		s.asking.Lock()
		defer s.asking.Unlock()
		s.asked, s.askedAt = make(chan struct{}), time.Now().Add(-2*statusGrace)
	}
	wants := func(what string) {
		t.Helper()
		for _, err := range []error{s.Ready(), s.Answer()} {
			if err == nil || !strings.Contains(err.Error(), "has not ended") {
				t.Errorf("%s: %v", what, err)
			}
		}
	}
	forEver()
	wants("without an answer")
	s.asked = nil
	s.answered()
	if err := s.Ready(); err != nil {
		t.Fatal(err)
	}
	s.ages(2 * statusGrace)
	forEver()
	wants("with an old answer")
}

// Plugins that restart are not ready for a while; a node that says so loses its pods.
func TestPluginsThatFlapAreGivenTime(t *testing.T) {
	s := newScript(t, `cat $dir/say; [ ! -s $dir/say ]`)
	told := func(what string, ready bool) {
		t.Helper()
		s.ages(statusAge)
		s.answered()
		if err := s.Ready(); (err == nil) != ready {
			t.Errorf("%s: %v", what, err)
		}
	}
	const no = `{"code": 50, "msg": "restarting"}`
	s.write(t, "say", no)
	if err := s.Ready(); err == nil {
		t.Error("they are ready, and never were")
	}
	s.write(t, "say", "")
	told("ready", true)
	s.write(t, "say", no)
	told("not ready any more", true)
	s.ages(15 * time.Second)
	told("for 15 s", true)
	if _, err := s.Choose(t.Context()); err == nil || !strings.Contains(err.Error(), "restarting") {
		t.Errorf("a pod is to be attached: %v", err)
	}
	s.ages(61 * time.Second)
	told("for 61 s", false)
	s.write(t, "say", "")
	told("ready again", true)
}
