package server

import (
	"context"
	"iter"

	"google.golang.org/protobuf/encoding/protowire"
	"google.golang.org/protobuf/proto"

	"github.com/crio-minimal/crio/internal/fault"
)

// chunkBytes is about the size of one message of a streamed list. One item that is
// larger than that has a message of its own.
const chunkBytes = 1 << 20

// errEnding ends the streams of a daemon that ends.
var errEnding = fault.New(fault.Unavailable, "crio is ending; what it tells can be asked for again when it is back")

// sendChunks sends items in messages of at most limit bytes, as far as one item allows,
// and none that is empty (CRI: "lists of at least one item"). It takes an item when those
// before it are sent, so that a list that is made on the way is never in memory as a whole.
func sendChunks[T proto.Message](ctx context.Context, limit int, items iter.Seq[T], send func([]T) error) error {
	var chunk []T
	size := 0
	for item := range items {
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		// The items are field 1 of all these messages: a byte for the tag, and their length.
		n := 1 + protowire.SizeBytes(proto.Size(item))
		if len(chunk) > 0 && size+n > limit {
			if err := send(chunk); err != nil {
				return err
			}
			chunk, size = nil, 0
		}
		chunk, size = append(chunk, item), size+n
	}
	if len(chunk) == 0 {
		return nil
	}
	return send(chunk)
}
