package monitor

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strconv"
	"strings"
)

const (
	// exitHeader begins every record of this version of the format.
	exitHeader = "crio-exit 1\n"
	// maxRecord bounds what is read of a record: conmon's longest has less.
	maxRecord = maxPacket
)

// ReadExit reads the exit record in a container's run directory. When there is none,
// errors.Is(err, fs.ErrNotExist).
func ReadExit(runDir string) (Exit, error) {
	path := filepath.Join(runDir, exitName)
	f, err := os.Open(path)
	if err != nil {
		return Exit{}, fmt.Errorf("exit record: %w", err)
	}
	defer f.Close()
	data, err := io.ReadAll(io.LimitReader(f, maxRecord+1))
	if err != nil {
		return Exit{}, fmt.Errorf("exit record %s: %w", path, err)
	}
	x, err := ParseExit(data)
	if err != nil {
		return Exit{}, fmt.Errorf("exit record %s: %w", path, err)
	}
	return x, nil
}

// ParseExit reads an exit record (conmon/PROTOCOL.md). Keys it does not know are
// skipped: a newer monitor may write them. A record that is cut short is an error.
func ParseExit(data []byte) (Exit, error) {
	if len(data) > maxRecord {
		return Exit{}, fmt.Errorf("longer than %d bytes", maxRecord)
	}
	rest, ok := bytes.CutPrefix(data, []byte(exitHeader))
	if !ok {
		return Exit{}, errors.New("does not begin with " + strconv.Quote(exitHeader))
	}
	fields := map[string]string{}
	for len(rest) > 0 {
		line, after, whole := bytes.Cut(rest, []byte("\n"))
		if !whole {
			return Exit{}, errors.New("the last line is not whole")
		}
		key, value, _ := strings.Cut(string(line), " ")
		if _, twice := fields[key]; twice {
			return Exit{}, fmt.Errorf("key %q is there twice", key)
		}
		fields[key] = value
		rest = after
	}
	return exitOf(fields)
}

func exitOf(fields map[string]string) (Exit, error) {
	var failed error
	// number reads a key that must be there, from 0 to limit.
	number := func(key string, limit uint64) uint64 {
		text, ok := fields[key]
		n, err := strconv.ParseUint(text, 10, 64)
		switch {
		case failed != nil:
		case !ok:
			failed = fmt.Errorf("key %q is missing", key)
		case err != nil:
			failed = fmt.Errorf("key %q: %w", key, err)
		case n > limit:
			failed = fmt.Errorf("key %q: %d is above %d", key, n, limit)
		}
		return n
	}
	const maxInt64 = 1<<63 - 1
	x := Exit{
		ID:         fields["id"],
		Pid:        int(number("pid", 1<<31-1)),
		StartedAt:  int64(number("start_ns", maxInt64)),
		FinishedAt: int64(number("end_ns", maxInt64)),
		Code:       int32(number("code", 255)),
		Signal:     int(number("signal", 64)),
		OOM:        number("oom", 1) == 1,
		Dropped:    number("log_dropped_bytes", maxInt64),
		Written:    number("log_written_bytes", maxInt64),
	}
	if failed == nil && x.ID == "" {
		failed = errors.New(`key "id" is missing`)
	}
	if failed != nil {
		return Exit{}, failed
	}
	message, err := unescape(fields["message"])
	if err != nil {
		return Exit{}, fmt.Errorf(`key "message": %w`, err)
	}
	x.Message = strings.ToValidUTF8(message, "\uFFFD")
	return x, nil
}

// unescape undoes what keeps a message on one line: \\ and \xHH.
func unescape(s string) (string, error) {
	var b strings.Builder
	for {
		plain, rest, found := strings.Cut(s, `\`)
		b.WriteString(plain)
		switch {
		case !found:
			return b.String(), nil
		case strings.HasPrefix(rest, `\`):
			b.WriteByte('\\')
			s = rest[1:]
		case len(rest) >= 3 && rest[0] == 'x':
			n, err := strconv.ParseUint(rest[1:3], 16, 8)
			if err != nil {
				return "", fmt.Errorf("escape: %w", err)
			}
			b.WriteByte(byte(n))
			s = rest[3:]
		default:
			return "", errors.New("unfinished escape")
		}
	}
}
