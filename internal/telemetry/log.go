// Package telemetry makes the daemon's logger.
package telemetry

import (
	"fmt"
	"io"
	"log/slog"
	"strings"
)

// NewLogger writes one line per record, key=value, to w. The levels are CRI-O's
// names: trace, debug, info, warn(ing), error, fatal, panic; slog has four, and the
// outer ones are mapped to the nearest.
func NewLogger(w io.Writer, level string) (*slog.Logger, error) {
	var l slog.Level
	switch strings.ToLower(level) {
	case "trace", "debug":
		l = slog.LevelDebug
	case "info", "":
		l = slog.LevelInfo
	case "warn", "warning":
		l = slog.LevelWarn
	case "error", "fatal", "panic":
		l = slog.LevelError
	default:
		return nil, fmt.Errorf("log_level %q is none of trace, debug, info, warn, error, fatal, panic", level)
	}
	return slog.New(slog.NewTextHandler(w, &slog.HandlerOptions{Level: l})), nil
}
