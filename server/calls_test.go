package server

import "testing"

func TestEndOfCalls(t *testing.T) {
	var c calls
	over := func(idle <-chan struct{}) bool {
		select {
		case <-idle:
			return true
		default:
			return false
		}
	}
	c.begin()
	c.end()
	c.begin()
	c.begin()
	idle := c.ended()
	c.end()
	if over(idle) {
		t.Error("over with a call that runs")
	}
	c.end()
	if !over(idle) {
		t.Error("not over without a call")
	}
	c.begin()
	c.end()
	var none calls
	if !over(none.ended()) {
		t.Error("not over without any call")
	}
}
