package oci

import (
	"context"

	"github.com/crio-minimal/crio/internal/stdio"
)

// MaxOutput is the most that ExecSync returns of one stream; what is beyond is
// dropped without an error (ExecSyncResponse.stdout, .stderr).
const MaxOutput = 16 << 20

// Output of a finished command.
type Output struct {
	Stdout, Stderr []byte
	ExitCode       int32
}

// ExecSync is Exec with the output returned.
func (r Runtime) ExecSync(ctx context.Context, e Exec) (Output, error) {
	var stdout, stderr capped
	code, err := r.Exec(ctx, e, stdio.Streams{Out: &stdout, Err: &stderr})
	if err != nil {
		return Output{}, err
	}
	return Output{Stdout: stdout, Stderr: stderr, ExitCode: code}, nil
}

// capped keeps the first MaxOutput bytes that are written to it.
type capped []byte

func (c *capped) Write(p []byte) (int, error) {
	*c = append(*c, p[:min(len(p), MaxOutput-len(*c))]...)
	return len(p), nil
}
