package server

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"

	"google.golang.org/protobuf/proto"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// sandboxesOf makes items whose ids have the lengths.
func sandboxesOf(lengths ...int) []*cri.PodSandbox {
	var all []*cri.PodSandbox
	for i, n := range lengths {
		all = append(all, &cri.PodSandbox{Id: fmt.Sprint(i) + strings.Repeat("x", n)})
	}
	return all
}

// Each item comes once and in order, no message is empty, and none is larger than the
// limit but for one item that is so itself.
func TestChunksAreBoundedByBytes(t *testing.T) {
	const limit = 1000
	uneven := []int{5000}
	for n := range 300 {
		uneven = append(uneven, n)
	}
	for name, lengths := range map[string][]int{
		"none": nil, "one": {10}, "one that is too large": {5000}, "small": slices.Repeat([]int{1}, 5000),
		"as large as a message": {994, 994, 994}, "two bytes of length": {127, 128, 129, 500, 300}, "uneven": append(uneven, 5000),
	} {
		items := sandboxesOf(lengths...)
		var got []*cri.PodSandbox
		err := sendChunks(t.Context(), limit, slices.Values(items), func(chunk []*cri.PodSandbox) error {
			size := proto.Size(&cri.StreamPodSandboxesResponse{PodSandboxes: chunk})
			if len(chunk) == 0 || len(chunk) > 1 && size > limit {
				t.Errorf("%s: a message of %d items and %d bytes", name, len(chunk), size)
			}
			got = append(got, chunk...)
			return nil
		})
		if err != nil || !slices.Equal(got, items) {
			t.Errorf("%s: %d of %d items, %v", name, len(got), len(items), err)
		}
	}
	messages := 0
	_ = sendChunks(t.Context(), limit, slices.Values(sandboxesOf(slices.Repeat([]int{95}, 20)...)), func([]*cri.PodSandbox) error { messages++; return nil })
	if messages < 2 || messages > 3 {
		t.Errorf("2,000 bytes take %d messages of 1,000", messages)
	}
}

// Nothing more is made for a client that has gone, or that does not take what it gets.
func TestChunksEndWithTheClient(t *testing.T) {
	made := 0
	endless := func(yield func(*cri.PodSandbox) bool) {
		for yield(&cri.PodSandbox{Id: strings.Repeat("x", 100)}) {
			made++
		}
	}
	ctx, cancel := context.WithCancel(t.Context())
	sent := 0
	err := sendChunks(ctx, 1000, endless, func([]*cri.PodSandbox) error {
		if sent++; sent == 3 {
			cancel()
		}
		return nil
	})
	if !errors.Is(err, context.Canceled) || sent != 3 {
		t.Errorf("%d messages, %v", sent, err)
	}
	broken := errors.New("broken")
	made = 0
	err = sendChunks(t.Context(), 1000, endless, func([]*cri.PodSandbox) error { return broken })
	if !errors.Is(err, broken) || made > 20 {
		t.Errorf("%d items were made, %v", made, err)
	}
}
