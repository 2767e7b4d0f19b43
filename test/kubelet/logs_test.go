package kubelet

import (
	"bufio"
	"compress/gzip"
	"context"
	"fmt"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"
)

// logs: the kubelet's rotation loses no line of a container that writes on, and its view
// of the log goes on with the new file.
func logs(t *testing.T, n *node) {
	n.await("the last line", func() error {
		if tail := n.logs(t, "chatty", "main", "tailLines=1"); tail != "end\n" {
			return fmt.Errorf("it is %.20q", tail)
		}
		return nil
	})
	p := n.awaitPod(t, "chatty", phase("Running"))
	dir := n.path("logs/default_chatty-" + nodeName + "_" + p.Metadata.UID + "/main")
	var files []string
	n.await("the rotation", func() error {
		var err error
		files, err = filepath.Glob(dir + "/0.log.*")
		if err == nil && (len(files) != 2 || !strings.HasSuffix(files[0], ".gz")) {
			err = fmt.Errorf("rotated are %v", files)
		}
		return err
	})
	slices.Sort(files) // by their times
	last := 0
	for _, file := range append(files, dir+"/0.log") {
		for _, line := range logLines(t, file) {
			var number int
			if _, err := fmt.Sscanf(line, "line %d ", &number); err != nil {
				continue
			}
			if last != 0 && number != last+1 {
				t.Errorf("%s: after line %d comes %d", file, last, number)
			}
			last = number
		}
	}
	same(t, "the last number", last, 400)
	same(t, "lines with a time", len(strings.SplitN(n.logs(t, "chatty", "main", "tailLines=1&timestamps=true"), " ", 2)), 2)
	previous := n.logs(t, "always", "main", "previous=true")
	same(t, "the log of the container before", previous, "run\n")
	n.follow(t)
}

// follow: a reader of the log has lines as they come, not those that are there alone.
func (n *node) follow(t *testing.T) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), waitTime)
	defer cancel()
	body, err := n.send(ctx, http.MethodGet, "/containerLogs/default/probes-"+nodeName+"/web?follow=true&tailLines=0")
	check(t, err)
	defer body.Close()
	begun, scanner := time.Now(), bufio.NewScanner(body)
	for lines := 0; lines < 4 && scanner.Scan(); lines++ {
		if !strings.HasPrefix(scanner.Text(), "GET /") {
			t.Errorf("line %q", scanner.Text())
		}
	}
	check(t, scanner.Err())
	n.kubelet.left = append(n.kubelet.left, time.Now())
	// Two probes ask once in a second.
	if took := time.Since(begun); took < 500*time.Millisecond {
		t.Errorf("four lines came in %s", took)
	}
}

// logLines are the messages of a log in CRI's format, whole lines all of them.
func logLines(t *testing.T, file string) []string {
	t.Helper()
	f, err := os.Open(file)
	check(t, err)
	defer f.Close()
	var text io.Reader = f
	if strings.HasSuffix(file, ".gz") {
		text, err = gzip.NewReader(f)
		check(t, err)
	}
	var lines []string
	scanner := bufio.NewScanner(text)
	for scanner.Scan() {
		fields := strings.SplitN(scanner.Text(), " ", 4)
		if len(fields) != 4 || fields[1] != "stdout" || fields[2] != "F" {
			t.Fatalf("%s: line %q", file, scanner.Text())
		}
		lines = append(lines, fields[3])
	}
	check(t, scanner.Err())
	return lines
}
